"""Which pictures show the same piece: pieces of one ground are drawn, altered as people do, and found again."""

import io
import itertools
from collections.abc import Callable

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from lace_lora import near_duplicates
from lace_lora.demo.lace import draw_lace, lace_spec
from lace_lora.near_duplicates import fingerprint, groups, held_out, pairs

PIECES = 8
SET_BY_EYE = 0.07  # how far a pin stands from its place, in cells
IN_TWOS = tuple((number, number + PIECES) for number in range(PIECES))
TURN = Image.Transpose


def ground(seed: int, width: int = 360, height: int = 300, cells: int = 9, framed: bool = True) -> Image.Image:
    """A piece of ground by hand: lattice and frame are those of every seed, but each pin is set by eye."""
    by_hand = numpy.random.default_rng((7, seed))
    cell = width / cells
    picture = Image.new("RGB", (width, height), (38, 34, 46))
    pen = ImageDraw.Draw(picture)
    rows, columns = round(height / cell) + 3, cells + 3
    down, right = numpy.mgrid[:rows, :columns]
    pins = numpy.stack([right + down % 2 / 2 - 1, down - 1], axis=-1) * cell
    pins = pins + by_hand.normal(0, SET_BY_EYE * cell, pins.shape)
    for row, column in itertools.product(range(rows - 1), range(1, columns - 1)):
        for under in (column - 1 + row % 2, column + row % 2):
            thread = round(cell * by_hand.uniform(0.12, 0.18))
            pen.line([*pins[row, column], *pins[row + 1, under]], fill=(228, 222, 205), width=thread)
    if framed:
        pen.rectangle((0, 0, width - 1, height - 1), outline=(214, 210, 200), width=round(0.07 * width))
    return picture


def saved_again(picture: Image.Image, quality: int = 35) -> Image.Image:
    """The picture after a JPEG file of low quality."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def cut(picture: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """The picture without these parts of its sides."""
    width, height = picture.size
    return picture.crop(
        (round(left * width), round(top * height), round(width * (1 - right)), round(height * (1 - bottom)))
    )


def lit_from_one_side(picture: Image.Image) -> Image.Image:
    """A third more light on the left, a third less on the right."""
    light = numpy.linspace(1.3, 0.7, picture.width)[None, :, None]
    return Image.fromarray((numpy.asarray(picture) * light).clip(0, 255).astype(numpy.uint8))


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again at low quality": saved_again,
    "half the size": lambda one: one.resize((one.width // 2, one.height // 2)),
    "twice the size": lambda one: one.resize((one.width * 2, one.height * 2)),
    "cut by 5 % at one corner": lambda one: cut(one, 0.05, 0.05, 0, 0),
    "cut by 15 % at one side": lambda one: cut(one, 0, 0, 0.15, 0),
    "cut by 15 % at another corner": lambda one: cut(one, 0.04, 0.15, 0.11, 0),
    "mirrored": ImageOps.mirror,
    "upside down": lambda one: one.transpose(TURN.ROTATE_180),
    "turned by a quarter": lambda one: one.transpose(TURN.ROTATE_90),
    "turned and mirrored": lambda one: one.transpose(TURN.TRANSVERSE),
    "darker": lambda one: ImageEnhance.Brightness(one).enhance(0.6),
    "flatter": lambda one: ImageEnhance.Contrast(one).enhance(0.5),
    "lit from one side": lit_from_one_side,
    "tilted by two degrees": lambda one: cut(one.rotate(2, Image.Resampling.BICUBIC), 0.04, 0.04, 0.04, 0.04),
    "grey": lambda one: one.convert("L"),
    "much at once": lambda one: saved_again(
        ImageEnhance.Brightness(cut(ImageOps.flip(one.transpose(TURN.ROTATE_270)), 0.1, 0, 0, 0.08)).enhance(1.15), 60
    ),
}


@pytest.fixture(scope="module")
def pieces() -> list[Image.Image]:
    return [ground(seed) for seed in range(PIECES)]


@pytest.fixture(scope="module")
def prints(pieces: list[Image.Image]) -> list[near_duplicates.Fingerprint]:
    return [fingerprint(one) for one in pieces]


def small_hash(picture: Image.Image) -> numpy.ndarray:
    """The usual difference hash of 8 × 8 bits."""
    return numpy.diff(numpy.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS), int)) > 0


# ---- fingerprints


@pytest.mark.parametrize("size", [(4000, 3000), (300, 1000), (128, 128), (40, 30), (2000, 3), (1, 1)])
def test_a_fingerprint_is_small_fixed_and_holds_the_whole_picture_in_its_proportions(size):
    picture = Image.new("RGB", size, "white")
    print_ = fingerprint(picture)
    assert print_.shape == near_duplicates.FINGERPRINT_SHAPE == (128, 128)
    assert print_.dtype == near_duplicates.FINGERPRINT_DTYPE == numpy.uint8
    down, right = numpy.flatnonzero(print_.any(axis=1)), numpy.flatnonzero(print_.any(axis=0))
    expected = [max(2, 128 * side / max(size)) for side in size]
    assert [len(right), len(down)] == pytest.approx(expected, abs=0.5)
    assert numpy.abs(127 - down[0] - down[-1]) <= 1 and numpy.abs(127 - right[0] - right[-1]) <= 1, (
        "it stands in the middle"
    )
    assert set(numpy.unique(print_)) <= {0, 255}


def test_black_in_a_picture_is_not_taken_for_what_lies_beside_it():
    print_ = fingerprint(Image.new("L", (200, 100), 0))
    assert numpy.count_nonzero(print_) == 128 * 64 and print_.max() == 1


# ---- the same piece, and others


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_is_found_and_no_other_piece_is_taken_for_it(how):
    """P4, C17: each of eight pieces of one ground with its copy, and with nothing else."""
    pieces = [ground(seed, framed=False) for seed in range(PIECES)]
    altered = [ALTERED[how](one) for one in pieces]
    assert groups([fingerprint(one) for one in pieces + altered]) == IN_TWOS


# Without the deepest cut: where every copy has lost the same two sides of its frame, copies are most like each other.
@pytest.mark.parametrize("how", [how for how in ALTERED if how != "cut by 15 % at another corner"])
def test_one_framing_of_all_pieces_hides_no_copy_and_makes_none(how, pieces, prints):
    """P4: swatches laid in one frame and taken one after the other, as in the real photographs that are hardest."""
    assert groups([*prints, *(fingerprint(ALTERED[how](one)) for one in pieces)]) == IN_TWOS


def test_pieces_of_one_ground_that_a_small_hash_takes_for_one_are_kept_apart(prints):
    """P4: regular pieces, in which only the set of the pins differs."""
    regular = [ground(seed, cells=24) for seed in range(12)]
    bits = [small_hash(one) for one in regular]
    distances = [int((one != other).sum()) for one, other in itertools.combinations(bits, 2)]
    copies = [int((small_hash(cut(one, 0, 0, 0.15, 0)) != mine).sum()) for one, mine in zip(regular, bits, strict=True)]
    assert min(distances) < max(copies), "the small hash should fail here, or this test shows nothing"
    assert groups([fingerprint(one) for one in regular]) == tuple((number,) for number in range(12))


def test_the_other_half_of_a_piece_is_another_picture():
    """One ground, one light, one hand, but other threads."""
    whole = ground(3, width=720, height=300, cells=24)
    assert pairs([fingerprint(cut(whole, 0, 0, 0.5, 0)), fingerprint(cut(whole, 0.5, 0, 0, 0))]) == []


def test_motifs_of_other_kinds_are_apart_and_their_copies_are_found():
    """P4: rosette, border, mesh, leaf and scallop, as the demo draws them."""
    lace = [draw_lace(lace_spec(seed), seed, 160) for seed in range(5)]
    copies = [saved_again(cut(ImageOps.mirror(one), 0.1, 0, 0, 0.05)) for one in lace]
    assert groups([fingerprint(one) for one in [*lace, *copies]]) == tuple((place, place + 5) for place in range(5))


def test_the_order_of_the_pictures_changes_no_group(pieces, prints):
    mixed = prints + [fingerprint(ALTERED["turned and mirrored"](one)) for one in pieces]
    order = numpy.random.default_rng(1).permutation(len(mixed)).tolist()
    found = groups([mixed[place] for place in order])
    assert {frozenset(order[place] for place in group) for group in found} == {frozenset(two) for two in IN_TWOS}
    assert [group[0] for group in found] == sorted(group[0] for group in found)
    assert all(list(group) == sorted(group) for group in found)


def test_a_chain_of_cuts_is_one_group(pieces, prints):
    """The last was cut so far that its first is not found directly."""
    chain = [pieces[0]]
    for _ in range(4):
        chain.append(cut(chain[-1], 0.12, 0.12, 0, 0))
    first_and_last = [fingerprint(chain[0]), fingerprint(chain[-1])]
    assert groups(first_and_last) == ((0,), (1,))
    assert groups([*(fingerprint(one) for one in chain), *prints[1:4]]) == ((0, 1, 2, 3, 4), (5,), (6,), (7,))


def test_a_piece_that_is_there_twelve_times_is_one_group_among_its_like(pieces, prints):
    """More copies than neighbours are looked at, and a look at copies alone would part them from the farther ones."""
    many = [fingerprint(alter(pieces[2])) for alter in ALTERED.values()][:12]
    found = groups([*prints, *many])
    assert found == ((0,), (1,), (2, *range(PIECES, PIECES + 12)), (3,), (4,), (5,), (6,), (7,))


def test_each_picture_is_compared_closely_with_few_others(monkeypatch):
    """So that 300 pictures of one ground take seconds: a close look costs 5 ms."""
    looks = []
    close = near_duplicates._likeness
    monkeypatch.setattr(near_duplicates, "_likeness", lambda one, other: looks.append(1) or close(one, other))
    alike = [fingerprint(ground(seed)) for seed in range(40)]
    assert len(groups([*alike, alike[7]])) == 40
    assert 80 <= len(looks) <= 40 * near_duplicates._NEIGHBOURS


def test_nothing_and_one_picture_are_no_special_cases(prints):
    assert groups([]) == () and pairs([]) == []
    assert groups(prints[:1]) == ((0,),) and pairs(prints[:1]) == []


def test_pictures_that_show_nothing_are_alike_only_when_they_are_equal():
    """Blank cloth, noise, a narrow strip: no warning, no division by nothing, no group."""
    noise = numpy.random.default_rng(0).integers(0, 255, (2, 90, 120), dtype=numpy.uint8)
    nothing = [Image.new("L", (50, 50), 0), Image.new("L", (80, 80), 0), Image.new("L", (50, 50), 200)]
    others = [Image.new("L", (900, 4), 90), Image.linear_gradient("L"), *(Image.fromarray(one) for one in noise)]
    assert groups([fingerprint(one) for one in nothing + others]) == ((0, 1), (2,), (3,), (4,), (5,), (6,))


# ---- pairs for a person to decide


def test_pairs_say_how_sure_they_are(pieces, prints):
    """P4: an equal picture, a copy, and a piece of which half was made anew; the surest first."""
    other = pieces[0].copy()
    other.paste(cut(pieces[5], 0, 0, 0.3, 0.3), (0, 0))
    found = pairs([prints[1], prints[0], fingerprint(ALTERED["darker"](pieces[1])), prints[1], fingerprint(other)])
    assert [(one.first, one.second, one.kind) for one in found] == [
        (0, 3, "exact"),
        (0, 2, "same picture"),
        (1, 4, "maybe the same piece"),
    ]
    assert found[0].likeness == 1
    assert 0.95 < found[1].likeness <= 1
    assert near_duplicates.MAYBE_THE_SAME_PIECE <= found[2].likeness < near_duplicates.SAME_PICTURE


def test_what_may_be_the_same_piece_is_shown_but_not_joined(pieces, prints):
    other = pieces[0].copy()
    other.paste(cut(pieces[5], 0, 0, 0.3, 0.3), (0, 0))
    assert groups([prints[0], fingerprint(other)]) == ((0,), (1,))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (numpy.ones((64, 64), numpy.uint8), "uint8 of (64, 64)"),
        (numpy.ones((128, 128), numpy.float32), "float32 of (128, 128)"),
        (numpy.zeros((128, 128), numpy.uint8), "uint8 of (128, 128)"),
    ],
)
def test_an_array_that_is_no_fingerprint_is_refused_with_its_place(wrong, told, prints):
    with pytest.raises(ValueError, match="picture 1: ") as refused:
        groups([prints[0], wrong])
    assert str(refused.value) == f"picture 1: {told} is no fingerprint; make it with fingerprint(picture)."


# ---- held out


def numbered(sizes: list[int], seed: int) -> list[tuple[int, ...]]:
    """Groups of these sizes with their places mixed."""
    places = numpy.random.default_rng(seed).permutation(sum(sizes)).tolist()
    ends = list(itertools.accumulate(sizes, initial=0))
    found = [tuple(sorted(places[start:end])) for start, end in itertools.pairwise(ends)]
    return sorted(found)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.floats(0, 1), st.integers(0, 2**32))
def test_whole_groups_are_held_out_as_near_to_the_wish_as_any_choice_comes(sizes, fraction, seed):
    """D5, P8: against every choice there is; disjoint, the same on every call, none larger than needed."""
    found = numbered(sizes, seed % 7)
    count, wished = sum(sizes), round(fraction * sum(sizes))
    out = held_out(found, fraction, seed)
    assert out == held_out(found, fraction, seed) and list(out) == sorted(set(out))
    if fraction * count < 1 - 1e-9 or len(sizes) == 1:
        assert out == ()
        return
    chosen = [group for group in found if set(group) <= set(out)]
    assert sorted(place for group in chosen for place in group) == list(out), "no group stands on both sides"
    choices = [
        (abs(sum(sizes_of) - wished), sum(sizes_of), max(sizes_of))
        for number in range(1, len(found) + 1)
        for sizes_of in itertools.combinations([len(group) for group in found], number)
        if sum(sizes_of) <= count // 2
    ]
    assert (abs(len(out) - wished), len(out), max(map(len, chosen))) == min(choices)


@given(st.integers(2, 300), st.integers(1, 12), st.integers(0, 99))
def test_the_wish_survives_its_way_through_a_fraction(count, wished, seed):
    """1 / 49 * 49 is less than 1, and still a wish for one picture."""
    singles = [(place,) for place in range(count)]
    expected = min(wished, count // 2)
    assert len(held_out(singles, min(1, wished / count), seed)) == expected


def test_another_seed_holds_out_others_and_every_picture_gets_its_turn():
    singles = [(place,) for place in range(20)]
    choices = [held_out(singles, 0.1, seed) for seed in range(200)]
    assert {place for choice in choices for place in choice} == set(range(20))
    times = [sum(place in choice for choice in choices) for place in range(20)]
    assert max(times) < 40, f"each is expected 20 times of 200: {times}"


def test_pictures_added_later_change_the_held_out_ones_as_little_as_they_can():
    """D5: with their content as names, whatever their new places are."""
    names = [f"picture {number}" for number in range(60)]
    before = {names[place] for place in held_out([(place,) for place in range(60)], 0.1, 5, names)}
    for added in range(20):
        more = sorted([*names, f"new {added}"])
        after = {more[place] for place in held_out([(place,) for place in range(61)], 0.1, 5, more)}
        assert len(before) == len(after) == 6
        assert before - after == set() or after - before == {f"new {added}"}


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(fraction):
    with pytest.raises(ValueError, match="cannot be held out; give a number from 0 to 1"):
        held_out([(0,), (1,)], fraction, 0)


def test_names_of_content_must_be_as_many_as_the_pictures():
    with pytest.raises(ValueError, match="1 names of content for 2 pictures; give one for each, in the same order"):
        held_out([(0,), (1,)], 0.5, 0, ["a"])
