"""How a model wants its pictures, against transformers' own processors that use Pillow (P21, L1)."""

import json

import numpy
import pytest
from PIL import Image

from lace_lora.errors import ModelError
from lace_lora.families.quiet import quiet
from lace_lora.preprocessing import Preprocessing

with quiet():
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

SIZES = [(40, 40), (97, 61), (50, 301), (333, 40), (640, 611)]
PROCESSORS = {
    "CLIP": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "DINOv2": BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 28}),
    "smaller than its cut": BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 32, "width": 32}),
    "ViT": ViTImageProcessorPil(size={"height": 32, "width": 24}),
    "ResNet": ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875),
    "large ConvNeXT": ConvNextImageProcessorPil(size={"shortest_edge": 384}),
    "neither sized nor scaled": CLIPImageProcessorPil(
        do_resize=False, do_normalize=False, crop_size={"height": 32, "width": 32}
    ),
    "not cut": CLIPImageProcessorPil(do_center_crop=False, size={"shortest_edge": 20}),
    "its own values": ViTImageProcessorPil(image_mean=[0, 0.1, 0.9], image_std=[1, 2, 0.5], rescale_factor=0.01),
}


def noise(size):
    """Sharp noise, so that another filter or a cut one pixel off shows."""
    return Image.fromarray(numpy.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_P21_pictures_are_prepared_as_transformers_itself_prepares_them(name, size, tmp_path):
    """P21: upright and lying, smaller and larger than the model's side."""
    PROCESSORS[name].save_pretrained(tmp_path)
    picture = noise(size)
    with quiet():
        theirs = numpy.asarray(PROCESSORS[name](picture, return_tensors="np")["pixel_values"][0])
    ours = Preprocessing.read(tmp_path).pixels(picture)
    assert ours.dtype == numpy.float32 and ours.shape == theirs.shape
    assert numpy.abs(ours - theirs).max() < 2e-6 * max(1, numpy.abs(theirs).max())


@pytest.mark.parametrize("name, number", [("CLIP", 32), ("ViT", 24), ("ResNet", 32)])
def test_P21_older_files_give_one_number_for_a_side(name, number, tmp_path):
    """P21: openai/clip-vit-large-patch14 has "size": 224 and names no factor; so have old ViT and ResNet files."""
    processor = PROCESSORS[name]
    if name == "ViT":
        processor = ViTImageProcessorPil(size={"height": number, "width": number})
    processor.save_pretrained(tmp_path)
    new = Preprocessing.read(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    told = json.loads(path.read_text()) | {"size": number}
    told |= {"crop_size": number} if "crop_size" in told else {}
    for left_out in ("rescale_factor", "do_rescale", "do_convert_rgb"):
        told.pop(left_out, None)
    path.write_text(json.dumps(told))
    assert Preprocessing.read(tmp_path) == new


def test_P21_a_processors_file_for_texts_and_pictures_is_read_too(tmp_path):
    """P21: transformers 5 may keep both in processor_config.json."""
    PROCESSORS["CLIP"].save_pretrained(tmp_path)
    alone = Preprocessing.read(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(path.read_text())}))
    path.unlink()
    assert Preprocessing.read(tmp_path) == alone


def test_P21_transparent_pictures_are_laid_on_white(tmp_path):
    """P21: and so are seen as the person sees them."""
    PROCESSORS["CLIP"].save_pretrained(tmp_path)
    clear, white = Image.new("RGBA", (40, 40), (255, 0, 0, 0)), Image.new("RGB", (40, 40), "white")
    prepare = Preprocessing.read(tmp_path)
    assert numpy.array_equal(prepare.pixels(clear), prepare.pixels(white))


@pytest.mark.parametrize(
    "told",
    [
        "{",
        "[]",
        '{"do_resize": true}',
        '{"size": {"longest_edge": 9}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}',
        '{"size": 9, "image_mean": [0], "image_std": [1]}',
    ],
)
def test_P21_what_is_not_understood_is_refused_with_a_sentence(told, tmp_path):
    """P21: better than pictures prepared in another way, whose numbers would look right."""
    (tmp_path / "preprocessor_config.json").write_text(told)
    with pytest.raises(ModelError, match="how the model wants its pictures.+Choose another model"):
        Preprocessing.read(tmp_path)
