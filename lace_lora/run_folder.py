"""The name of every file of a run; no other room spells a path.

<lora_output_dir>/<run_name>/
    config.yaml  run.json  log.jsonl  annotations.txt  held_out.txt
    checkpoints/step-000250/  best.json
    samples/step-000250/sample_00.png  samples/film_strip.png  tensorboard/
    class_images/
    references/0123456789ab-rose.png …
    adapter/pytorch_lora_weights.safetensors  adapter/<run_name>.safetensors  adapter/adapter.json
    adapter/concept_token.safetensors  elsewhere.json
    images/<sheet_name>/refined_output_000.png  base_result_000.png  images.jsonl  contact_sheet.png  request.json
                        refined_output_000_repeat.png … (see page.BESIDE)  finishing.json  index.html  <sheet_name>.zip
                        starred.json  elsewhere.json
    evaluation/scores.json  pairs.png  nearest.jpg  subset_<name>.png  blind.jsonl  ratings.csv  base_versus_lora.png
    report.html
    package/README.md  config.yaml  comfyui_workflow.json  samples/ …  <run_name>_package.zip
    served/0123456789abcdef.json
    evaluation/grid/grid.png  grid.json  cells/  measured/  measured_plain/: the grids that an evaluation measures
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lace_lora import places
from lace_lora.checkpoint import PARTIAL
from lace_lora.config import Config
from lace_lora.sheet_folder import GridFolder as GridFolder
from lace_lora.sheet_folder import Shard as Shard
from lace_lora.sheet_folder import SheetFolder as SheetFolder
from lace_lora.sheet_folder import digest_of as digest_of


@dataclass(frozen=True)
class RunFolder:
    """One run: everything that training, generation and evaluation write for it."""

    root: Path

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """The folder of the run that the settings name."""
        return cls(Path(config.lora_output_dir).expanduser() / config.run_name)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.root.name

    @property
    def config(self) -> Path:
        """The settings that ran, complete."""
        return self.root / "config.yaml"

    @property
    def record(self) -> Path:
        """id, state, step, total, ETA, peak memory, versions."""
        return self.root / "run.json"

    @property
    def elsewhere(self) -> Path:
        """The training that a server elsewhere does for this run: which, where, and its number there."""
        return self.root / "elsewhere.json"

    @property
    def log(self) -> Path:
        """One line a step."""
        return self.root / "log.jsonl"

    @property
    def annotations(self) -> Path:
        """The captions that were learnt from."""
        return self.root / "annotations.txt"

    @property
    def held_out(self) -> Path:
        """The pictures that were held out of the training, a path a line; no file where there were none."""
        return self.root / "held_out.txt"

    @property
    def check(self) -> Path:
        """What the check of the photographs found: check.json and problems.png."""
        return self.root / "check"

    @property
    def checkpoints(self) -> Path:
        """Parent of the checkpoints."""
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after an update, such as checkpoints/step-000250."""
        return self.checkpoints / f"step-{step:06d}"

    @property
    def best(self) -> Path:
        """Which checkpoint had the lowest validation loss: its step and that loss."""
        return self.root / "best.json"

    @property
    def samples(self) -> Path:
        """Parent of the sample pictures drawn while training."""
        return self.root / "samples"

    def sample(self, step: int, number: int) -> Path:
        """One sample picture, such as samples/step-000250/sample_00.png."""
        return self.samples / f"step-{step:06d}" / f"sample_{number:02d}.png"

    @property
    def film_strip(self) -> Path:
        """All sample pictures so far, one row a step."""
        return self.samples / "film_strip.png"

    @property
    def tensorboard(self) -> Path:
        """Event files of TensorBoard."""
        return self.root / "tensorboard"

    @property
    def class_images(self) -> Path:
        """Pictures that the base model drew for prior preservation."""
        return self.root / "class_images"

    @property
    def adapter(self) -> Path:
        """Parent of the adapter's files."""
        return self.root / "adapter"

    @property
    def adapter_weights(self) -> Path:
        """The adapter in diffusers' names, for load_lora_weights."""
        return self.adapter / "pytorch_lora_weights.safetensors"

    @property
    def adapter_for_tools(self) -> Path:
        """The adapter in the names that ComfyUI and A1111 read."""
        return self.adapter / f"{self.name}.safetensors"

    @property
    def concept_token(self) -> Path:
        """The learnt rows of the concept token, in the names that A1111 and ComfyUI read (clip_l, clip_g)."""
        return self.adapter / "concept_token.safetensors"

    @property
    def adapter_card(self) -> Path:
        """Facts of the adapter: family, base model, rank, alpha, concept token, digests, versions."""
        return self.adapter / "adapter.json"

    @property
    def references(self) -> Path:
        """Pictures that designs are to be like, each named by its content."""
        return self.root / "references"

    @property
    def sheets(self) -> Path:
        """Parent of the sheets of designs."""
        return self.root / "images"

    def sheet(self, name: str) -> SheetFolder:
        """The sheet of that name."""
        return SheetFolder(self.sheets / name)

    def free_sheet(
        self, name: str, digest: str, drawn_in: Callable[[SheetFolder], SheetFolder] | None = None
    ) -> SheetFolder:
        """The sheet that was asked for with this digest before, else the next free name: sheet, sheet-2, sheet-3, …

        drawn_in  the folder in which a sheet is drawn, where that is another one: it may hold what is not here yet
        """
        number = 1
        while True:
            sheet = self.sheet(name if number == 1 else f"{name}-{number}")
            working = sheet if drawn_in is None else drawn_in(sheet)
            if _is_free(sheet, digest) and (sheet.request.is_file() or _is_free(working, digest)):
                return sheet
            number += 1

    @property
    def evaluation(self) -> Path:
        """Parent of what evaluation writes."""
        return self.root / "evaluation"

    @property
    def scores(self) -> Path:
        """Scores and what they mean."""
        return self.evaluation / "scores.json"

    @property
    def pairs(self) -> Path:
        """What an evaluation measured, base model above LoRA: prompts with the token on the left, plain ones right."""
        return self.evaluation / "pairs.png"

    def nearest(self, number: int) -> Path:
        """A page of what was made beside the photograph it is most like, from 1 on: nearest.jpg, nearest-2.jpg, …"""
        return self.evaluation / ("nearest.jpg" if number == 1 else f"nearest-{number}.jpg")

    def subset(self, name: str) -> Path:
        """The designs of one subset of the prompts on a page; `name` must be safe as part of a file's name."""
        return self.evaluation / f"subset_{name}.png"

    @property
    def blind_answers(self) -> Path:
        """Answers of blind comparisons, one a line, in the order in which they were given."""
        return self.evaluation / "blind.jsonl"

    @property
    def ratings(self) -> Path:
        """What experts said of single designs: clarity and compliance, one row a design and a person."""
        return self.evaluation / "ratings.csv"

    @property
    def strip(self) -> Path:
        """Base model above LoRA at the same seeds."""
        return self.evaluation / "base_versus_lora.png"

    def other_strip(self, number: int) -> Path:
        """The strip of other prompts or settings, from 1 on: base_versus_lora.png, base_versus_lora-2.png, …"""
        return self.strip if number == 1 else self.strip.with_name(f"{self.strip.stem}-{number}.png")

    def grids(self) -> list[GridFolder]:
        """The grids that there are, in no order."""
        return [GridFolder(path.parent) for path in self.evaluation.glob("*/grid.json")]

    def free_grid(self, digest: str, name: str = "grid") -> GridFolder:
        """The grid that was asked for with this digest before, else the next free name: grid, grid-2, grid-3, …"""
        number = 1
        while True:
            grid = GridFolder(self.evaluation / (name if number == 1 else f"{name}-{number}"))
            if _is_free(grid, digest):
                return grid
            number += 1

    @property
    def report(self) -> Path:
        """One page about the run."""
        return self.root / "report.html"

    @property
    def package(self) -> Path:
        """All that is given away of the run: the LoRA in both forms, its card, samples, workflow."""
        return self.root / "package"

    @property
    def package_zip(self) -> Path:
        """The same as one file."""
        return self.root / f"{self.name}_package.zip"

    @property
    def served(self) -> Path:
        """Parent of what was asked of the served doors: one .json a request, whose designs are a sheet of their own."""
        return self.root / "served"

    def served_job(self, id: str) -> Path:
        """What is kept of one such request; `id` is one that the door made up."""
        return self.served / f"{id}.json"

    def create(self) -> "RunFolder":
        """Make the folder; RunError says what to do where that is not allowed."""
        places.make(self.root, "The run folder", "Mount Drive first, or choose another folder with lora_output_dir.")
        return self


def _is_free(folder: SheetFolder | GridFolder, digest: str) -> bool:
    """Whether it is what was asked for with this digest before, or nothing but what a process was cut off writing."""
    is_empty = not folder.root.exists() or all(path.suffix == PARTIAL for path in folder.root.iterdir())
    return is_empty or digest_of(folder) == digest
