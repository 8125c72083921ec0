"""What the text of a claim says: figures, parents, classes, language, features (P5, P6, P10, P11)."""

import importlib
import sys

import pytest

from lace_lora import claim_language, patent_recipe
from lace_lora.claim_language import (
    body_of,
    claims_in,
    cpc_in,
    features_of,
    figure_id,
    figures_in,
    is_claim,
    language_of,
    normalized,
    subject_of,
)
from lace_lora.errors import MachineError

RECIPE = patent_recipe.read()
DEVICE = (
    "1. A star wheel, comprising: (a) a hub; (b) a rim that holds the hub; and nine teeth, wherein a tooth is bent."
)


def test_a_claim_tells_its_figures_its_parent_and_its_class():
    """P6: the requirement's own sentence."""
    text = "A device as shown in FIG. 3, which is that of claim 1, classified in G06F 17/30"
    assert (figures_in(text), claims_in(text), cpc_in(text)) == (("3",), (1,), ("G06F 17/30",))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FIGS. 2A, 2B and 4-6", ("2A", "2B", "4", "5", "6")), ("Figure 12(b) and fig. 3'", ("12B", "3'")),
        ("(Figs. 1 to 3)", ("1", "2", "3")), ("FIG. 2 and FIG. 2", ("2",)), ("a fig tree and 3 figs", ()),
        ("FIG. 3 of claim 4", ("3",)),
    ],
)  # fmt: skip
def test_figures_are_found_however_they_are_written(text, found):
    """P6: lists, ranges, letters and brackets; a fruit is none."""
    assert figures_in(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("according to any one of claims 1 to 3 or 7", (1, 2, 3, 7)), ("The device of claim 12, wherein", (12,)),
        ("of claims 1, 2 and 4", (1, 2, 4)), ("as claimed herein", ()), ("any of claims 2-4", (2, 3, 4)),
    ],
)  # fmt: skip
def test_parents_are_found_however_they_are_written(text, found):
    """P6."""
    assert claims_in(text) == found


def test_classes_are_spelled_one_way_whichever_office_wrote_them():
    """P6: with zeros as in old publications, without a space, and no letters of a longer word."""
    assert cpc_in("G06F017/60, A61B005/00; H04L9/3247 and XG06F 17/30") == ("G06F 17/60", "A61B 5/00", "H04L 9/3247")


def test_names_of_figures_are_one_name_each():
    """P6: as a column writes them."""
    assert [figure_id(one) for one in ("3", "Fig. 3a", " 3 (A)", "three", "3 and 4", "")] == ["3", "3A", "3A"] + [
        None
    ] * 3


def test_words_are_normalised_by_the_table_and_keep_their_capital():
    """P11: whole words only, the longest entry first, whatever white space stands between."""
    terms = {"member": "part", "a plurality of": "several", "plurality": "many", "substantially": ""}
    text = "Member 3 and a  plurality of members, substantially flat; a remembered plurality"
    assert normalized(text, terms) == "Part 3 and several members, flat; a remembered many"
    assert normalized(" a  b ", {}) == "a b"


def test_what_ships_normalises_the_words_that_were_asked_for():
    """P11: embodiment and member."""
    assert normalized("Said member of the embodiment", RECIPE.terms) == "The part of the design"


def test_a_claim_is_told_by_its_words():
    """P10: comprising, wherein, and what design claims have."""
    assert is_claim(DEVICE, RECIPE.claim_words) and is_claim(
        "The hub of claim 1, wherein it turns.", RECIPE.claim_words
    )
    assert is_claim("The ornamental design for a knob, as shown and described.", RECIPE.claim_words)
    assert not is_claim("A very nice knob that I like.", RECIPE.claim_words)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Dispositif comprenant un boîtier et un levier monté pivotant dans le boîtier.", "fr"),
        ("Vorrichtung, umfassend ein Gehäuse und einen Hebel, der im Gehäuse schwenkbar gelagert ist.", "de"),
        ("Kilitleme düzeneği, bir gövde ve gövde içinde dönen bir kol içermektedir.", "tr"),
        ("A device, comprising a housing and a lever that turns in the housing.", "en"),
    ],
)  # fmt: skip
def test_the_language_of_a_claim_is_told_where_it_is_long_enough(text, language):
    """P10: sure of all of these, and of nothing so short that nobody could be."""
    found, certainty = language_of(text, RECIPE.least_letters)
    assert found == language and certainty >= RECIPE.least_certainty
    assert language_of(text[:20], RECIPE.least_letters) == ("unknown", 0.0)


def test_a_missing_package_is_said_with_what_to_type(monkeypatch):
    """P10."""
    claim_language._identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(MachineError, match=r"package py3langid, .* not installed. Type pip install py3langid"):
        language_of("an English text of a kind that nobody has asked about before this", 5)
    monkeypatch.undo()
    claim_language._identifier.cache_clear()
    assert importlib.import_module("py3langid")


def test_features_are_the_elements_of_a_claim_without_their_numbers():
    """P5."""
    assert body_of(DEVICE, RECIPE.transitions)[0] == "A star wheel"
    assert features_of(DEVICE, RECIPE.transitions, 24) == (
        "a hub", "a rim that holds the hub", "nine teeth", "a tooth is bent",
    )  # fmt: skip
    assert features_of("The wheel of claim 1, further comprising: a pin (FIG. 2).", RECIPE.transitions, 24) == (
        "a pin",
    )
    assert features_of(DEVICE, RECIPE.transitions, 3)[1] == "a rim"


def test_a_design_claim_gives_its_name():
    """P5."""
    text = "The ornamental design for a disc cartridge, as shown and described."
    assert features_of(text, RECIPE.transitions, 24) == ("ornamental design for a disc cartridge",)
    assert subject_of(text, RECIPE.transitions) == "disc cartridge"


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (DEVICE, "star wheel"), ("A simulation device for displaying readings, comprising: a", "simulation device"),
        ("A method of tying a knot for ropes, comprising", "method of tying a knot"), ("1 2 3, comprising: a", ""),
        ("A system according to claim 3, wherein", "system"),
    ],
)  # fmt: skip
def test_what_is_claimed_is_said_in_a_few_words(text, subject):
    """P5: a method says nothing without what it does."""
    assert subject_of(text, RECIPE.transitions) == subject
