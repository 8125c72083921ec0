"""Small judges with random weights, written as folders of a few kB in transformers' own layout; no network is asked."""

from pathlib import Path
from typing import Any

from lace_lora.families.quiet import quiet
from tests.conftest import _save_tokenizer

SIDE_PX = 28


def tiny_dinov2(folder: Path, seed: int = 0) -> Path:
    """A DINOv2: pictures are sized to 32 px and cut to 28."""
    import torch

    with quiet():
        from transformers import Dinov2Config, Dinov2Model
        from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

        torch.manual_seed(seed)
        config = Dinov2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE_PX, patch_size=7
        )
        Dinov2Model(config).save_pretrained(folder)
        size = {"height": SIDE_PX, "width": SIDE_PX}
        BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path, eos_token_id: int | None = None, seed: int = 0) -> Path:
    """A CLIP whose tokenizer knows the words of conftest; `eos_token_id` is what its config says, right where None."""
    import torch

    with quiet():
        from transformers import CLIPConfig, CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        _save_tokenizer(folder, "<|endoftext|>")
        last = _tokenizer(folder).eos_token_id
        sizes: dict[str, Any] = {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2
        }  # fmt: skip
        text = sizes | {"vocab_size": last + 1, "eos_token_id": last, "bos_token_id": last - 1, "pad_token_id": last}
        torch.manual_seed(seed)
        vision = sizes | {"image_size": SIDE_PX, "patch_size": 7}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
        if eos_token_id is not None:
            model.config.text_config.eos_token_id = eos_token_id
        model.save_pretrained(folder)
        size = {"height": SIDE_PX, "width": SIDE_PX}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE_PX}, crop_size=size).save_pretrained(folder)
    return folder


def tiny_classifier(folder: Path, kinds: int = 5, seed: int = 0) -> Path:
    """A ResNet that tells pictures of some kinds apart, at random."""
    import torch

    with quiet():
        from transformers import ResNetConfig, ResNetForImageClassification
        from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil

        torch.manual_seed(seed)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=kinds)
        ResNetForImageClassification(config).save_pretrained(folder)
        ConvNextImageProcessorPil(size={"shortest_edge": SIDE_PX}).save_pretrained(folder)
    return folder


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)
