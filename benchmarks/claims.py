"""How long a large file of patent claims takes, one row in twenty of which is broken, and whether all are named.

python -m benchmarks.claims                  writes benchmarks/results/claims-<date>.md
python -m benchmarks.claims --rows 2000      fewer rows, printed only
"""

import argparse
import csv
import datetime
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import hardware
from benchmarks.check import RESULTS
from lace_lora import claim_folder, claims, demo, patent_recipe
from lace_lora.claims import Fault
from lace_lora.demo import mechanism

ROWS, OF_A_PATENT = 10_000, 8
EVERY = 20  # row is broken
DRAWN, LOST = 120, "drawings/lost.png"  # patents that have a drawing, and the name of one that is not there
# The ways in which a row is broken, each by the kind of fault that must be told of it.
WAYS = (
    "claim_id missing", "duplicate", "claim_text empty", "language", "no claim", "parent missing", "circle",
    "parents differ", "figure_ids", "figure missing", "reference_path", "cpc",
)  # fmt: skip
PARTS = ("lever", "spring", "housing", "shaft", "pawl", "rack", "cover", "pin", "ring", "plate", "valve", "screw")
NATURES = ("round", "flat", "toothed", "hollow", "slotted", "bent", "threaded", "conical", "grooved", "split")
FRENCH = "Dispositif comprenant un boîtier, un levier pivotant dans le boîtier et un ressort qui rappelle le levier."
PLAIN = "This is a very handsome device which everybody in the workshop likes to look at in the evening."

Row = dict[str, str]


def generated(count: int = ROWS, seed: int = 0) -> tuple[list[Row], dict[int, str]]:
    """Rows of claims, eight to a patent in two trees, and the kind of fault of each broken one by its place, from 0.

    One row in EVERY is broken, the ways in turn; no row is broken because another one is.
    """
    chance = random.Random(seed)
    rows = [_row(number, chance) for number in range(count)]
    broken: dict[int, str] = {}
    for number, first in enumerate(range(0, count - count % EVERY, EVERY)):
        way = WAYS[number % len(WAYS)]
        # A parent that loses its name would take its children with it: names go from the last claim of a patent only.
        place = next(one for one in range(first, first + EVERY) if one % OF_A_PATENT == _claim_for(way) and one < count)
        _break(rows, place, way)
        broken[place] = way
    return rows, broken


def written(rows: Sequence[Row], folder: Path) -> Path:
    """The rows as claims.csv in a folder, with the drawings that they refer to."""
    for number in sorted({row["reference_path"] for row in rows if row["reference_path"] not in ("", LOST)}):
        place = int(Path(number).stem)
        kind = mechanism.KINDS[place % len(mechanism.KINDS)]
        mechanism.write(mechanism.Part(kind, 3 + place // len(mechanism.KINDS)), folder / number, side=192)
    path = folder / "claims.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, claims.COLUMNS)
        table.writeheader()
        table.writerows(rows)
    return path


def told(faults: Sequence[Fault]) -> dict[int, str]:
    """Faults by the place of their rows as generated counts them: row 2 of a spreadsheet is the first."""
    return {int(fault.place.split()[-1]) - 2: fault.kind for fault in faults}


# -- inside --


def _row(number: int, chance: random.Random) -> Row:
    patent, claim = divmod(number, OF_A_PATENT)
    own, tree = claim + 1, 1 if claim < OF_A_PATENT // 2 else 1 + OF_A_PATENT // 2
    part, other = chance.sample(PARTS, 2)
    nature, figure = chance.choice(NATURES), chance.randint(1, 6)
    if own == tree:
        text = (
            f"A {part} device, comprising: a {nature} {part} as shown in FIG. {figure}; a {other} that moves the "
            f"{part}; and a plurality of {chance.choice(PARTS)}s fixed to said {other}."
        )
    else:
        text = f"The device of claim {own - 1}, wherein the {part} is {nature} and turns the {other} (FIG. {figure})."
    return {
        "claim_id": str(own), "claim_text": text, "dependent_on": "" if own == tree else str(own - 1),
        "category": f"{part} device" if own == tree else "", "figure_ids": f"{figure}, {figure + 1}A",
        "reference_path": f"drawings/{patent}.png" if patent < DRAWN and claim % 3 == 0 else "",
        "patent_id": f"US{patent:07d}", "title": "", "cpc": "F16H 55/17" if own == tree else "",
    }  # fmt: skip


def _claim_for(way: str) -> int:
    """Which claim of a patent, from 0, is broken in this way."""
    return 5 if way == "circle" else OF_A_PATENT - 1


def _break(rows: list[Row], place: int, way: str) -> None:
    row, text = rows[place], rows[place]["claim_text"]
    changes: dict[str, Callable[[], Row]] = {
        "claim_id missing": lambda: {"claim_id": ""},
        "duplicate": lambda: {"claim_id": "1"},
        "claim_text empty": lambda: {"claim_text": "  "},
        "language": lambda: {"claim_text": FRENCH},
        "no claim": lambda: {"claim_text": PLAIN},
        "parent missing": lambda: {"dependent_on": "77", "claim_text": text.replace("claim 7", "claim 77")},
        "circle": lambda: {"dependent_on": "7", "claim_text": text.replace("claim 5", "claim 7")},
        "parents differ": lambda: {"dependent_on": "3"},
        "figure_ids": lambda: {"figure_ids": "the third"},
        "figure missing": lambda: {"figure_ids": "44"},
        "reference_path": lambda: {"reference_path": LOST},
        "cpc": lambda: {"cpc": "mechanics"},
    }
    row.update(changes[way]())


def main() -> None:
    """Measure, print, and keep the page where all rows were measured."""
    words = argparse.ArgumentParser(description="How long a large file of patent claims takes.")
    words.add_argument("--rows", type=int, default=ROWS)
    given = words.parse_args()
    from lace_lora.families import sdxl

    rows, broken = generated(given.rows)
    with tempfile.TemporaryDirectory() as folder:
        path = written(rows, Path(folder))
        began = time.perf_counter()
        wishes = claim_folder.Wishes(patent_recipe.read())
        tokenizers = sdxl.load_tokenizers(demo.MODEL)
        made = claim_folder.make([path], Path(folder) / "out", wishes, tokenizers=tokenizers, say=lambda line: None)
        seconds = time.perf_counter() - began
    found = told(made.faults)
    counts = Counter(broken.values())
    lines = [
        "# Patent claims",
        "",
        f"{hardware.name('cpu')}. `python -m benchmarks.claims{'' if given.rows == ROWS else f' --rows {given.rows}'}`",
        "",
        f"{len(rows):,} rows, {len(broken)} of them broken in one of {len(counts)} ways, checked, cut to 75 tokens by "
        f"two tokenizers, split, and written with drawings and a tokenised dataset: **{seconds:.1f} s**, one process.",
        "",
        f"Broken rows named with the right reason: {sum(found.get(place) == way for place, way in broken.items())} of "
        f"{len(broken)}; others set aside: {len(found.keys() - broken.keys())}; kept: {len(made.prompts):,}.",
        "",
        "| way | rows |",
        "|---|---|",
        *(f"| {way} | {count} |" for way, count in counts.items()),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.rows == ROWS:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"claims-{datetime.date.today().isoformat()}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
