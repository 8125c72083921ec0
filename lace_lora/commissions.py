"""What a program may ask a served door for: the settings of a sheet by their own names, within a server's limits.

Names, units, bounds and help are those of the declarations in config.py, so the door's description cannot differ from
them. Which file is read or written is never asked for: no setting that names one is among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, create_model, field_validator

from lace_lora import queries
from lace_lora.alternatives import literal
from lace_lora.config import Config
from lace_lora.declarations import bounds_of, bounds_text, nearest, unit_of
from lace_lora.file_names import printable

# In the order in which they are declared; all else (models, folders, what is made of each design) is the server's.
NAMES = (
    "prompts", "negative_prompt", "num_images", "width", "height", "num_inference_steps", "guidance_scale",
    "guidance_until", "repeat", "repeat_from", "scheduler", "lora_scale", "seed", "refine", "refiner_start",
    "refine_strength", "print_width_cm", "dpi",
)  # fmt: skip
# Settings of the server's own that would take the place of what is asked for; pictures are served as PNG.
SET_ASIDE = {"prompts_file": None, "favourites_of": None, "vary": None, "shard": None, "image_format": "png"}
# What a request looks like, for whoever sent something else.
ONE_OBJECT = 'Send the settings as one JSON object, such as {"prompts": ["a round doily"], "num_images": 4}.'
NUMBERS = (int, float, int | None, float | None)
_LINE = r"^[^\x00-\x1f\x7f]*$"  # no line breaks, no control characters


@dataclass(frozen=True)
class Limits:
    """What one server takes at most.

    waiting            requests in its queue, beside the one that is drawn
    images             designs in a request
    prompts            in a request
    prompt_characters  in a prompt; the models read 75 tokens, some 400 characters
    side_px            width and height of a design
    steps              denoising steps
    body_bytes         of a request
    """

    waiting: int = 16
    images: int = 32
    prompts: int = 32
    prompt_characters: int = 1000
    side_px: int = 2048
    steps: int = 200
    body_bytes: int = 64 * 1024

    def most(self) -> dict[str, int]:
        """The settings that are bounded more tightly than in config.py."""
        return {
            "num_images": self.images,
            "width": self.side_px,
            "height": self.side_px,
            "num_inference_steps": self.steps,
        }


class Commission(BaseModel):
    """A request for designs; `commission_model` adds its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, title="Commission")

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """JSON has numbers of its own: neither true nor "24" is one."""
        if isinstance(value, bool | str) and Config.model_fields[str(info.field_name)].annotation in NUMBERS:
            raise ValueError("not a number")
        return value


def commission_model(config: Config, limits: Limits) -> type[Commission]:
    """The kind of request that a server with these settings takes: what is left out of one is as the settings say.

    config  settled; its numbers that a limit does not allow become the limit
    """
    fields: dict[str, Any] = {}
    most = limits.most()
    for name in NAMES:
        declared, default = Config.model_fields[name], getattr(config, name)
        kind: Any = declared.annotation
        bounds: dict[str, Any] = dict(bounds_of(declared))
        if name in most:
            bounds["le"] = min(int(bounds["le"]), most[name])
            default = min(default, bounds["le"]) if default is not None else None
        if kind is str:
            kind = Annotated[str, StringConstraints(max_length=limits.prompt_characters, pattern=_LINE)]
        elif name == "prompts":
            line = StringConstraints(min_length=1, max_length=limits.prompt_characters, pattern=_LINE)
            kind, default = list[Annotated[str, line]], list(default)[: limits.prompts]
            bounds = {"max_length": limits.prompts}
        fields[name] = (
            kind,
            Field(default, description=declared.description, json_schema_extra={"unit": unit_of(declared)}, **bounds),
        )
    return create_model("Commission", __base__=Commission, **fields)


def settings_of(asked: Mapping[str, Any], config: Config, sheet_name: str) -> Config:
    """The settings that draw what was asked for, in a sheet of that name.

    asked  values by the names of NAMES; others are passed over

    Raises SettingsError for a value that config.py does not allow.
    """
    values = {name: asked[name] for name in NAMES if name in asked}
    return config.model_copy(update=values | SET_ASIDE | {"sheet_name": sheet_name})


def check_prompts(config: Config, concept_token: str) -> None:
    """Raises SettingsError for prompts that cannot be drawn, such as one with a brace that is never closed."""
    queries.shared_out(
        config.prompts or (literal(config.instance_prompt),),
        config.num_images,
        seed=config.seed,
        negative_prompt=config.negative_prompt,
        concept_token=concept_token or config.concept_token,
        other_token=config.concept_token,
        class_prompt=config.class_prompt,
        base_prompt=config.base_prompt or "",
        say=lambda line: None,
    )


def faults(problems: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> str:
    """What is wrong with a request, a sentence a setting; what was sent is not repeated.

    problems  as pydantic tells them: `loc` (body, name, place), `type`, `msg`
    """
    found: dict[str, str] = {}
    for problem in problems:
        place = [part for part in problem["loc"] if part != "body"]
        name = str(place[0]) if place else ""
        field = model.model_fields.get(name)
        if field is None:
            is_extra, shown = problem["type"] == "extra_forbidden", printable(name)[:60]
            unknown = f"No setting called {shown!r}{nearest(shown, NAMES)} There are: {', '.join(NAMES)}."
            found.setdefault("", unknown if is_extra else ONE_OBJECT)
        elif name not in found:
            allowed = bounds_text(field) or _kind(name, problem)
            unit = f" ({unit_of(field)})" if unit_of(field) else ""
            found[name] = f"{name} must be {allowed}{unit}."
    return " ".join(found.values())


def _kind(name: str, problem: Mapping[str, Any]) -> str:
    most = problem.get("ctx", {}).get("max_length")
    if problem["type"] == "too_long":
        return f"a list of at most {most} texts"
    if problem["type"] == "string_too_long":
        return f"texts of at most {most} characters" if name == "prompts" else f"a text of at most {most} characters"
    return "a list of texts, each one line" if name == "prompts" else "a text of one line"
