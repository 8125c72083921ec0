"""The README.md of a package: what the LoRA is, how good it was found, how it is used; and what Hugging Face reads.

The base model's licence is said as the base states it, and as unknown where it does not.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lace_lora import families
from lace_lora.adapter import AdapterFacts
from lace_lora.counting import counted
from lace_lora.demo import MODEL as DEMO_MODEL
from lace_lora.families.published import GIVEN, LICENCES, UNKNOWN, Given, Licence
from lace_lora.file_names import public_name
from lace_lora.scores import Evaluation
from lace_lora.workflow import Design

TAGS = ("text-to-image", "diffusers", "lora", "template:sd-lora")
_HOW = {"num_inference_steps": "steps", "guidance_scale": "guidance", "scheduler": "sampler", "lora_scale": "strength"}
_LICENCE = re.compile(r"[\w.+-]{1,60}")
_BAR = "\\|"
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class Sample:
    """One picture of the package: its file's name in it, and what drew it, by the names of the settings."""

    file: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """All that a card is written from.

    base_model   with which it draws, folder or name: the one that it was made for, where that is known
    evaluation   None where nothing was measured
    is_measured_now  whether it measured this very LoRA, and not an earlier state of it
    files        what lies in the package, with what each is for
    """

    name: str
    base_model: str
    facts: AdapterFacts
    design: Design
    samples: Sequence[Sample]
    evaluation: Evaluation | None
    is_measured_now: bool
    files: Mapping[str, str]

    @property
    def is_ours(self) -> bool:
        """Whether it was trained by this program, which says of what it is made."""
        return bool(self.facts.versions)

    @property
    def made_for(self) -> str:
        """The base model that it was made for, as its file says it."""
        return self.base_model if self.is_ours else self.facts.base_model

    @property
    def kind(self) -> str:
        """The family of its base model, as a person calls it."""
        return families.FAMILIES[self.facts.family]

    @property
    def given(self) -> Given:
        """What others call it, and who reads it."""
        return GIVEN[self.facts.family]


def write(told: Told) -> str:
    """The whole README.md."""
    parts = [_front_matter(told), f"# {told.name}\n", _about(told), _verdict(told), _pictures(told.samples)]
    parts += [_use(told), _files(told.files), _rights(told)]
    return "\n".join(part.strip() + "\n" for part in parts if part)


def licence_of(base_model: str) -> Licence:
    """The base model's own licence: a known one, or what the README.md of its folder states; else unknown."""
    if base_model in LICENCES:
        return LICENCES[base_model]
    try:
        text = (Path(base_model).expanduser() / "README.md").read_text(encoding="utf-8")
        found = re.match(r"---\n(.*?)\n---", text, re.S)
        head = yaml.safe_load(found[1]) if found else {}
        stated, name = head.get("license"), head.get("license_name")
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return UNKNOWN
    if not isinstance(stated, str) or not _LICENCE.fullmatch(stated):
        return UNKNOWN
    is_named = stated == "other" and isinstance(name, str) and _LICENCE.fullmatch(name)
    return Licence(stated, str(name) if is_named else "")


def is_published(base_model: str) -> bool:
    """Whether it is named as models on Hugging Face are, so that the card may link to it."""
    return _HUB_NAME.fullmatch(base_model) is not None and not Path(base_model).is_dir()


def example(told: Told) -> str:
    """Three lines of Python that draw with the LoRA, for a folder into which the package was unpacked."""
    base = public_name(told.base_model)
    weights, design = "pytorch_lora_weights.safetensors", told.design
    head = "from diffusers import AutoPipelineForText2Image\n"
    where = repr(base)
    if told.base_model == DEMO_MODEL:
        head += "from lace_lora.demo import locate\n"
        where = f"locate({base!r})"
    head += f"\npipeline = AutoPipelineForText2Image.from_pretrained({where})\n"
    head += f'pipeline.load_lora_weights(".", weight_name="{weights}")\n'
    if told.facts.learns_token:
        head += _word(told.facts.concept_token)
    family, said = families.named(told.facts.family), f"{design.prompt!r}"
    if family.GUIDANCE == "classifier-free":
        said += f", negative_prompt={design.negative_prompt!r}"
    said += f", width={design.width}, height={design.height}, num_inference_steps={design.num_inference_steps}"
    said += f", guidance_scale={design.guidance_scale:g}"
    if design.lora_scale != 1:
        kind = "cross" if family.DENOISER == "unet" else "joint"
        said += f', {kind}_attention_kwargs={{"scale": {design.lora_scale:g}}}'
    return f'{head}pipeline({said}).images[0].save("design.png")\n'


# -- inside --


def _word(token: str) -> str:
    return (
        "from safetensors.torch import load_file\n"
        'word = load_file("concept_token.safetensors")\n'
        f'pipeline.load_textual_inversion(word["clip_l"], {token!r})\n'
        f'pipeline.load_textual_inversion(word["clip_g"], {token!r}, pipeline.tokenizer_2, pipeline.text_encoder_2)\n'
    )


def _front_matter(told: Told) -> str:
    from huggingface_hub import ModelCardData

    widget = [
        {
            "text": str(one.details.get("prompt") or ""),
            "parameters": {"negative_prompt": str(one.details.get("negative_prompt") or "")},
            "output": {"url": one.file},
        }
        for one in told.samples
    ]
    named: dict[str, Any] = {"base_model": told.made_for} if is_published(told.made_for) else {}
    named |= {"widget": widget} if widget else {}
    called = told.facts.instance_prompt or told.facts.concept_token
    named |= {"instance_prompt": called} if called else {}
    licence = licence_of(told.made_for)
    named |= {"license_name": licence.name} if licence.name else {}
    named |= {"license_link": licence.link} if licence.link else {}
    data = ModelCardData(
        license=licence.hub,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=[*TAGS, *told.given.tags],
        **named,
    )
    return f"---\n{data.to_yaml()}\n---"


def _about(told: Told) -> str:
    facts, token = told.facts, told.facts.instance_prompt or told.facts.concept_token
    kind = "".join([", DoRA" if facts.use_dora else "", ", rsLoRA" if facts.use_rslora else ""])
    rows = [
        ("write in a prompt", _code(token) if token else "not known"),
        ("base model", _code(public_name(told.made_for))),
        *([] if told.is_ours else [("drawn here with", _code(public_name(told.base_model)))]),
        ("rank, alpha", f"{facts.rank}, {facts.alpha:g}{kind}"),
        ("trained", _trained(facts)),
        ("drawn at", f"{told.design.width} × {told.design.height} px, strength {told.design.lora_scale:g}"),
    ]
    # In a table a bar ends a cell, in code too.
    table = "\n".join(f"| {name} | {value.replace('|', _BAR)} |" for name, value in rows)
    what = f"A LoRA for {told.kind}, made with Lace LoRA."
    if told.base_model == DEMO_MODEL:
        what = "A rehearsal: a LoRA for the miniature model that ships with Lace LoRA. No other model can draw with it."
    elif not told.is_ours:
        what = f"A LoRA for {told.kind}, made with another program and packed by Lace LoRA."
    return f"{what}\n\n| | |\n|---|---|\n{table}\n"


def _trained(facts: AdapterFacts) -> str:
    if not facts.versions:
        return "with another program"
    ended = "" if facts.is_complete else "; the training was stopped before its end"
    return f"{counted(facts.step, 'step')} at {facts.resolution} px{ended}"


def _verdict(told: Told) -> str:
    head = "## Is it good, is it new\n\n"
    found = told.evaluation
    if found is None or not found.verdict:
        return f"{head}Not measured."
    stale = (
        ""
        if told.is_measured_now
        else "This was measured on an earlier state of the LoRA; it was trained on since.\n\n"
    )
    return head + stale + "\n".join(f"- {_plain(sentence)}" for sentence in found.verdict)


def _pictures(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    shown = []
    for one in samples:
        prompt, negative = str(one.details.get("prompt") or ""), one.details.get("negative_prompt")
        seed = one.details.get("seed")
        said = [f"prompt {_code(prompt)}", *([f"negative prompt {_code(str(negative))}"] if negative else [])]
        said += [f"seed {seed}"] if seed is not None else []
        said += [f"{word} {one.details[name]}" for name, word in _HOW.items() if one.details.get(name) is not None]
        said += ["refined"] if one.details.get("refine") not in (None, "none") else []
        shown.append(f"![{_plain(prompt)}]({one.file})\n\n{', '.join(said)}")
    return "## Samples\n\n" + "\n\n".join(shown)


def _use(told: Told) -> str:
    lora, design = str(told.design.lora_name), told.design
    checkpoints = " and ".join(_code(one) for one in (design.checkpoint, design.refiner) if one)
    word = ""
    if design.embedding:
        word = f" The word it learnt lies in a file of its own: copy `concept_token.safetensors` to " \
               f"`models/embeddings/{design.embedding}.safetensors`, and write `embedding:{design.embedding}` in " \
               "prompts."  # fmt: skip
    if told.facts.use_dora:
        word += " ComfyUI computes DoRA a little differently from diffusers, so pictures differ a little there."
    if design.family in ("sd35", "flux"):
        word += " The checkpoint must hold its text encoders too; where its weights are rounded to 8 bits, as they " \
                "usually are, pictures differ a little."  # fmt: skip
    others = (
        f"**ComfyUI**: copy `{lora}` to `models/loras`, then drop `comfyui_workflow.json` on the page. It asks for the "
        f"checkpoint {checkpoints}; choose yours where it has another name. `comfyui_workflow_api.json` is the same "
        f"for programs.{word}\n\n"
        f"**{told.given.programs}**: copy `{lora}` to `models/Lora` and write "
        f"{_code(f'<lora:{Path(lora).stem}:{design.lora_scale:g}> {design.prompt}')}."
    )
    if told.base_model == DEMO_MODEL:
        others = "**ComfyUI, A1111 and the like** cannot load the miniature model; what lies here for them shows " \
                 "what a LoRA for SDXL would bring along."  # fmt: skip
    repeats = sorted({str(one.details.get("repeat")) for one in told.samples} - {"None", "none"})
    if repeats:
        others += f"\n\nThe samples are seamless repeats ({', '.join(repeats)}): these Lace LoRA alone draws."
    return (
        f"## How it is used\n\n{others}\n\n"
        '**diffusers**, in this folder (on a GPU add `.to("cuda")` to the pipeline):\n\n'
        f"```python\n{example(told)}```\n\n"
        "**Lace LoRA**: `lace-lora import` with the path of this folder."
    )


def _files(files: Mapping[str, str]) -> str:
    return "## Files\n\n" + "\n".join(f"- `{name}`: {purpose}" for name, purpose in files.items())


def _rights(told: Told) -> str:
    licence, base = licence_of(told.made_for), _code(public_name(told.made_for))
    stated = (
        f"{base} is under the licence {_code(str(licence))}"
        if licence != UNKNOWN
        else f"The licence of {base} is not known"
    )
    if not told.is_ours:
        stated = "The licence of the base model is not known" if licence == UNKNOWN else stated
        return (
            f"## Rights\n\n{stated}; it binds what is drawn with this LoRA too, and so does the licence that its maker "
            "gave it: ask for both before you pass it on."
        )
    return (
        f"## Rights\n\n{stated}; it binds what is drawn with this LoRA too. The photographs that were learnt from are "
        "not part of this package, and their rights stay with their owner."
    )


def _code(text: str) -> str:
    """A text as Markdown shows it letter by letter; <tokens> would vanish as HTML."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}" if line else "empty"


def _plain(text: str) -> str:
    """A text without anything that Markdown or HTML would take for markup."""
    return re.sub(r"([\\`*_\[\]<>|!#])", r"\\\1", " ".join(text.split()))
