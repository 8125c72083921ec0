"""How many planted copies the check finds, and how many false pairs it makes: a hundred pieces, a copy of each.

python -m benchmarks.planted --photographs FOLDER     writes benchmarks/results/planted-<date>.md
python -m benchmarks.planted --count 20               fewer pieces, drawn ones only, printed only

Photographs of different pieces come first, drawn lace fills up to the count. For each kind of copy the folder that
check_images gets holds every piece and one copy of it, made as chance has it; that is done for several seeds, each of
which makes the same copies in every run. No file's name tells which belong together.
"""

import argparse
import datetime
import io
import itertools
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import PIL
from PIL import Image, ImageDraw

from benchmarks import hardware
from benchmarks.check import RESULTS
from lace_lora.data_utils import check_images
from lace_lora.image_files import READABLE_KINDS, open_picture
from lace_lora.near_duplicates import fingerprint, pairs

PIECES, SEEDS = 100, 4
LEAST_FOUND, MOST_FALSE = 0.95, 0.01  # of the copies; of the pairs
DRAWN_PX = (480, 400)
SET_BY_EYE = 0.07  # how far a pin stands from its place, in cells
CUT = SHIFT = 0.05  # of a side
SAVED_WELL = (88, 96)  # quality of the copies that are not about saving
USUAL_BITS = 5  # of 64 that two pictures called the same may differ in, as is usual with hashes of 8 × 8
TURN = Image.Transpose

Chance = numpy.random.Generator
Pair = tuple[int, int]


def cropped(picture: Image.Image, chance: Chance) -> Image.Image:
    """Without 5 % of its width or height on one side or more, up to all four."""
    sides = chance.permutation(4)[: chance.integers(1, 5)]
    left, top, right, bottom = (CUT * (side in sides) for side in range(4))
    width, height = picture.size
    return picture.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def flipped(picture: Image.Image, chance: Chance) -> Image.Image:
    """Left for right, or top for bottom."""
    return picture.transpose((TURN.FLIP_LEFT_RIGHT, TURN.FLIP_TOP_BOTTOM)[chance.integers(2)])


def turned(picture: Image.Image, chance: Chance) -> Image.Image:
    """By one, two or three quarters."""
    return picture.transpose((TURN.ROTATE_90, TURN.ROTATE_180, TURN.ROTATE_270)[chance.integers(3)])


def tilted(picture: Image.Image, chance: Chance) -> Image.Image:
    """By two to three degrees either way; the empty corners stay, black or white, or all that they spoil is cut off."""
    degrees = chance.uniform(2, 3) * chance.choice((-1, 1))
    how = chance.integers(3)
    tilt = picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=("black", "white", "black")[how])
    if how < 2:
        return tilt
    margin = round(max(picture.size) / 2 * numpy.sin(numpy.radians(3))) + 1
    return tilt.crop((margin, margin, picture.width - margin, picture.height - margin))


def shifted(picture: Image.Image, chance: Chance, part: float = SHIFT) -> Image.Image:
    """By up to 5 % down or up and right or left; the gap holds the edge's colours, or what is inside mirrored."""
    pixels = numpy.asarray(picture)
    reach = [round(part * side) for side in pixels.shape[:2]]
    down, right = (int(chance.integers(-most, most + 1)) for most in reach)
    mode = ("edge", "symmetric")[chance.integers(2)]
    wide = numpy.pad(pixels, [(most, most) for most in reach] + [(0, 0)], mode=mode)
    top, left = reach[0] - down, reach[1] - right
    return Image.fromarray(wide[top : top + pixels.shape[0], left : left + pixels.shape[1]])


KINDS: dict[str, Callable[[Image.Image, Chance], Image.Image]] = {
    "re-saved": lambda picture, chance: picture,
    "cropped": cropped,
    "flipped": flipped,
    "turned": turned,
    "tilted": tilted,
    "shifted": shifted,
}


def copy_of(picture: Image.Image, kind: str, number: int, seed: int) -> bytes:
    """A JPEG file of the copy of piece `number`: re-saved ones of quality 40 to 90, the others saved well."""
    chance = numpy.random.default_rng((seed, list(KINDS).index(kind), number))
    low, high = (40, 90) if kind == "re-saved" else SAVED_WELL
    return as_jpeg(KINDS[kind](picture, chance), int(chance.integers(low, high + 1)))


def as_jpeg(picture: Image.Image, quality: int) -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def photographs(folder: Path | None) -> list[Image.Image]:
    """The pictures of a folder, each of another piece; none without a folder."""
    kinds = READABLE_KINDS
    paths = sorted(path for path in folder.iterdir() if path.suffix.casefold() in kinds) if folder else []
    return [open_picture(path) for path in paths]


def drawn(seed: int) -> Image.Image:
    """A piece of ground by hand: lattice, frame and cloth are alike in all of them, but each pin is set by eye.

    The demo's lace will not do here: its seeds change thread, cloth and petals, and the threads of most lie alike.
    """
    by_hand = numpy.random.default_rng((3, seed))
    width, height = DRAWN_PX
    cells = 9 + seed % 4
    cell, rows, columns = width / cells, cells + 3, cells + 3
    picture = Image.new("RGB", (width, height), (38, 34, 46))
    pen = ImageDraw.Draw(picture)
    down, right = numpy.mgrid[:rows, :columns]
    pins = numpy.stack([right + down % 2 / 2 - 1, down - 1], axis=-1) * cell
    pins = pins + by_hand.normal(0, SET_BY_EYE * cell, pins.shape)
    for row, column in itertools.product(range(rows - 1), range(1, columns - 1)):
        for under in (column - 1 + row % 2, column + row % 2):
            thread = round(cell * by_hand.uniform(0.12, 0.18))
            pen.line([*pins[row, column], *pins[row + 1, under]], fill=(228, 222, 205), width=thread)
    if seed % 2:
        pen.rectangle((0, 0, width - 1, height - 1), outline=(214, 210, 200), width=round(0.05 * width))
    return picture


def pieces(real: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """So many different pieces: photographs, then lace drawn by program."""
    return [*real[:count], *(drawn(seed) for seed in range(max(0, count - len(real))))]


@dataclass(frozen=True)
class Found:
    """What the check said of the pieces and their copies, by the numbers of the pieces.

    missed  pieces whose copy is not in their group
    joined  how many pairs of pictures are in one group
    false   those of them that are no piece with its copy
    mixed   how many pictures are in a false pair
    """

    kind: str
    count: int
    missed: tuple[int, ...]
    joined: int
    false: tuple[Pair, ...]
    mixed: int

    @property
    def share_found(self) -> float:
        """Of the copies, 0..1."""
        return 1 - len(self.missed) / self.count

    @property
    def share_false(self) -> float:
        """Of the pairs, 0..1."""
        return len(self.false) / max(1, self.joined)


def found_of(kind: str, originals: Sequence[Image.Image], folder: Path, seed: int) -> Found:
    """Plant a copy of each piece in an empty folder, and check it.

    Names are drawn by lot, so that neither the order nor a name joins what belongs together.
    """
    names = numpy.random.default_rng((seed, len(KINDS))).permutation(2 * len(originals)).tolist()
    number_of = {f"picture_{name:04d}.jpg": place // 2 for place, name in enumerate(names)}
    for (name, number), is_copy in zip(number_of.items(), itertools.cycle((False, True)), strict=False):
        data = copy_of(originals[number], kind, number, seed) if is_copy else as_jpeg(originals[number], 95)
        (folder / name).write_bytes(data)
    groups = check_images(folder).groups
    joined = [
        (name, number_of[name], other, number_of[other])
        for group in groups
        for name, other in itertools.combinations(group, 2)
    ]
    together = {number for _, number, _, other in joined if number == other}
    false = [row for row in joined if row[1] != row[3]]
    return Found(
        kind,
        len(originals),
        tuple(number for number in range(len(originals)) if number not in together),
        len(joined),
        tuple((number, other) for _, number, _, other in false),
        len({name for row in false for name in (row[0], row[2])}),
    )


# -- the hashes that are usual elsewhere --


def average_hash(picture: Image.Image) -> numpy.ndarray:
    """64 bits: which of 8 × 8 cells are lighter than their average."""
    cells = numpy.asarray(picture.convert("L").resize((8, 8), Image.Resampling.LANCZOS), float)
    return (cells > cells.mean()).ravel()


def difference_hash(picture: Image.Image) -> numpy.ndarray:
    """64 bits: which of 8 × 8 cells are darker than their right neighbour."""
    cells = numpy.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS), int)
    return (numpy.diff(cells) > 0).ravel()


HASHES = {"average hash": average_hash, "difference hash": difference_hash}


def taken_for_one(originals: Sequence[Image.Image], name: str, bits: int = USUAL_BITS) -> list[Pair]:
    """Pairs of different pieces whose hashes differ in so few bits, or in fewer."""
    hashes = [HASHES[name](one) for one in originals]
    every = itertools.combinations(range(len(hashes)), 2)
    return [(one, other) for one, other in every if (hashes[one] != hashes[other]).sum() <= bits]


def our_pairs(originals: Sequence[Image.Image]) -> list[Pair]:
    """Pairs of different pieces that near_duplicates takes for one picture."""
    found = pairs([fingerprint(one) for one in originals])
    return [(pair.first, pair.second) for pair in found if pair.kind != "maybe the same piece"]


# -- the report --


def as_table(real: int, found: Sequence[Found], hashes: Sequence[str], command: str) -> str:
    """The numbers with what they were measured on; of each kind as many results as there were seeds."""
    count = found[0].count
    lines = [
        f"# Planted copies of {count} pieces of lace, {datetime.date.today().isoformat()}",
        "",
        f"- command: `{command}`",
        f"- pieces: {real} photographs, {count - real} drawn; {2 * count} pictures are checked at once, "
        "with one kind of copy among them",
        f"- targets: {LEAST_FOUND:.0%} of the copies found, at most {MOST_FALSE:.0%} of the pairs false",
        f"- hardware: {hardware.name('cpu')}, no GPU used",
        f"- software: Python {platform.python_version()}, Pillow {PIL.__version__}, NumPy {numpy.__version__}",
        "",
        f"| copy | found of {count}, seed by seed | missed: photographs, drawn | pairs made | false pairs "
        "| of 100 pairs | of 100 pictures in false pairs |",
        "|---|---|---|---|---|---|---|",
        *(_row(real, [one for one in found if one.kind == kind]) for kind in KINDS),
    ]
    return "\n".join([*lines, *hashes]) + "\n"


def _row(real: int, found: Sequence[Found]) -> str:
    """What all seeds of one kind gave."""
    joined, false = sum(one.joined for one in found), sum(len(one.false) for one in found)
    missed = [number < real for one in found for number in one.missed]
    cells = [
        found[0].kind,
        ", ".join(str(one.count - len(one.missed)) for one in found),
        f"{sum(missed)}, {len(missed) - sum(missed)}",
        str(joined),
        str(false),
        f"{100 * false / max(1, joined):.1f}",
        f"{100 * sum(one.mixed for one in found) / sum(2 * one.count for one in found):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def hash_lines(real: Sequence[Image.Image]) -> list[str]:
    """How many pairs of the photographs, all of different pieces, a small hash takes for one, and how many we do."""
    if len(real) < 2:
        return []
    rows = [f"| {name}, 8 × 8, at most {USUAL_BITS} bits of 64 | {len(taken_for_one(real, name))} |" for name in HASHES]
    return [
        "",
        f"Of the {len(real) * (len(real) - 1) // 2} pairs of photographs, all of different pieces, taken for one:",
        "",
        "| by | pairs |",
        "|---|---|",
        *rows,
        f"| `lace_lora.near_duplicates` | {len(our_pairs(real))} |",
    ]


def main() -> None:
    """Measure, print, and keep the page where all of it was measured."""
    words = argparse.ArgumentParser(description="How many planted copies the check finds.")
    words.add_argument("--photographs", type=Path, help="a folder of photographs, each of another piece")
    words.add_argument("--count", type=int, default=PIECES, help="pieces, drawn ones included")
    words.add_argument("--seeds", type=int, default=SEEDS, help="how often, with other copies each time")
    given = words.parse_args()
    real = photographs(given.photographs)[: given.count]
    originals = pieces(real, given.count)
    found = []
    for kind, seed in itertools.product(KINDS, range(given.seeds)):
        with tempfile.TemporaryDirectory() as place:
            found.append(found_of(kind, originals, Path(place), seed))
    asked = " --photographs FOLDER" * bool(real) + f" --count {given.count}" * (given.count != PIECES)
    asked += f" --seeds {given.seeds}" * (given.seeds != SEEDS)
    text = as_table(len(real), found, hash_lines(real), f"python -m benchmarks.planted{asked}")
    print(text)
    if real and (given.count, given.seeds) == (PIECES, SEEDS):
        RESULTS.mkdir(exist_ok=True)
        page = RESULTS / f"planted-{datetime.date.today().isoformat()}.md"
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
