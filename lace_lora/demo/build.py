"""Builds the miniature SDXL from nothing: `python -m lace_lora.demo.build --out DIR --minutes 120`.

In order: VAE, tokenizers and text towers, base UNet, refiner UNet, a last polish of the VAE's decoder; after each it
puts a complete, loadable model at `--out`. Interrupted, it goes on where it was (state lies in `--work`). Ends after
the given steps or minutes, whichever comes first; with steps alone (`--minutes 0`) the same seed gives the same model.
One thread throughout: at this size two are slower.
"""

import argparse
import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from lace_lora.demo import SIDE
from lace_lora.demo.build_text import WIDTH, save_tokenizers, train_towers
from lace_lora.demo.build_unet import Course, new_unet, refiner_from, scheduler_config, train_unet
from lace_lora.demo.build_vae import train_vae

# Share of --minutes for each part.
SHARES = {"vae": 0.11, "text": 0.03, "unet": 0.62, "refiner": 0.16, "decoder": 0.08}


def assemble(work: Path, out: Path) -> None:
    """Put what `work` holds so far at `out` as base/ and refiner/ in diffusers' layout (fp16 files, plain names).

    Written beside and swapped in, so that a reader of `out` never meets half a model.
    """
    vae = AutoencoderKL.from_pretrained(work / "vae").half()
    first = CLIPTextModel.from_pretrained(work / "text_encoder").half()
    second = CLIPTextModelWithProjection.from_pretrained(work / "text_encoder_2").half()
    tokenizers = [CLIPTokenizer.from_pretrained(work / name) for name in ("tokenizer", "tokenizer_2")]
    trained = (work / "unet").exists()
    unet = UNet2DConditionModel.from_pretrained(work / "unet") if trained else new_unet(SIDE // 4, 2 * WIDTH, 6)
    if (work / "refiner").exists():
        refiner = UNet2DConditionModel.from_pretrained(work / "refiner")
    else:
        refiner = refiner_from(copy.deepcopy(unet), SIDE // 4)
    base_pipe = StableDiffusionXLPipeline(
        vae, first, second, *tokenizers, unet.half(), scheduler_config(), add_watermarker=False
    )
    refiner_pipe = StableDiffusionXLImg2ImgPipeline(
        vae, None, second, None, tokenizers[1], refiner.half(), scheduler_config(),
        requires_aesthetics_score=True, add_watermarker=False,
    )  # fmt: skip
    fresh, old = out.with_name(out.name + ".partial"), out.with_name(out.name + ".old")
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for pipe, name in ((base_pipe, "base"), (refiner_pipe, "refiner")):
        pipe.save_pretrained(fresh / name)
        for part in ("tokenizer", "tokenizer_2"):
            if (fresh / name / part).exists():  # the pipeline leaves vocab.json and merges.txt out
                shutil.copytree(work / part, fresh / name / part, dirs_exist_ok=True)
        for config in (fresh / name).glob("text_encoder*/config.json"):
            # The files are fp16, but a plain load must give fp32: fp16 on a CPU is 20 times slower.
            add_settings(config, {"dtype": "float32"})
        # As in SDXL's own file: Euler does not read these, but the samplers made from its config do, and DDIM would
        # otherwise clip latents at 1.
        extra = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True}
        add_settings(fresh / name / "scheduler" / "scheduler_config.json", extra)
    for config in fresh.rglob("config.json"):  # where the parts lay while they were built is nobody's affair
        settings = json.loads(config.read_text(encoding="utf-8"))
        if settings.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def add_settings(config: Path, extra: dict[str, Any]) -> None:
    """Merge `extra` into a JSON file."""
    settings = json.loads(config.read_text(encoding="utf-8")) | extra
    config.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def done(work: Path, part: str) -> Path:
    """The marker that says that `part` is finished."""
    return work / f"{part}.done"


def build(work: Path, out: Path, seed: int, minutes: dict[str, float], steps: dict[str, int]) -> None:
    """Build all parts that are not finished yet; `minutes` and `steps` bound each part (see SHARES for their names)."""
    work.mkdir(parents=True, exist_ok=True)
    if not done(work, "vae").exists():
        train_vae(work, SIDE, seed, steps["vae"], minutes["vae"])
        done(work, "vae").touch()
    if not done(work, "text").exists():
        save_tokenizers(work)
        train_towers(work, seed, steps["text"], minutes["text"])
        done(work, "text").touch()
        assemble(work, out)
    for part, is_refiner, small_until in (("unet", False, 0.3), ("refiner", True, 0.0)):
        if not done(work, part).exists():
            course = Course(steps[part], minutes[part], rate=4e-4 if is_refiner else 1.2e-3, small_until=small_until)
            train_unet(work, part, SIDE, seed, course, is_refiner, snapshot=lambda: assemble(work, out))
            done(work, part).touch()
    if not done(work, "decoder").exists():
        train_vae(work, SIDE, seed + 1, steps["decoder"], minutes["decoder"], decoder_only=True)
        done(work, "decoder").touch()
    assemble(work, out)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the finished model goes")
    parser.add_argument("--work", type=Path, help="where unfinished parts are kept (default: OUT.work)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=120, help="wall-clock bound for all parts; 0: steps alone")
    for part, count in (("vae", 2500), ("text", 700), ("unet", 4500), ("refiner", 800), ("decoder", 700)):
        parser.add_argument(f"--{part}-steps", type=int, default=count)
        parser.add_argument(f"--{part}-minutes", type=float, help=f"instead of its share, {SHARES[part]:.0%}")
    chosen = vars(parser.parse_args())
    torch.set_num_threads(1)
    total = chosen["minutes"] or float("inf")
    minutes = {p: chosen[f"{p}_minutes"] or share * total for p, share in SHARES.items()}
    steps = {p: chosen[f"{p}_steps"] for p in SHARES}
    out: Path = chosen["out"]
    build(chosen["work"] or out.with_name(out.name + ".work"), out, chosen["seed"], minutes, steps)


if __name__ == "__main__":
    main()
