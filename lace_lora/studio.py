"""What a served door draws with: one adapter, the settings beside it, and the models, which stay loaded.

Everything goes through `inference`, as `lace-lora generate` does: the same sheets in the same run, the same bytes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lace_lora import adapter as adapters
from lace_lora import commissions, inference, order, presets, wanted
from lace_lora.batches import check_size
from lace_lora.commissions import Limits
from lace_lora.config import Config, nearest
from lace_lora.errors import AdapterError
from lace_lora.families import family_of, folders
from lace_lora.families import limits as of_families
from lace_lora.figures import Watch
from lace_lora.file_names import printable, public_name
from lace_lora.job_records import Picture
from lace_lora.machine import Machine
from lace_lora.run_folder import RunFolder
from lace_lora.sampling import Refining
from lace_lora.service import Drawn
from lace_lora.sheet import Generation
from lace_lora.shelf import Shelf
from lace_lora.stopping import Stop

Say = Callable[[str], None]


@dataclass
class Studio:
    """One adapter and all that draws with it.

    config  settled, for the family of the adapter; what a request leaves out is as it says
    shelf   where models stay from one request to the next, as far as there is room
    """

    config: Config
    limits: Limits
    shelf: Shelf
    say: Say
    _seen: tuple[tuple[int, int], dict[str, Any], adapters.Adapter] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, named: str | None, config: Config, limits: Limits, say: Say = print) -> "Studio":
        """The studio of a run or an adapter that a person names; without a name that of the settings.

        named  a run in lora_output_dir, a run's folder, or a folder or file with an adapter; its sheets are written
               beside it

        Raises AdapterError where there is no adapter, or none that can be used, and SettingsError for what a person
        set and its family cannot do.
        """
        machine = Machine.here(config.drive_mount_path, config.lora_output_dir)
        settled = presets.settle(config, machine)
        if settled.banner:
            say(settled.banner)
        found = settled.config
        if named:
            root = find(named, found.lora_output_dir).root
            found = found.model_copy(update={"lora_output_dir": str(root.parent), "run_name": root.name})
        found, lines = of_families.within(
            found, adapters.load(RunFolder.of(found).root).facts.family, of_families.DRAWING
        )
        for line in lines:
            say(line)
        shelf = Shelf.of(machine, say)
        studio = cls(found, limits, shelf, say)
        studio.facts()
        say(f"memory    {shelf}")
        return studio

    @property
    def run(self) -> RunFolder:
        """The run whose adapter draws."""
        return RunFolder.of(self.config)

    def facts(self) -> dict[str, Any]:
        """The adapter's facts as a program reads them: nothing of where files lie.

        Raises AdapterError where it is gone or damaged.
        """
        file = self.run.adapter_weights if self.run.adapter_weights.is_file() else self.run.root
        looked = file.stat() if file.is_file() else None
        seen = (looked.st_mtime_ns, looked.st_size) if looked else None
        if self._seen is None or seen is None or self._seen[0] != seen:
            lora = adapters.load(self.run.root)
            self._seen = (seen or (0, 0), _facts(self.run.name, lora), replace(lora, state={}))
        return self._seen[1]

    def check(self, asked: Mapping[str, Any]) -> None:
        """Raises SettingsError for what cannot be drawn: steps of which the base or the refiner gets none, a size."""
        config = commissions.settings_of(asked, self.config, "served")
        self.facts()
        assert self._seen is not None
        lora = self._seen[2]
        of_families.changes(config, lora.facts.family, group=of_families.DRAWING)
        made_for = lora.facts.base_model
        model = made_for if folders.is_here(made_for) else self.config.pretrained_model
        if not folders.is_here(model) or family_of(model) != lora.facts.family:
            return
        check_size(model, *wanted.size_of(config, lora, model))
        if config.refine != "none":
            order.refiner_begins(config, model, Refining(config.refine, config.refiner_start, config.refine_strength))

    def draw(
        self, asked: Mapping[str, Any], sheet: str, stop: Stop, watch: Watch, show: Callable[[Picture], None]
    ) -> Drawn:
        """Draw a request as `service.Draw` says. Raises what `inference.run` raises."""
        config, notes = commissions.settings_of(asked, self.config, sheet), list[str]()

        def say(line: str) -> None:
            notes.extend([line[2:]] if line.startswith("! ") else [])
            self.say(line)

        designs = inference.run(
            config, say=say, show=lambda one: show(picture_of(one)), shelf=self.shelf, stop=stop, watch=watch
        )
        # Where Drive does not take what is finished, the designs lie here and can be fetched all the same.
        return Drawn(tuple(map(picture_of, designs)), designs.folder.root.name, designs.is_complete, tuple(notes))


def picture_of(design: Generation) -> Picture:
    """A finished design as the service keeps it."""
    return Picture(design.index, design.prompt, design.seed, design.width, design.height, design.path)


def find(named: str, lora_output_dir: str | Path) -> RunFolder:
    """The folder that a person names and that holds an adapter: a run by its name or path, or a path to an adapter.

    Raises AdapterError with the nearest name of a run.
    """
    folder = Path(lora_output_dir).expanduser()
    path = Path(named).expanduser()
    places = [folder / named, path] if named not in (".", "..") else [path]
    for place in [*places, path.parent, path.parent.parent]:
        run = RunFolder(place.absolute())
        lies_here = (run.adapter_weights, run.root / run.adapter_weights.name)
        is_meant = place in places or path.is_file() and path in lies_here or path == run.adapter
        if is_meant and any(file.is_file() for file in lies_here):
            return run
    weights = RunFolder(folder).adapter_weights
    runs = sorted(path.parent.parent.name for path in folder.glob(f"*/{weights.relative_to(folder).as_posix()}"))
    there = f"There are: {', '.join(map(printable, runs[:10]))}." if runs else "There is none yet; train first."
    raise AdapterError(
        f"No adapter called {printable(named)!r} in {printable(folder)}{nearest(named, runs)} {there} A path to a "
        "run's folder will do too."
    )


def _facts(name: str, lora: adapters.Adapter) -> dict[str, Any]:
    facts = lora.facts
    return {
        "name": name,
        "base_model": public_name(facts.base_model),
        "concept_token": facts.concept_token,
        "instance_prompt": facts.instance_prompt,
        "class_prompt": facts.class_prompt,
        "rank": facts.rank,
        "alpha": facts.alpha,
        "resolution": facts.resolution,
        "step": facts.step,
        "is_complete": facts.is_complete,
        "sha256": lora.digest,
    }
