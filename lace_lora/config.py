"""All settings, each declared once; the only reader and writer of config.yaml.

A setting's default, bounds, unit, group and help stand on one line here. The shipped config.yaml, the command line, the
notebooks' forms and the table in documentation.md are generated from these lines.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator
from pydantic.fields import FieldInfo

from lace_lora.declarations import GROUPS as GROUPS
from lace_lora.declarations import bounds_of as bounds_of
from lace_lora.declarations import bounds_text as bounds_text
from lace_lora.declarations import choices_of as choices_of
from lace_lora.declarations import group_of, setting
from lace_lora.declarations import nearest as nearest
from lace_lora.declarations import unit_of as unit_of
from lace_lora.errors import SettingsError

Auto = Literal["auto"]
C = TypeVar("C", bound="Config")
# The eleven keys that the user's own config.yaml has, in her order; the shipped file writes these and comments the rest.
USER_KEYS = (
    "drive_mount_path",
    "images_dir",
    "lora_output_dir",
    "instance_prompt",
    "class_prompt",
    "pretrained_model",
    "refiner_model",
    "resolution",
    "train_batch_size",
    "learning_rate",
    "max_train_steps",
)
# Lists whose texts hold commas: they are written one a line.
BY_LINE = ("prompts", "plain_prompts")
# Addresses, and the environment variables that hold the keys for them.
KEYS = {"caption_url": "LACE_CAPTION_KEY", "backend_url": "LACE_BACKEND_KEY"}
# Where notebooks look for settings in Drive, below the folder that it is mounted at.
DRIVE_FILE = "MyDrive/lace_lora/config.yaml"


class Config(BaseModel, frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False):
    """Every setting of a run, frozen. A changed copy is `config.model_copy(update={"rank": 8})`, validated again."""

    # fmt: off
    preset: str = setting("auto", "where", "a named set of settings: auto (chosen for this machine), none, or a name that `lace-lora presets` lists")
    drive_mount_path: str = setting("/content/drive", "where", "where Google Drive is mounted in Colab")
    images_dir: str = setting("/content/drive/MyDrive/babanne-images", "where", "folder with your photographs", min_length=1)
    lora_output_dir: str = setting("/content/drive/MyDrive/lora_output", "where", "folder in which every run gets a folder of its own", min_length=1)
    make_folders: bool = setting(False, "where", "make images_dir and lora_output_dir where they are missing; never while Drive is not mounted")
    run_name: str = setting("lace", "where", "name of this run; training again under it goes on where it stopped", pattern=r"^[\w][\w .-]{0,63}$")
    cache_dir: str = setting("~/.cache/lace_lora", "where", "folder for pictures and captions already encoded; may be deleted at any time")
    num_processes: Annotated[int, Field(ge=1, le=4096)] | Auto = setting("auto", "where", "processes that train together, one a GPU; auto takes every GPU of this machine", "processes")
    push_to_hub: str | None = setting(None, "where", "where lace-lora package also uploads to on Hugging Face, such as my-name/lace; private until you change it there; empty uploads nothing")
    must_fit: bool = setting(True, "where", "refuse a run before anything is loaded where the plan says that memory cannot hold it; switch off on a machine that the plan may misjudge")

    backend: Literal["local", "comfyui", "replicate"] = setting("local", "where", "where the work is done: on this machine (local), by a ComfyUI that runs somewhere, or at Replicate, which takes money")
    backend_url: str = setting("http://localhost:8188", "where", "address of your ComfyUI, where backend is comfyui", min_length=1)
    backend_model: str | None = setting(None, "where", "your own model at Replicate, such as anna/my-lace: trainings go into it, and designs are drawn with it")
    backend_trainer: Literal["sdxl", "flux-dev", "fast-flux"] = setting("sdxl", "where", "who trains at Replicate; only sdxl makes a LoRA for SDXL")
    max_cost_usd: float = setting(0.0, "where", "how much work elsewhere may cost; what is estimated to cost more is not begun", "dollars", ge=0, le=10_000)

    instance_prompt: str = setting("a photo of <myspecialstyle>", "pictures", "caption for pictures that have none of their own; must hold the concept token", min_length=1)
    class_prompt: str = setting("a photo of a painting", "pictures", "the same thing in ordinary words, for prior preservation and for the refiner", min_length=1)
    concept_token: str = setting("<myspecialstyle>", "pictures", "the word that calls your style; choose one that means nothing else", min_length=1)
    image_types: tuple[str, ...] = setting((".jpg", ".jpeg"), "pictures", "file endings that count as pictures, in either case", min_length=1)
    resolution: Annotated[int, Field(ge=32, le=2048, multiple_of=8)] | Auto = setting("auto", "pictures", "side of the training square; other shapes get the same area", "px")
    crop: Literal["center", "random", "tiles"] = setting("center", "pictures", "what is cut where a picture does not fit its shape: the middle, four random places, or also tiles of a large scan at full sharpness")
    random_flip: bool = setting(True, "pictures", "also learn each picture mirrored; switch off for lettering")
    quarter_turns: bool = setting(False, "pictures", "also learn each picture turned by quarters; for all-over grounds without up and down")
    dataset_repeats: int = setting(1, "pictures", "how often each picture is used in one epoch", "times", ge=1, le=1000)
    validation_fraction: float = setting(0.1, "pictures", "share of pictures held out to tell when to stop; pictures of one piece stay together", ge=0, le=0.5)

    captioner: Literal["none", "florence2", "blip2", "llava", "qwen3_vl", "http_chat", "http_plain"] = setting("none", "captions", "who suggests captions: nobody, a model on this machine, or a server (http_chat speaks OpenAI's protocol, http_plain takes the picture itself)")
    caption_model: str | None = setting(None, "captions", "another model for the captioner: a folder, a Hugging Face name, or the name by which the server knows it")
    caption_url: str | None = setting(None, "captions", "address of the caption server; empty means http://localhost:8000 for http_chat")
    caption_prompt: str | None = setting(None, "captions", "another question to the captioner; for florence2 one of its caption tasks")

    pretrained_model: str = setting("stabilityai/stable-diffusion-xl-base-1.0", "model", "base model: a folder, or a Hugging Face name")
    refiner_model: str = setting("stabilityai/stable-diffusion-xl-refiner-1.0", "model", "refiner: a folder, or a Hugging Face name")
    vae_model: str | None = setting(None, "model", "another VAE, a folder or a Hugging Face name; empty means the base model's own")
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = setting("auto", "model", "number format of the frozen base weights; auto takes bf16 where the GPU has it, else fp16, and fp32 on a CPU")
    quantization: Literal["auto", "none", "nf4"] = setting("auto", "model", "nf4 keeps the frozen base in 4 bits, in training and in drawing: a third of the memory, slower, a little coarser; auto takes it only where nothing else fits")
    attention_backend: Literal["sdpa", "xformers"] = setting("sdpa", "model", "sdpa is PyTorch's own memory-efficient attention; xformers where it is installed")

    rank: int = setting(16, "adapter", "size of the adapter; more learns finer stitches and overfits sooner", ge=1, le=128)
    alpha: int | None = setting(None, "adapter", "strength of the adapter is alpha / rank; empty means equal to rank", ge=1, le=256)
    lora_targets: Literal["attention", "attention+ff", "attention+ff+conv", "up_blocks"] = setting("attention", "adapter", "layers that learn: attention carries a style, +ff richer stitches, +conv the finest threads; up_blocks is attention in the upper half alone, a quarter less work")
    use_dora: bool = setting(False, "adapter", "learn direction and length of each weight apart (DoRA); slower, closer to full training")
    use_rslora: bool = setting(False, "adapter", "strength is alpha / sqrt(rank), so that high ranks keep learning (rsLoRA)")
    start_from: str | None = setting(None, "adapter", "a LoRA to train on from, of this or another program: a .safetensors file, or the folder of a run; empty begins anew")
    train_text_encoder: bool = setting(False, "adapter", "also put a LoRA on the text encoders; captions are then encoded in every step")
    learn_concept_token: bool = setting(False, "adapter", "make the concept token a new word with an embedding of its own, learnt for both text encoders")

    seed: int = setting(0, "training", "number that decides every random draw; the same seed gives the same result", ge=0, lt=2**31)
    max_train_steps: Annotated[int, Field(ge=1, le=1_000_000)] | Auto = setting("auto", "training", "optimizer updates in all; auto makes num_train_epochs passes over the pictures", "steps")
    num_train_epochs: int = setting(10, "training", "passes over the pictures when max_train_steps is auto", "epochs", ge=1, le=10_000)
    train_batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = setting("auto", "training", "pictures computed at once", "pictures")
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=256)] | Auto = setting("auto", "training", "batches summed up before each update; raise it when memory is short", "batches")
    learning_rate: float = setting(1e-4, "training", "size of an update", gt=0, le=1)
    lr_scheduler: Literal["cosine", "constant", "linear"] = setting("cosine", "training", "how the learning rate falls after its warmup")
    lr_warmup_ratio: float = setting(0.05, "training", "share of all steps (50 at most) in which the learning rate rises", ge=0, le=0.5)
    optimizer: Literal["adamw", "adamw8bit", "paged_adamw8bit", "prodigy", "adafactor", "schedulefree"] = setting("adamw", "training", "how gradients become updates; the 8-bit ones save a little memory, prodigy finds its own learning rate (set learning_rate 1)")
    max_grad_norm: float = setting(1.0, "training", "longest gradient allowed; 0 switches clipping off", ge=0, le=1000)
    loss: Literal["mse", "huber"] = setting("mse", "training", "how errors count: squared, or huber, which forgives spots and labels in a photograph")
    min_snr_gamma: float = setting(5.0, "training", "evens out the weight of noisy and clear steps; 0 is plain mean squared error", ge=0, le=100)
    noise_offset: float = setting(0.0357, "training", "lets the model learn overall darkness and brightness", ge=0, le=1)
    caption_dropout: float = setting(0.1, "training", "share of pictures learnt without their caption, for guidance", ge=0, le=1)
    prior_loss_weight: float = setting(0.0, "training", "weight of the class pictures, which keep plain prompts plain; 0 is off", ge=0, le=10)
    num_class_images: int = setting(100, "training", "class pictures that the base model draws when prior_loss_weight is above 0", "pictures", ge=1, le=5000)
    gradient_checkpointing: Literal["auto", "none", "transformers", "full"] = setting("auto", "training", "saves memory for time: transformers about a third more time a step, full a little more; auto takes the fastest that fits")
    compile: Literal["none", "blocks"] = setting("none", "training", "blocks compiles the transformer blocks once; pays on a recent GPU in long runs")

    checkpoint_every: int = setting(100, "keeping", "updates between two checkpoints", "steps", ge=1, le=1_000_000)
    checkpoint_minutes: float = setting(10.0, "keeping", "a checkpoint also after this time, because sessions end by the clock; 0 is off", "minutes", ge=0, le=1440)
    checkpoints_to_keep: int = setting(2, "keeping", "newest checkpoints kept; older ones are deleted after the new one is written", "checkpoints", ge=1, le=1000)
    validate_every: int = setting(100, "keeping", "updates between two looks at the held-out pictures; 0 is off", "steps", ge=0, le=1_000_000)
    early_stopping_patience: int = setting(0, "keeping", "stop after this many looks without a better one; 0 is off", "looks", ge=0, le=1000)
    sample_every: int = setting(0, "keeping", "updates between two rows of sample pictures (the first four prompts, always the same seeds); 0 is off", "steps", ge=0, le=1_000_000)
    log_with: Literal["auto", "none", "tensorboard", "wandb"] = setting("auto", "keeping", "where losses are also sent; auto takes TensorBoard where it is installed")

    sheet_name: str = setting("sheet", "pictures out", "folder for the new designs; other prompts never overwrite it", pattern=r"^[\w][\w .-]{0,63}$")
    prompts: tuple[str, ...] = setting((), "pictures out", "what you want to see, one prompt a line; {white|cream} takes turns; empty means the instance prompt")
    prompts_file: str | None = setting(None, "pictures out", "a file of prompts (.txt, .csv, .jsonl or .yaml; rows may have their own count, seed, negative_prompt, width, height, subset and reference_path), or captions for what is written about your photographs; empty means prompts")
    base_prompt: str | None = setting(None, "pictures out", "words around every prompt, which stands at {prompt}, or behind them; empty is none")
    negative_prompt: str = setting("grainy, low quality", "pictures out", "what you do not want to see")
    num_images: int = setting(24, "pictures out", "new designs in all, shared out over the prompts", "pictures", ge=1, le=100_000)
    width: int | None = setting(None, "pictures out", "width of a design; empty means the size that was trained", "px", ge=32, le=4096, multiple_of=8)
    height: int | None = setting(None, "pictures out", "height of a design; empty means the size that was trained", "px", ge=32, le=4096, multiple_of=8)
    num_inference_steps: int = setting(30, "pictures out", "denoising steps of base and refiner together", "steps", ge=2, le=200)
    guidance_scale: float = setting(5.0, "pictures out", "how strictly the prompt is followed", ge=1, le=30)
    guidance_until: float = setting(1.0, "pictures out", "share of the steps that follow the prompt strictly; 0.8 saves a tenth of the work", gt=0, le=1)
    start_picture: str | None = setting(None, "pictures out", "a sketch or photograph that every design begins with; empty begins with noise")
    start_strength: float = setting(0.6, "pictures out", "how much may change of the picture that is begun with", gt=0, le=1)
    repeat: Literal["none", "straight", "half-drop", "brick", "band"] = setting("none", "pictures out", "how tiles of the design join without a seam: straight, half-drop (columns drop by half), brick (rows shift by half), band (along its length only, an edging); none is a single picture")
    repeat_from: float = setting(0.0, "pictures out", "share of the steps after which the edges of a repeat are joined; 0 joins them from the first, 0.5 keeps the composition of a single picture", ge=0, le=0.9)
    scheduler: Literal["dpmpp_2m", "dpmpp_2m_karras", "unipc", "euler", "ddim"] = setting("dpmpp_2m", "pictures out", "sampler; dpmpp_2m is DPM-Solver++ multistep, _karras gives more of its steps to fine detail")
    lora_scale: float = setting(1.0, "pictures out", "strength of your style; 0 is the base model alone", ge=-2, le=3)
    refine: Literal["ensemble", "img2img", "none"] = setting("ensemble", "pictures out", "how the refiner works: in the last part of one schedule, on the finished picture, or not at all")
    refiner_start: float = setting(0.85, "pictures out", "where in the schedule an ensemble refiner takes over; early wipes out fine threads", gt=0, lt=1)
    refine_strength: float = setting(0.3, "pictures out", "how much an img2img refiner may change", gt=0, le=1)
    print_width_cm: float | None = setting(None, "pictures out", "width of one design in print; empty means its pixels at dpi", "cm", ge=0.1, le=500)
    dpi: float = setting(300.0, "pictures out", "resolution in print, written into every file", "px/inch", ge=30, le=2400)
    image_format: Literal["png", "jpg"] = setting("png", "pictures out", "file format of the new designs")
    favourites_of: str | None = setting(None, "pictures out", "a sheet of this run: draw its starred designs again, with the settings that stand, such as another refine; empty means prompts")
    vary: str | None = setting(None, "pictures out", "a design to vary, such as sheet/3: its prompt with other seeds, num_images times; empty means prompts")
    vary_by: Literal["seed", "picture"] = setting("seed", "pictures out", "what a variation shares with its design: the prompt only, or also the picture, of which start_strength may change")
    shard: str | None = setting(None, "pictures out", "which part of the sheet this process makes, such as 2/4 for the second of four; empty makes all", pattern=r"^[1-9]\d{0,4}/[1-9]\d{0,4}$")

    preview: Literal["auto", "none", "plain", "mirrored"] = setting("auto", "finishing", "each design laid 3 by 3 as on cloth; auto where it repeats, mirrored turns every other tile over")
    mask: bool = setting(False, "finishing", "also a mask of the lace, and the lace cut out with a clear ground")
    outline: bool = setting(False, "finishing", "also the outline of the lace as an SVG drawing in centimetres; needs the package vtracer")
    lace: Literal["auto", "light", "dark"] = setting("auto", "finishing", "whether the thread is lighter or darker than its ground")
    threshold: Literal["auto", "otsu", "local"] = setting("auto", "finishing", "how thread and ground are told apart: one tone for the whole picture, or with the light nearby")
    upscale: float = setting(1.0, "finishing", "also a copy with so many times as many pixels a side, which keeps the seam; 1 is off", "times", ge=1, le=8)
    zip: bool = setting(True, "finishing", "also all of the finished sheet in one zip")

    num_evaluated: int = setting(30, "evidence", "pictures that the base model and your LoRA each draw at the same seeds, to be measured; below 13 what became of plain prompts cannot be told", "pictures", ge=4, le=1000)
    all_checkpoints: bool = setting(False, "evidence", "also draw with every checkpoint that is kept, to see which of them copy and to choose between two of them blind")
    plain_prompts: tuple[str, ...] = setting((), "evidence", "prompts without the concept token, to see what the LoRA does to them; empty takes a few everyday ones")
    unseen_dir: str | None = setting(None, "evidence", "a folder of photographs in your style that were never learnt, beside those held out of the training")
    style_model: str = setting("facebook/dinov2-base", "evidence", "model that tells how alike two pictures look: a folder, a Hugging Face name, or none for edges, texture and colour alone")
    text_model: str = setting("openai/clip-vit-large-patch14", "evidence", "model that tells how well a picture shows its prompt: a folder, a Hugging Face name, or none")
    inception_model: str | None = setting(None, "evidence", "a classifier of photographs, a folder or a Hugging Face name, for an Inception Score, which says little about lace; empty is off")
    # fmt: on
    # Names given as explicit overrides (form, -p, --rank): only these beat the demo preset. See presets.settle.
    _overridden: frozenset[str] = PrivateAttr(default=frozenset())
    # Names whose values a preset gave and nobody changed since: settings that are settled again still tell.
    _by_preset: frozenset[str] = PrivateAttr(default=frozenset())

    @field_validator("image_types")
    @classmethod
    def _with_dots(cls, types: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f".{kind.strip().lstrip('.')}".casefold() for kind in types)

    @field_validator("caption_url", "backend_url")
    @classmethod
    def _without_secrets(cls, url: str | None) -> str | None:
        """It is kept in the run's config.yaml; a key in it would be too."""
        if url and any(sign in url for sign in "@?#"):
            raise ValueError("an address without user name, question mark or #")
        return url

    @field_validator(*BY_LINE)
    @classmethod
    def _no_empty_lines(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(line.strip() for line in prompts if line.strip())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self.model_dump() == other.model_dump()

    def __hash__(self) -> int:
        return hash(self.digest(Config.model_fields))

    @property
    def given(self) -> frozenset[str]:
        """Names that a file or an override set; all others still have their defaults."""
        return frozenset(self.model_fields_set)

    @property
    def overridden(self) -> frozenset[str]:
        """Names that were set explicitly, in a form, with -p or on the command line."""
        return self._overridden

    @property
    def by_preset(self) -> frozenset[str]:
        """Names whose values a preset gave: nobody asked for them, nor did a plan choose them since."""
        return self._by_preset

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, checked like those of a file; the changed names count as overrides."""
        changed = dict(update or {})
        copy = _checked({name: getattr(self, name) for name in self.given} | changed, "settings", type(self))
        return _marked(copy, self._overridden | frozenset(changed), self._by_preset - frozenset(changed))

    def with_preset(self, values: Mapping[str, Any], by_preset: Iterable[str] = ()) -> Self:
        """A copy with values that do not count as overrides; by_preset: those of them that a preset gives."""
        copy = _checked({name: getattr(self, name) for name in self.given} | dict(values), "preset", type(self))
        return _marked(copy, self._overridden, (self._by_preset - frozenset(values)) | frozenset(by_preset))

    def lora_alpha(self) -> int:
        """alpha, or rank where alpha is left empty, so that the adapter's strength is 1."""
        return self.rank if self.alpha is None else self.alpha

    def digest(self, names: Iterable[str]) -> str:
        """sha256 (hex) of the named settings; equal settings give equal digests on every machine."""
        values = {name: getattr(self, name) for name in sorted(names)}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load(*paths: str | Path, **overrides: Any) -> Config:
    """Read settings: defaults, then each file in order (later wins), then the overrides (None means not given).

    Raises SettingsError for a file that cannot be read, an unknown name (with the nearest one) or a value out of bounds.
    """
    values: dict[str, Any] = {}
    for path in paths:
        values |= _read(Path(path))
    given = {name: value for name, value in overrides.items() if value is not None}
    _checked(values, ", ".join(str(path) for path in paths) or "settings", Config)
    config = _checked(values | given, "settings", Config)
    return _marked(config, frozenset(given))


def found(drive_mount_path: str | None = None) -> list[Path]:
    """The settings file to read without being told one, or [] where there is none.

    A command looks into its own folder. A notebook, which says where Drive is mounted, looks there too, into
    MyDrive/lace_lora, and last into the project's folder above, when it lies in a checkout.
    """
    places = [Path("config.yaml")]
    if drive_mount_path is not None:
        places.append(Path(drive_mount_path) / DRIVE_FILE)
        if Path("../lace_lora/config.py").is_file():
            places.append(Path("../config.yaml"))
    return [path for path in places if path.is_file()][:1]


def fields_of(group: str) -> list[tuple[str, FieldInfo]]:
    """The settings of one group, in the order in which they are declared."""
    return [(name, field) for name, field in Config.model_fields.items() if group_of(field) == group]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingsError(f"No settings file {path}. Make one with: lace-lora settings --yaml > {path.name}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not readable as YAML"
        raise SettingsError(f"{path}{where}: {problem}. Each line must read `name: value`.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({error}). Save it as a plain UTF-8 text file.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path} holds a {type(values).__name__}, not settings. Each line must read `name: value`.")
    for name in values:
        if name not in Config.model_fields:
            raise SettingsError(f"{path}: no setting called {name!r}{nearest(str(name), Config.model_fields)}")
    return values


def _checked(values: Mapping[str, Any], where: str, kind: type[C]) -> C:
    """Validate; every problem of the first kind found becomes one sentence a setting."""
    for name in values:
        if name not in kind.model_fields:
            raise SettingsError(f"{where}: no setting called {name!r}{nearest(name, kind.model_fields)}")
    try:
        return kind.model_validate({name: _converted(name, value) for name, value in values.items()})
    except ValidationError as error:
        wrong = {str(problem["loc"][0]): problem for problem in reversed(error.errors())}
        raise SettingsError("\n".join(_sentence(name, values[name]) for name in values if name in wrong)) from error


def _marked(config: C, overridden: frozenset[str], by_preset: frozenset[str] = frozenset()) -> C:
    config._overridden = overridden  # type: ignore[misc]  # pydantic freezes the fields, not its private attributes
    config._by_preset = by_preset  # type: ignore[misc]
    return config


def _converted(name: str, value: Any) -> Any:
    """Bring text to the kind that its field has: YAML 1.1 reads 1e-4 as the text '1e-4', and a form gives lines."""
    default = Config.model_fields[name].default
    if isinstance(default, tuple) and isinstance(value, str):
        parts = value.splitlines() if name in BY_LINE else value.split(",")
        return tuple(part for part in parts if part.strip())
    if isinstance(value, str) and value.strip().casefold() in ("", "none") and default is None:
        return None
    if name == "mixed_precision" and value is False:  # YAML 1.1 reads the word no as False
        return "no"
    if isinstance(value, bool) and not isinstance(default, bool):
        return str(value)  # pydantic would take true for the number 1
    return value


def _sentence(name: str, value: Any) -> str:
    """What is wrong with a value, its bounds, and the nearest value that would do."""
    field = Config.model_fields[name]
    if name in KEYS:  # what is wrong with it may be a key, which must not be shown
        return (
            f"{name} must be an address without user name, question mark or #; a key belongs into the environment "
            f"variable {KEYS[name]}, or into Colab's secrets under that name."
        )
    bounds, unit = bounds_of(field), unit_of(field)
    number = _as_number(value)
    shown = f"{value} {unit}".strip() if number is not None else repr(value)
    step = bounds.get("multiple_of")
    inside = number is not None and bounds.get("ge", number) <= number <= bounds.get("le", number)
    if number is not None and step and inside and number % step:
        low, high = int(number // step * step), int(number // step * step + step)
        kind = " (SDXL was trained on multiples of 64: 1024)" if name == "resolution" else ""
        return f"{name} is {shown} but must be a multiple of {step:g}; use {low} or {high}{kind}."
    allowed = bounds_text(field) or _kind_text(field)
    return f"{name} is {shown} but must be {allowed}. {_sentence_case(field.description or '')}."


def _sentence_case(description: str) -> str:
    first = description.split(";")[0]
    return first[:1].upper() + first[1:]


def _kind_text(field: FieldInfo) -> str:
    if isinstance(field.default, bool):
        return "true or false"
    if isinstance(field.default, tuple):
        return "a list of texts"
    named = "a part such as 2/4" if field.default is None else "letters, digits, spaces, dots and hyphens (64 at most)"
    return named if "pattern" in str(field.metadata) else "a text"


def _as_number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
