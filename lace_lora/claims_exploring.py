"""Patent claims in a notebook: read into a folder, and looked at: faults, subsets, lengths, splits, drawings.

All of it describes; the files are only read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lace_lora import caption_lint, charts, claims_command, counting, pictures
from lace_lora import config as declared
from lace_lora.charts import Chart
from lace_lora.claim_folder import DRAWINGS, SETTINGS, Made, subsets_of
from lace_lora.claim_splits import SPLITS
from lace_lora.config import Config
from lace_lora.exploring import Sheet
from lace_lora.file_names import printable

TILE_PX, COLUMNS, TILES, NAMED = 96, 8, 16, 12


@dataclass(frozen=True)
class ClaimsFound:
    """Claims that were read, with charts and lines about them; `settings` hands what was made of them to every verb."""

    made: Made
    given: Config = field(repr=False)

    def __repr__(self) -> str:
        return repr(self.made)

    @property
    def settings(self) -> Config:
        """The settings of the notebook with the drawings, prompts and words of these claims."""
        chosen = {name: getattr(self.given, name) for name in self.given.overridden}
        text = (self.made.folder / SETTINGS).read_text(encoding="utf-8")
        # As overrides: a preset demo that was asked for would beat a file's drawings with its own.
        return declared.load(*declared.found(), **(yaml.safe_load(text) | chosen))

    def faults(self) -> str:
        """How many rows were set aside for what, and the first of them with their reasons."""
        found = self.made.faults
        if not found:
            return f"Nothing is wrong with any of {counting.counted(self.made.rows, 'row')}."
        kinds = Counter(fault.kind for fault in found)
        lines = [f"{count:>5}  {kind}" for kind, count in kinds.most_common()]
        more = [f"and {len(found) - NAMED} more, all in faults.csv"] if len(found) > NAMED else []
        return "\n".join([*lines, "", *map(str, found[:NAMED]), *more])

    def subsets(self) -> Chart:
        """How many claims each subset has, and how many claims a patent or a tree has."""
        sizes = Counter(claim.patent_id or f"tree {claim.root[1]}" for claim in self._claims)
        return charts.beside(
            charts.bars(subsets_of(self.made.prompts), "claims of each subset"),
            charts.histogram([float(size) for size in sizes.values()], "claims of a patent or tree", what="patent"),
        )

    def lengths(self) -> Chart:
        """How long claims are in words, and their prompts in tokens, of which so many are read."""
        words = [float(len(claim.text.split())) for claim in self._claims]
        tokens = [float(one.tokens) for one in self.made.prompts]
        budget = self.made.config["recipe"]["budget"]
        return charts.beside(
            charts.histogram(words, "length of claims", "words", what="claim"),
            charts.histogram(tokens, f"length of prompts; {budget} fit", "tokens", what="prompt"),
        )

    def splits(self) -> Chart:
        """Claims and patents (or trees) on each side; no patent stands on two."""
        sides = self.made.splits
        patents = {claim.patent_id or claim.root[1]: sides[claim.key] for claim in self._claims}
        claims, groups = Counter(sides.values()), Counter(patents.values())
        return charts.beside(
            charts.bars({name: claims[name] for name in SPLITS}, "claims"),
            charts.bars({name: groups[name] for name in SPLITS}, "patents or trees"),
        )

    def words(self) -> Chart:
        """What main features name most often, and in which languages claims are."""
        counts = Counter(
            word for one in self.made.prompts
            for word in {*caption_lint.words_of(one.main_feature, "")} - caption_lint.STOP_WORDS
        )  # fmt: skip
        frequent = dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))
        languages = dict(Counter(claim.language for claim in self._claims).most_common())
        return charts.beside(charts.bars(frequent, "claims with the word"), charts.bars(languages, "languages"))

    def prompts(self, count: int = 5) -> str:
        """Some claims, evenly spread, each with the prompt that it gave and what did not fit."""
        every = max(1, len(self.made.prompts) // max(1, count))
        lines = []
        for one in self.made.prompts[::every][:count]:
            lost = f"\n   did not fit: {one.lost}" if one.lost else ""
            name = " ".join(part for part in one.claim.key if part)
            lines.append(f"{name}: {one.claim.text}\n → {one.text}{lost}")
        return "\n\n".join(lines)

    def drawings(self, tile_px: int = TILE_PX) -> Sheet:
        """Drawings of claims, evenly spread over all, and those that are no line drawings by name and reason."""
        names = list(dict.fromkeys(self.made.drawings.values()))
        wrong = [f"{printable(name)}: {'; '.join(why)}" for name, why in self.made.not_drawings.items()]
        told = [
            f"{counting.counted(len(names), 'line drawing')}; {len(wrong)} references that are none",
            *wrong[:NAMED],
        ]
        if not names:
            return Sheet("\n".join(told), None)
        shown = names[:: -(-len(names) // TILES)]
        tiles = [pictures.thumbnail(self.made.folder / DRAWINGS / name, tile_px) for name in shown]
        labels = [Path(name).stem for name in shown]
        return Sheet("\n".join(told), pictures.contact_sheet(tiles, COLUMNS, tile_px, labels))

    @property
    def _claims(self) -> Sequence[Any]:
        return [one.claim for one in self.made.prompts]


def read(claims_file: str | Path | None, folder: str | Path | None, settings: Config, **wishes: Any) -> ClaimsFound:
    """Read claims into a folder, as the command `claims` does.

    claims_file  None for the example that ships
    folder       None for `claims` in lora_output_dir
    settings     of the notebook; what was given there beats what the folder says
    wishes       as claims_command.wished takes them

    Raises as claim_folder.make does.
    """
    from lace_lora import machine, presets

    settled = presets.settle(settings, machine.Machine.here(settings.drive_mount_path)).config
    place = Path(folder) if folder is not None else Path(settled.lora_output_dir) / "claims"
    files = [] if claims_file is None else [claims_file]
    made = claims_command.run(files, place, claims_command.wished(**wishes), settings)
    return ClaimsFound(made, settings)
