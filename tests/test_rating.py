"""What experts say of designs (P24): every answer kept, tables changed in Excel understood, means for each adapter."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lace_lora import rating
from lace_lora.errors import LaceError, SettingsError
from lace_lora.rating import COLUMNS, Rating, Ratings, add, means, read, scores, summary
from lace_lora.run_folder import RunFolder

ONE, OTHER = "a1" * 32, "b2" * 32


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "rose").create()


def rated(design, clarity=4, compliance=3, rater="", adapter=ONE, sheet="sheet", at="2026-11-21T10:00:00+00:00"):
    return Rating(sheet, design, adapter, clarity, compliance, rater, at)


def test_P24_ratings_are_a_table_that_the_csv_module_and_excel_read(run):
    """P24: with a byte order mark, by which Excel knows the letters of a name."""
    given_ = [rated(0, rater='Gülşen "G", Yılmaz'), rated(7, None, 5), rated(3, 1, None, sheet="a;b")]
    assert read(run) == Ratings()
    for number, one in enumerate(given_):
        add(run, one)
        assert read(run) == Ratings(tuple(given_[: number + 1]))
    data = run.ratings.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") and data.count(b"\xef\xbb\xbf") == 1
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    assert tuple(rows[0]) == COLUMNS == ("sheet", "design", "adapter", "clarity", "compliance", "rater", "at")
    assert [row["design"] for row in rows] == ["0", "7", "3"] and rows[0]["rater"] == 'Gülşen "G", Yılmaz'


def test_P24_the_last_rating_of_one_person_of_one_design_counts(run):
    """P24: of each person and each sheet by itself; nothing that was said is lost."""
    for one in (rated(0, 1, 1, "Ayşe"), rated(0, 2, 2, "Can"), rated(0, 5, 4, "AYŞE"), rated(0, 3, 3, sheet="sheet-2")):
        add(run, one)
    found = read(run).rows
    assert [(one.rater, one.sheet, one.clarity) for one in found] == [
        ("Can", "sheet", 2),
        ("AYŞE", "sheet", 5),
        ("", "sheet-2", 3),
    ]
    assert len(run.ratings.read_text(encoding="utf-8-sig").splitlines()) == 5


def test_P24_a_rating_has_the_time_at_which_it_was_given(run):
    """P24."""
    add(run, rated(0, at=""))
    assert read(run).rows[0].at.startswith("20") and read(run).rows[0].at.endswith("+00:00")


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(rating.one_line)
RATINGS = st.builds(
    Rating,
    sheet=NAMES.filter(bool),
    design=st.integers(0, 10**9 - 1),
    adapter=st.sampled_from([ONE, OTHER]),
    clarity=st.integers(1, 5),
    compliance=st.none() | st.integers(1, 5),
    rater=NAMES,
    at=st.just("2026-11-21T10:00:00+00:00"),
)


@given(st.lists(RATINGS, max_size=6, unique_by=lambda one: one.of))
@settings(max_examples=80, deadline=None)
def test_P24_whatever_is_added_is_read_again(tmp_path_factory, given_):
    """P24: names of any script, with separators, quotes and what Excel would take for a formula."""
    run = RunFolder(tmp_path_factory.mktemp("ratings"))
    given_ = [one for one in given_ if not (one.sheet + one.rater).startswith("'") and "'" not in one.rater[:1]]
    for one in given_:
        add(run, one)
    assert read(run) == Ratings(tuple(given_))


def test_P24_a_name_is_no_formula(run):
    """P24, L2: a table opened in Excel must run nothing."""
    add(run, rated(0, rater="=1+1"))
    assert "'=1+1" in run.ratings.read_text(encoding="utf-8-sig") and read(run).rows[0].rater == "=1+1"


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", ";\t,")
def test_P24_a_table_saved_again_by_excel_is_read_and_added_to_in_its_own_way(run, coding, separator):
    """P24: semicolons, Windows' line ends, other encodings, columns in another order, one more and empty rows."""
    columns = ["Rater", "adapter", "design", "sheet", "my notes", "Compliance", "clarity", "at"]
    lines = [columns, ["Can", ONE, "4,0", "sheet", "nice; very", "", "5", ""], [""] * 8]
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows(lines)
    run.evaluation.mkdir(parents=True)
    run.ratings.write_bytes(out.getvalue().rstrip("\r\n").encode(coding))
    add(run, rated(2, rater="Gül"))
    found = read(run)
    assert [(one.rater, one.design, one.clarity, one.compliance) for one in found.rows] == [
        ("Can", 4, 5, None),
        ("Gül", 2, 4, 3),
    ]
    assert len(found.faults) == 1 and found.faults[0].startswith("row 1: there is no column 'my notes'")
    assert run.ratings.read_bytes().decode(coding).count("\ufeff") == 0
    text = run.ratings.read_bytes().decode(coding)
    assert text.splitlines()[-1] == separator.join(
        ["Gül", ONE, "2", "sheet", "", "3", "4", "2026-11-21T10:00:00+00:00"]
    )
    assert "nice; very" in text


def test_P24_rows_that_cannot_be_understood_are_named_and_stay_in_the_file(run):
    """P24: never lost, and the others count."""
    bad = [
        f"sheet,3,{ONE},6,2,Can,",
        f"sheet,drei,{ONE},2,2,Can,",
        f",4,{ONE},2,2,Can,",
        f"sheet,5,{ONE},,,Can,",
        f"sheet,6,{ONE},3.5,2,,,,too,many",
        f"sheet,6,{ONE},gut,2,,",
    ]
    run.evaluation.mkdir(parents=True)
    run.ratings.write_text("\n".join([",".join(COLUMNS), *bad, f"sheet,9,{ONE},1,2,Can,"]), encoding="utf-8")
    found = read(run)
    assert [one.design for one in found.rows] == [9]
    assert [fault.split(";")[0] for fault in found.faults] == [
        "row 2: clarity is '6', not a whole number from 1 to 5",
        "row 3: design is 'drei', not a design's number",
        "row 4: sheet is empty",
        "row 5: neither clarity nor compliance is rated",
        "row 6: has more cells than there are columns",
        "row 7: clarity is 'gut', not a whole number from 1 to 5",
    ]
    add(run, rated(1))
    kept = run.ratings.read_text(encoding="utf-8")
    assert all(line in kept for line in bad) and [one.design for one in read(run).rows] == [9, 1]
    assert summary(found)[1:3] == [f"! ratings.csv, {fault}" for fault in found.faults[:2]]


def test_P24_a_table_that_cannot_be_added_to_says_what_to_mend(run):
    """P24: a rating written behind an open quote would not be read."""
    run.evaluation.mkdir(parents=True)
    run.ratings.write_text(f'{",".join(COLUMNS)}\nsheet,1,"{ONE},1,1,,\n', encoding="utf-8")
    before = run.ratings.read_bytes()
    with pytest.raises(SettingsError, match=r"ratings.csv, row 2: its quotes cannot be read.+Mend it"):
        add(run, rated(1))
    assert "its quotes cannot be read" in read(run).faults[0]
    run.ratings.write_text("sheet,design,clarity\nsheet,1,2\n", encoding="utf-8")
    with pytest.raises(SettingsError, match="has no column adapter, compliance, rater, at. Put it back"):
        add(run, rated(1))
    run.ratings.write_bytes("sheet;design\nGül;1\n".encode("cp1254"))
    with pytest.raises(SettingsError, match=r"is not UTF-8 text in line 2\. In Excel choose the file type CSV UTF-8"):
        read(run)
    run.ratings.write_bytes(before)
    run.ratings.unlink()
    run.ratings.mkdir()
    with pytest.raises(LaceError, match="ratings.csv"):
        add(run, rated(1))


@pytest.mark.parametrize("one", [rated(0, 0), rated(0, 6), rated(-1), rated(0, None, None), rated(0, rater="x" * 101)])
def test_P24_what_is_no_rating_is_not_written(run, one):
    """P24."""
    with pytest.raises(SettingsError, match="This is no rating"):
        add(run, one)
    assert not run.ratings.exists()


def test_P24_means_are_taken_of_each_adapter_by_hand():
    """P24: clarity (5 + 3 + 4) / 3, compliance (2 + 1) / 2, of two designs by two people."""
    rows = [rated(0, 5, 2, "Can"), rated(0, 3, None, "Ayşe"), rated(1, 4, 1, "can"), rated(1, 1, 1, adapter=OTHER)]
    first, second = means(rows)
    assert (first.clarity, first.compliance, first.ratings, first.designs, first.raters) == (4, 1.5, 3, 2, 2)
    assert (second.adapter, second.clarity, second.raters) == (OTHER, 1, 1)
    assert summary(Ratings(tuple(rows)), {ONE: "step 750"}) == [
        "step 750: clarity 4.0, compliance 1.5 of 5 (3 ratings of 2 designs by 2 people)",
        "adapter b2b2b2b2: clarity 1.0, compliance 1.0 of 5 (1 rating of 1 design by 1 person)",
    ]
    assert summary(Ratings()) == ["Nobody has rated a design yet."]
    clarity, compliance = scores(rows, ONE)
    assert (clarity.id, clarity.value, clarity.count, clarity.better) == ("rated_clarity", 4, 3, "higher")
    assert (compliance.id, compliance.value) == ("rated_compliance", 1.5)
    assert "the opinion of 2 people on 2 designs" in clarity.means
    assert scores(rows, "c3") == []
