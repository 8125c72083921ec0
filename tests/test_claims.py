"""Claims files: every good row is read, every bad one is named with place, column and reason (P1, P2, P9, P10)."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.claims import EVERY, ROWS, WAYS, generated, told, written
from lace_lora import claim_links, claims, patent_recipe
from lace_lora.claim_links import Linked
from lace_lora.claims import COLUMNS
from lace_lora.errors import SettingsError

RECIPE = patent_recipe.read()
GOOD = {"claim_id": "1", "claim_text": "A device, comprising: a hub that turns in a housing.", "category": "hub"}


def file_of(folder: Path, rows, ending: str = ".jsonl") -> Path:
    """Rows of strings or lists as a file of that kind, lists in a table with commas between."""
    path = folder / f"claims{ending}"
    if ending == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return path
    out = io.StringIO()
    table = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)))
    table.writeheader()
    table.writerows([{name: ", ".join(v) if isinstance(v, list) else v for name, v in row.items()} for row in rows])
    path.write_text(out.getvalue(), encoding="utf-8")
    return path


def linked(path: Path) -> Linked:
    return claim_links.linked(claims.read([path], RECIPE), RECIPE)


def faults(folder: Path, *rows, ending: str = ".jsonl") -> list[str]:
    return [str(fault) for fault in linked(file_of(folder, rows, ending)).faults]


def test_ten_thousand_rows_lose_none_and_name_every_broken_one(tmp_path):
    """P1, P10: the faults told are exactly those made, each with its reason; all other rows are there, in order."""
    rows, broken = generated(ROWS)
    assert len(broken) == ROWS // EVERY and set(broken.values()) == set(WAYS) and len(WAYS) == 12
    found = linked(written(rows, tmp_path))
    assert found.count == ROWS and told(found.faults) == broken and len(found.faults) == len(broken)
    assert max(Counter(broken.values()).values()) - min(Counter(broken.values()).values()) <= 1
    names = [(row["patent_id"], row["claim_id"]) for place, row in enumerate(rows) if place not in broken]
    assert [claim.key for claim in found.claims] == names
    places = {f"row {place + 2}" for place in broken}
    assert {fault.place for fault in found.faults} == places and all(fault.said for fault in found.faults)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"claim_id": " "}, "line 2, claim_id: is empty; give each claim a name of its own"),
        ({"claim_id": ["2"]}, 'line 2, claim_id: is ["2"], not a text'),
        ({"claim_text": None}, "line 2, claim_text: is empty; paste the claim's text"),
        ({"claim_text": 5}, "line 2, claim_text: is 5, not a text"),
        ({"claim_text": "a wheel, comprising " + "x" * 20_000}, "line 2, claim_text: has 20,020 characters"),
        ({"claim_text": "half \ud800, comprising"}, "line 2, claim_text: holds half a character"),
        ({"claim_text": "Dispositif comprenant un boîtier et un levier pivotant dans le boîtier"},
         "line 2, claim_text: is in another language (fr, not en); translate it"),
        ({"claim_text": "A very nice wheel."}, 'line 2, claim_text: has none of the words of a claim, such as "comp'),
        ({"figure_ids": "3, first"}, "line 2, figure_ids: 'first' is no figure; write numbers such as 3 or 2A"),
        ({"cpc": ["G06F 17/30", "toys"]}, "line 2, cpc: 'toys' is no class of the CPC; write it as G06F 17/30"),
        ({"reference_path": "no.png"}, "line 2, reference_path: 'no.png' is not there; it is looked for beside the cl"),
        ({"reference_path": "text.png"}, "line 2, reference_path: 'text.png' is no picture that can be read"),
        ({"category": "x" * 201}, "line 2, category: has 201 characters; 200 are the most of category"),
        ({"claim_id": "1"}, "line 2, claim_id: '1' is there already, in line 1; give it a name of its own"),
        ({"dependent_on": "9"}, "line 2, dependent_on: there is no claim '9' to refer to"),
        ({"claim_text": "The hub of claim 9, wherein it turns."},
         "line 2, claim_text: refers to claim 9, which is not there"),
        ({"dependent_on": "1", "claim_text": "The hub of claim 3, wherein it turns."},
         "line 2, dependent_on: is '1', but the text refers to claim 3"),
        ({"dependent_on": "2"}, "line 2, dependent_on: refers in a circle to '2'; a claim can only refer to one befor"),
        ({"figure_ids": [4], "claim_text": "A hub as in FIG. 2, comprising a pin."},
         "line 2, figure_ids: has 4, but the text refers to FIG. 2"),
        ({"category": "", "claim_text": "123, comprising 456"},
         "line 2, category: is empty, and the text does not tell what is claimed"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_column_and_what_to_do_and_takes_no_other_with_it(tmp_path, change, said):
    """P1, P10: good rows before and after it survive."""
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    found = linked(file_of(tmp_path, [GOOD, GOOD | {"claim_id": "2"} | change, GOOD | {"claim_id": "3"}]))
    assert [str(fault)[: len(said)] for fault in found.faults] == [said]
    assert [claim.claim_id for claim in found.claims] == ["1", "3"] and found.count == 3


def test_all_that_is_wrong_with_a_row_is_told_at_once(tmp_path):
    """P10."""
    row = {"claim_id": "", "claim_text": "nice", "figure_ids": "x", "cpc": "y"}
    fields = [fault.field for fault in linked(file_of(tmp_path, [GOOD, row])).faults]
    assert fields == ["claim_id", "claim_text", "figure_ids", "cpc"]


def test_rows_that_cannot_be_read_at_all_are_named_too(tmp_path):
    """P1."""
    path = tmp_path / "claims.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n{{"claim_id": \n[1]\n{{"claim_id": "2", "claim_id": "3"}}', encoding="utf-8")
    found = linked(path)
    assert [fault.place for fault in found.faults] == ["line 2", "line 3", "line 4", "line 4"]
    assert "is not JSON (" in found.faults[0].said and found.count == 4 and len(found.claims) == 1
    path = tmp_path / "claims.csv"
    path.write_text('claim_id,claim_text\n1,"A device, comprising a hub, a pin"\n2,a,b,c\n', encoding="utf-8")
    assert [str(one)[:20] for one in linked(path).faults] == ["row 3: has more cell"]


def test_a_circle_costs_the_claim_that_refers_forward_and_no_other(tmp_path):
    """P6: of 1 <- 2 -> 4 -> 3 -> 2 only 2 refers to a later claim; the others stay, and keep their parents."""
    text = "A device, comprising: a hub that turns."
    rows = [{"claim_id": str(n), "claim_text": text, "category": "hub", "dependent_on": on}
            for n, on in ((1, ""), (2, "1, 4"), (3, "2"), (4, "3"), (5, "4"))]  # fmt: skip
    found = linked(file_of(tmp_path, rows))
    assert [(fault.place, fault.kind) for fault in found.faults] == [("line 2", "circle")]
    assert [claim.claim_id for claim in found.claims] == ["1", "3", "4", "5"]
    assert {claim.root for claim in found.claims if claim.claim_id != "1"} == {("", "2")}


def test_a_claim_before_its_parent_is_no_circle(tmp_path):
    """P6: files need not be sorted; the category comes from the parent all the same."""
    rows = [{"claim_id": "2", "claim_text": "The device of claim 1, wherein it turns."}, GOOD]
    found = linked(file_of(tmp_path, rows))
    assert not found.faults and found.claims[0].parents == (("", "1"),) and found.claims[0].category == "hub"


@given(st.dictionaries(st.integers(0, 9), st.sets(st.integers(0, 9), max_size=3), min_size=1))
@settings(max_examples=150)
def test_without_the_claims_at_fault_no_circle_is_left_and_each_was_on_one(graph):
    """P6: any graph of references; the slow way as the oracle, following every path."""
    parents = {("", str(key)): tuple(("", str(one)) for one in found if one in graph) for key, found in graph.items()}

    def reachable(start, without=()):
        seen, waiting = set(), list(parents.get(start, ()))
        while waiting:
            one = waiting.pop()
            if one not in seen and one not in without:
                seen.add(one)
                waiting += parents.get(one, ())
        return seen

    wrong = claim_links._circles(parents)
    assert all(key in reachable(key) for key in wrong)
    assert not [key for key in parents if key not in wrong and key in reachable(key, without=wrong)]


def test_a_table_and_json_lines_give_the_same_claims(tmp_path):
    """P9: lists as lists or as texts, figures as numbers, empty as empty or absent."""
    Image.new("RGB", (80, 80), "white").save(tmp_path / "a.png")
    rows = [
        GOOD | {"figure_ids": ["1", "2A"], "patent_id": "US1", "reference_path": "a.png", "cpc": ["F16H 55/17"]},
        {"claim_id": "2", "claim_text": "The hub of claim 1, wherein it is flat.", "dependent_on": ["1"],
         "patent_id": "US1", "figure_ids": ["3"]},
    ]  # fmt: skip
    tables = [linked(file_of(tmp_path, rows, ending)) for ending in (".csv", ".tsv", ".jsonl")]
    for one in tables:
        assert not one.faults
    texts = [[(claim.key, claim.text, claim.parents, claim.figures, claim.cpc, claim.reference, claim.root)
              for claim in one.claims] for one in tables]  # fmt: skip
    assert texts[0] == texts[1] == texts[2] and texts[0][0][3] == ("1", "2A")
    pandas = 'claim_id,claim_text,dependent_on\n1.0,"A hub, comprising a pin",\n2.0,"The hub, wherein",1.0\n'
    (tmp_path / "claims.csv").write_text(pandas, encoding="utf-8")
    assert [claim.parents for claim in linked(tmp_path / "claims.csv").claims] == [(), (("", "1"),)]


def test_parents_come_from_the_text_where_the_column_says_nothing(tmp_path):
    """P6: also where names carry more than a number, and patents each have a claim 1."""
    rows = [
        {"patent_id": patent, "claim_id": f"{patent}-{n}", "category": "hub", "claim_text": text}
        for patent in ("A", "B")
        for n, text in ((1, "A hub, comprising a pin."), (2, "The hub of claim 1, wherein the pin is flat."))
    ]
    found = linked(file_of(tmp_path, rows))
    assert [claim.parents for claim in found.claims] == [(), (("A", "A-1"),), (), (("B", "B-1"),)]


def test_other_columns_are_passed_over_and_said(tmp_path):
    """P9."""
    found = linked(file_of(tmp_path, [GOOD | {"catgory": "x", "Inventor": "y"}], ".csv"))
    assert len(found.claims) == 1 and not found.faults
    assert "no column 'catgory'; did you mean category?; it is passed over" in found.notes[0] and len(found.notes) == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [("claims.txt", "is no claims file: its name must end in .csv, .tsv, .jsonl, .xml"), ("no.csv", "There is no cl")],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(tmp_path, name, said):
    """P1."""
    (tmp_path / "claims.txt").write_text("a", encoding="utf-8")
    with pytest.raises(SettingsError, match=said):
        claims.read([tmp_path / name], RECIPE)


def test_a_table_without_the_column_says_which_is_missing(tmp_path):
    """P1."""
    (tmp_path / "claims.csv").write_text("claim_id,text\n1,a\n", encoding="utf-8")
    assert "there is no column claim_text" in str(linked(tmp_path / "claims.csv").faults[0])


def test_several_files_are_told_apart(tmp_path):
    """P9: a fault names its file."""
    one, two = file_of(tmp_path, [GOOD]), tmp_path / "more.jsonl"
    two.write_text(json.dumps(GOOD | {"claim_id": ""}), encoding="utf-8")
    found = claim_links.linked(claims.read([one, two], RECIPE), RECIPE)
    assert found.faults[0].place == "more.jsonl, line 1" and len(found.claims) == 1


def test_every_column_of_the_card_is_known():
    """P1, P2."""
    asked = {"claim_id", "claim_text", "dependent_on", "category", "figure_ids", "reference_path", "patent_id"}
    assert asked <= set(COLUMNS)
