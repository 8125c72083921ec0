"""How many planted copies the copy check catches among what was made, and how many new pictures it takes for copies.

python -m benchmarks.copies --photographs FOLDER      writes benchmarks/results/copies-<date>.md
python -m benchmarks.copies --learnt 20               fewer pieces, drawn ones only, printed only

The check is asked as after a training: so many pieces were learnt, and what was made are copies of some of them, of
each kind, and fresh pieces that were not learnt. The demo's lace is the hardest: a fresh piece of it is a learnt one
drawn again, with other threads in the same places. FOLDER holds photographs, each of another piece.
"""

import argparse
import datetime
import io
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL
from PIL import Image, ImageEnhance

from benchmarks import hardware, planted
from benchmarks.check import RESULTS
from benchmarks.planted import Chance, as_jpeg
from lace_lora import copies
from lace_lora.demo.draw import lace
from lace_lora.scores import CopyCheck

LEARNT, MADE = 250, 100  # pieces learnt; copies of each kind, and fresh pieces
DEMO_PX = 384
FRESH = 1_000_000  # seeds of fresh pieces begin there
LEAST_CAUGHT, MOST_FALSE = 0.95, 0.01
NEW = "new"  # the kind of what is no copy

CUT, SHIFT = 0.15, 0.10  # of a side
RELIT = 0.3  # how far brightness and contrast are changed


def cropped(picture: Image.Image, chance: Chance) -> Image.Image:
    """Without 15 % of its width or its height or of both, taken from one side or shared by two."""
    sides = set(chance.permutation(4)[: chance.integers(1, 5)].tolist())
    left, top, right, bottom = (
        (CUT / 2 if (side + 2) % 4 in sides else CUT) if side in sides else 0.0 for side in range(4)
    )
    width, height = picture.size
    return picture.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def cropped_all_round(picture: Image.Image, chance: Chance) -> Image.Image:
    """Without 15 % on every side: half of the picture is left."""
    width, height = picture.size
    return picture.crop((round(CUT * width), round(CUT * height), round((1 - CUT) * width), round((1 - CUT) * height)))


def shifted(picture: Image.Image, chance: Chance) -> Image.Image:
    """By up to 10 % each way; the gap holds the edge's colours, or what is inside mirrored."""
    return planted.shifted(picture, chance, SHIFT)


def relit(picture: Image.Image, chance: Chance) -> Image.Image:
    """Brighter or darker, and of more or less contrast, by up to 30 % each."""
    brightness, contrast = chance.uniform(1 - RELIT, 1 + RELIT, 2)
    return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(brightness)).enhance(contrast)


KINDS: dict[str, Callable[[Image.Image, Chance], Image.Image]] = {
    "re-saved": lambda picture, chance: picture,
    "cropped": cropped,
    "flipped": planted.flipped,
    "turned": planted.turned,
    "shifted": shifted,
    "relit": relit,
    "cropped all round": cropped_all_round,
}


@dataclass(frozen=True)
class Tally:
    """What the check said of one source of pieces.

    seconds  of the processor, for all that was compared
    """

    source: str
    learnt: int
    found: CopyCheck
    seconds: float

    def likeness(self, kind: str) -> list[float]:
        """Of what was made of that kind to its nearest, ascending."""
        return sorted(pair.likeness for pair in self.found.pairs if pair.made.startswith(f"{kind}/"))

    def called(self, kind: str) -> float:
        """Which part of that kind was called a copy, 0..1; of its own original where it has one."""
        of_kind = [pair for pair in self.found.pairs if pair.made.startswith(f"{kind}/")]
        right = [pair for pair in of_kind if pair.is_copy and (kind == NEW or pair.made.endswith(f"/{pair.nearest}"))]
        return len(right) / len(of_kind)


def tally(source: str, learnt: Sequence[Image.Image], fresh: Sequence[Image.Image], made: int = MADE) -> Tally:
    """Ask the check about copies of every kind and about fresh pieces at once; every copy is saved as a JPEG file."""
    began = time.process_time()
    chosen = sorted(set(numpy.linspace(0, len(learnt) - 1, min(made, len(learnt))).round().astype(int).tolist()))
    asked = [(f"{kind}/{number}", planted_copy(learnt[number], kind, number)) for kind in KINDS for number in chosen]
    asked += [(f"{NEW}/{number}", piece) for number, piece in enumerate(fresh)]
    known = [copies.Learnt(str(number), piece, number) for number, piece in enumerate(learnt)]
    return Tally(source, len(learnt), copies.look(asked, known, say=lambda _: None), time.process_time() - began)


def planted_copy(picture: Image.Image, kind: str, number: int) -> Image.Image:
    """The copy of piece `number`: re-saved ones of quality 40 to 90, the others saved well."""
    chance = numpy.random.default_rng((list(KINDS).index(kind), number))
    low, high = (40, 90) if kind == "re-saved" else planted.SAVED_WELL
    data = as_jpeg(KINDS[kind](picture, chance), int(chance.integers(low, high + 1)))
    return Image.open(io.BytesIO(data)).convert("RGB")


def demo_lace(seed: int) -> Image.Image:
    """A piece of the demo's lace."""
    return lace(seed, DEMO_PX)[0]


def halves(photographs: Sequence[Image.Image]) -> Tally:
    """Every second photograph learnt, the others fresh."""
    return tally("photographs, half of them learnt", photographs[::2], photographs[1::2])


def as_page(tallies: Sequence[Tally], command: str) -> str:
    """The numbers with what they were measured on."""
    lines = [
        f"# Copies among what was made, {datetime.date.today().isoformat()}",
        "",
        f"- command: `{command}`",
        f"- targets: {LEAST_CAUGHT:.0%} of the copies of each kind caught, with the right original named; at most "
        f"{MOST_FALSE:.0%} of the new pieces called a copy",
        f"- hardware: {hardware.name('cpu')}, no GPU used",
        f"- software: Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {numpy.__version__}",
    ]
    for one in tallies:
        count, worth = len(one.found.pairs), one.found.calibrated_on
        lines += [
            "",
            f"## {one.source}",
            "",
            f"{one.learnt} learnt, {count} asked about; a copy is what is alike above {one.found.threshold or 0:.4f}, "
            f"measured on what is worth {worth} unseen pieces; {one.seconds:.0f} s of one core.",
            "",
            "| what was made | how many | called a copy | least likeness | median | highest |",
            "|---|---|---|---|---|---|",
            *(_row(one, kind) for kind in (*KINDS, NEW) if one.likeness(kind)),
        ]
    return "\n".join(lines) + "\n"


def _row(one: Tally, kind: str) -> str:
    alike = one.likeness(kind)
    numbers = [f"{value:.4f}" for value in (alike[0], alike[len(alike) // 2], alike[-1])]
    return f"| {kind} | {len(alike)} | {one.called(kind):.1%} | {' | '.join(numbers)} |"


def main() -> None:
    """Measure, print, and keep the page where all of it was measured."""
    words = argparse.ArgumentParser(description="How many copies the copy check catches.")
    words.add_argument("--photographs", type=Path, help="a folder of photographs, each of another piece")
    words.add_argument("--learnt", type=int, default=LEARNT, help="pieces that were learnt, of each source")
    words.add_argument("--made", type=int, default=MADE, help="copies of each kind, and fresh pieces")
    given = words.parse_args()
    real = planted.photographs(given.photographs)
    tallies = [
        tally(name, [draw(seed) for seed in range(given.learnt)],
              [draw(FRESH + seed) for seed in range(given.made)], given.made)
        for name, draw in (("ground with pins set by eye", planted.drawn), ("the demo's lace", demo_lace))
    ]  # fmt: skip
    if real:
        tallies += [tally("photographs, all of them learnt", real, [], given.made), halves(real)]
    asked = " --photographs FOLDER" * bool(real)
    asked += f" --learnt {given.learnt}" * (given.learnt != LEARNT) + f" --made {given.made}" * (given.made != MADE)
    text = as_page(tallies, f"python -m benchmarks.copies{asked}")
    print(text)
    if real and (given.learnt, given.made) == (LEARNT, MADE):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"copies-{datetime.date.today().isoformat()}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
