"""The self-test: a few pictures encoded, five steps, a training killed and gone on with, one design drawn and refined.

At SDXL's true size where there is a GPU, with the weights that are on this machine or else with random ones; without a
GPU with the miniature model that ships. All of it is what every run does, in processes of their own (selftest_work),
of which one is really killed. What was measured is left in selftest.json below cache_dir, where the plan finds it.
"""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lace_lora import checkpoint, estimate, experience, journal, presets, throughput
from lace_lora import config as settings_of
from lace_lora.config import Config
from lace_lora.data_utils import create_annotations
from lace_lora.errors import MachineError
from lace_lora.experience import Figure
from lace_lora.families import folders, random_model
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder

STEPS, KILLED_IN = 5, 3  # the step that is lost; the one before has a checkpoint
PICTURES = 6
LIMIT_SECONDS = 3600.0  # of one process, so that a machine that hangs is told too
REAL, RANDOM, MINIATURE = "real weights", "random weights of SDXL's true size", "the miniature model that ships"

Say = Callable[[str], None]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One thing that was tried. passed: None where it was not tried, because something before it failed."""

    name: str
    passed: bool | None
    told: str
    seconds: float = 0.0

    def __str__(self) -> str:
        word = "not tried" if self.passed is None else "passed" if self.passed else "FAILED"
        return f"  {word:<10}{self.name:<9}{self.told}"


@dataclass(frozen=True)
class Report:
    """What was tried, and what was measured."""

    title: str
    checks: tuple[Check, ...]
    facts: Facts = field(repr=False)
    path: Path = Path()

    @property
    def passed(self) -> bool:
        """Whether all of it did."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """A line for each check."""
        end = f"  Everything passed. {self.path} has what was measured; plans on this machine use it from now on."
        return "\n".join([self.title, *map(str, self.checks), *([end] if self.passed else [])])


@dataclass(frozen=True)
class Worked:
    """What a process left: the facts of its parts, its exit code (negative: the signal that ended it), its last line"""

    facts: Facts
    code: int
    last_line: str = ""


def run(config: Config, *, json_file: Path | None = None, say: Say = print) -> Report:
    """Test this machine and write what was measured to selftest.json below cache_dir, and to `json_file`.

    config  what was given as an option counts, such as quantization; of a file only cache_dir, where all of it is done
            and deleted again, and the names of the models

    Raises SettingsError for settings that contradict each other; whatever fails on the machine is in the report.
    """
    machine = Machine.here(config.drive_mount_path)
    kept = Path(config.cache_dir).expanduser()
    kept.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="selftest-", dir=kept, ignore_cleanup_errors=True) as place:
        trial = Trial.of(config, machine, Path(place), say)
        trial.run()
        report = trial.report(kept / experience.SELFTEST)
    for path in filter(None, (report.path, json_file)):
        checkpoint.write_json(path, report.facts)
    return report


@dataclass
class Trial:
    """A self-test that is going on, in a folder that is deleted in the end."""

    machine: Machine
    place: Path
    model: str  # REAL, RANDOM or MINIATURE
    values: Facts  # settings of all its runs
    say: Say
    checks: list[Check] = field(default_factory=list)
    worked: dict[str, Worked] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, machine: Machine, place: Path, say: Say) -> "Trial":
        """Choose the model, and the settings."""
        asked = {name: getattr(config, name) for name in config.overridden}
        is_small = machine.gpu_name is None and "pretrained_model" not in asked
        names = [asked.get(name, getattr(config, name)) for name in ("pretrained_model", "refiner_model")]
        is_real = "pretrained_model" in asked or all(map(folders.is_here, names))
        model = MINIATURE if is_small or asked.get("preset") == "demo" else REAL if is_real else RANDOM
        if model == MINIATURE:
            asked["preset"] = "demo"
        elif model == REAL:
            asked |= {"pretrained_model": names[0], "refiner_model": names[1]}
        else:
            asked |= {"pretrained_model": str(place / "models/base"), "refiner_model": str(place / "models/refiner")}
        fixed = {
            "images_dir": str(place / "pictures"), "lora_output_dir": str(place / "runs"),
            "cache_dir": str(place / "cache"), "max_train_steps": STEPS, "checkpoint_every": 1,
            "checkpoints_to_keep": STEPS, "validate_every": 0, "validation_fraction": 0.0, "sample_every": 0,
            "prior_loss_weight": 0.0, "num_processes": 1, "num_images": 1, "log_with": "none",
            "early_stopping_patience": 0,
        }  # fmt: skip
        short = {"num_inference_steps": 10}
        return cls(machine, place, model, short | asked | fixed, say)

    def run(self) -> None:
        """All parts in order; what needs one that failed is not tried."""
        began = self._prepare()
        if began and (self.model != RANDOM or self._models()):
            whole = self._work("whole", ["encode", "train"], "encoding pictures, and training 5 steps")
            if self._encoded(whole) and self._trained(whole):
                broken = self._work("killed", ["train"], "training again, and killing it", kill_at=KILLED_IN)
                if self._killed(broken):
                    resumed = self._work("resumed", ["train", "draw"], "going on, and drawing a design")
                    if self._resumed(resumed):
                        self._drawn(resumed)
        tried = {check.name for check in self.checks}
        self.checks += [Check(name, None, "") for name in ("encode", "train", "kill", "resume", "draw")
                        if name not in tried]  # fmt: skip

    def report(self, path: Path) -> Report:
        """What came out; figures count for the plan only where all passed."""
        where = self.machine.gpu_name or f"a CPU with {self.machine.cpu_cores} cores"
        passed = all(check.passed for check in self.checks)
        figures = self._figures() if passed else []
        facts = {
            "passed": passed, "at": _now(), "command": "lace-lora selftest", "model": self.model,
            "hardware": asdict(self.machine) | {"system": platform.platform()}, "versions": journal.versions(),
            "checks": [asdict(check) for check in self.checks],
            "processes": {name: worked.facts | {"exit_code": worked.code} for name, worked in self.worked.items()},
            "losses": {name: self._losses(name) for name in ("whole", "killed")},
            "figures": experience.as_rows(figures), "speeds": self._speeds(figures),
        }  # fmt: skip
        return Report(f"Self-test on {where}, with {self.model}", tuple(self.checks), _plain(facts), path)

    # -- the parts --

    def _prepare(self) -> bool:
        """Draw the pictures, at the size that will be learnt, and write their captions."""
        from lace_lora.demo.draw import write_lace_folder

        try:
            settled = presets.settle(self._config("whole"), self.machine)
            side = int(estimate.plan(settled, self.machine, PICTURES).config.resolution)
            drawn = write_lace_folder(Path(self.values["images_dir"]), PICTURES, side=side * 5 // 4)
            prompt = settled.config.instance_prompt
            captions: dict[str | Path, str] = {path: f"{prompt} {caption}" for path, caption in drawn}
            create_annotations(self.values["images_dir"], prompt, {".jpg"}, captions, say=lambda _: None)
            if self.model == RANDOM:
                random_model.check_room(self.place)
        except MachineError as error:
            return self._add("prepare", False, str(error))
        return True

    def _models(self) -> bool:
        worked = self._work("models", ["models"], "drawing random weights of SDXL's true size; a few minutes")
        problem, facts = _problem(worked, "models"), worked.facts.get("models", {})
        return self._add("models", not problem, problem or f"{facts['gb']:.1f} GB of random weights", facts)

    def _encoded(self, worked: Worked) -> bool:
        problem, facts = _problem(worked, "encode"), worked.facts.get("encode", {})
        if not problem and not facts["is_finite"]:
            problem = "some encoded pictures or captions hold numbers that are not finite"
        return self._add("encode", not problem, problem or f"{facts['pictures']} pictures and their captions", facts)

    def _trained(self, worked: Worked) -> bool:
        problem, facts, losses = _problem(worked, "train"), worked.facts.get("train", {}), self._losses("whole")
        if not problem and not (facts["is_finite"] and all(map(math.isfinite, losses))):
            problem = "numbers that are not finite came out; --mixed-precision bf16 or no would tell more"
        if not problem and len(losses) != STEPS:
            problem = f"{len(losses)} of {STEPS} steps were made"
        if not problem and not facts["learnt_norm"]:
            problem = "nothing was learnt: every number of the LoRA is zero"
        told = f"{STEPS} steps, {facts.get('seconds_a_step') or 0:.2f} s each, losses finite"
        if facts.get("peak_vram_gb"):
            planned = worked.facts["encode"]["planned_gb"]
            told += f"; {facts['peak_vram_gb']:.1f} GB of GPU memory, {planned:.1f} were planned"
        return self._add("train", not problem, problem or told, facts)

    def _killed(self, worked: Worked) -> bool:
        is_cut = worked.code != 0 and "train" not in worked.facts and len(self._losses("killed")) == KILLED_IN
        told = f"a training was killed in step {KILLED_IN}"
        wrong = f"the training that was to be killed in step {KILLED_IN} ended otherwise: {_end(worked, 'train')}"
        return self._add("kill", is_cut, told if is_cut else wrong)

    def _resumed(self, worked: Worked) -> bool:
        problem, facts = _problem(worked, "train"), worked.facts.get("train", {})
        mine, theirs = self._losses("whole"), self._losses("killed")
        if not problem and not facts["resumed"].endswith(f"step {KILLED_IN - 1}"):
            problem = f"it did not go on after step {KILLED_IN - 1}"
        if not problem and mine != theirs:
            step = next((at for at, pair in enumerate(zip(mine, theirs, strict=False), 1) if pair[0] != pair[1]),
                        min(len(mine), len(theirs)) + 1)  # fmt: skip
            why = "two equal trainings differ on this machine" if step < KILLED_IN else "the resumed training differs"
            problem = f"{why}: losses are {mine} unbroken and {theirs} after the kill, from step {step} on"
        told = f"went on after step {KILLED_IN - 1}; all {STEPS} losses are those of the unbroken training, bit for bit"
        return self._add("resume", not problem, problem or told, facts)

    def _drawn(self, worked: Worked) -> bool:
        problem, facts = _problem(worked, "draw"), worked.facts.get("draw", {})
        pictures = facts.get("pictures", [])
        flat = [one["name"] for one in pictures if not one["range"]]
        if not problem and (facts["designs"] != 1 or not pictures):
            problem = "no design came out"
        if not problem and flat:
            problem = f"{' and '.join(flat)} is one flat colour"
        told = (
            f"one design of {pictures[0]['width']} × {pictures[0]['height']} px, as drawn and refined"
            if pictures
            else ""
        )
        return self._add("draw", not problem, problem or told, facts)

    # -- inside --

    def _config(self, run: str) -> Config:
        return settings_of.load(**self.values, run_name=run)

    def _work(self, name: str, parts: Sequence[str], doing: str, kill_at: int | None = None) -> Worked:
        """Some parts in a process of their own; the resumed run is the one that was killed."""
        self.say(f"self-test  {doing} …")
        run = "whole" if name in ("models", "whole") else "killed"
        job = {"parts": list(parts), "values": self.values | {"run_name": run}, "kill_at": kill_at,
               "result": str(self.place / f"{name}.json")}  # fmt: skip
        self.worked[name] = work(job, self.place / f"{name}.job.json")
        return self.worked[name]

    def _losses(self, run: str) -> list[float]:
        log = RunFolder(Path(self.values["lora_output_dir"]) / run).log
        rows = checkpoint.read_json_lines(log) if log.is_file() else []
        return [row["loss"] for row in rows if "loss" in row]

    def _add(self, name: str, passed: bool, told: str, facts: Mapping[str, Any] | None = None) -> bool:
        self.checks.append(Check(name, passed, told, round((facts or {}).get("seconds", 0.0), 2)))
        return passed

    def _figures(self) -> list[Figure]:
        """What its runs left for the plan, as figures of a self-test."""
        found = experience.read(self.values["cache_dir"]).figures
        return [Figure(**{**vars(one), "by": experience.TEST}) for one in found]

    def _speeds(self, figures: Sequence[Figure]) -> Facts:
        """A row for the table of throughput, where a GPU was tried at the true size in half precision."""
        by_stage = {one.stage: one for one in figures if one.model == "sdxl" and one.quantization == "none"}
        train, decode = by_stage.get("train"), by_stage.get("decode")
        if self.machine.gpu_name is None or train is None or decode is None or train.work.is_fp32:
            return {}
        table, kind = throughput.of(self.machine), throughput.kind(self.machine)
        source = (
            f"measured {_now()[:10]}, {self.machine.gpu_name}, torch {journal.versions()['torch']}, lace-lora selftest"
        )
        return {kind: {
            "name": kind, "half_tflops": train.work.tflop / train.seconds, "source": source,
            "full_tflops": decode.work.tflop / decode.seconds, "gb_s": table.gb_s if table else 500.0,
            "seconds_a_layer": throughput.table()["gpu_seconds_a_layer"], "queues": True,
        }}  # fmt: skip


def work(job: Facts, path: Path) -> Worked:
    """Do a job of selftest_work in a process of its own. Nothing is fetched, and CUDA's sums have a fixed order."""
    path.write_text(json.dumps(job), encoding="utf-8")
    line = [sys.executable, "-m", "lace_lora.selftest_work", str(path)]
    fixed = {"HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONIOENCODING": "utf-8"}
    log = path.with_suffix(".log")
    with log.open("w", encoding="utf-8") as output:
        try:
            code = subprocess.run(
                line, env=os.environ | fixed, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return Worked({}, 1, f"it did not end within {LIMIT_SECONDS / 60:.0f} minutes")
    said = [row for row in log.read_text(encoding="utf-8", errors="replace").splitlines() if row.strip()]
    facts: Facts = {}
    with suppress(OSError, ValueError):
        facts = json.loads(Path(job["result"]).read_text(encoding="utf-8"))
    return Worked(facts, code, said[-1] if said else "")


def _problem(worked: Worked, part: str) -> str:
    """Why a part failed; "" where it did not."""
    return "" if part in worked.facts and "error" not in worked.facts[part] else _end(worked, part)


def _end(worked: Worked, part: str) -> str:
    """How a part ended that did not end as it should."""
    told = worked.facts.get(part, {}).get("error")
    return told or f"its process ended with code {worked.code}; it said last: {worked.last_line or 'nothing'}"


def _plain(value: Any) -> Any:
    """The same with numbers that JSON has: what is not finite as text."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
