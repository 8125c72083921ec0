"""The page about a run: one file, readable by itself, nothing from elsewhere, each number traced (C13, L20, D8, D9)."""

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lace_lora import curves, report, report_evidence, report_parts
from lace_lora.errors import RunError
from lace_lora.run_folder import RunFolder
from lace_lora.scores import CopyCheck, Evaluation, Nearest, Score
from tests.reporting import EVALUATION, PAIRS, SCORES, Seen, reported_run

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
# The interval's own sentence tells the level, which is the same in every run.
OWN_WORDS = "95 of 100"


@pytest.fixture
def run(tmp_path):
    return reported_run(tmp_path / "rose & <co>")


def page_of(run: RunFolder, **more: Any) -> str:
    return report.write(run, **more).read_text(encoding="utf-8")


# -- the page as a whole --


def test_the_page_holds_what_the_folder_holds_in_order_and_loads_nothing_from_elsewhere(run):
    """C13, L20: what the designer reads first, then the engineer's part."""
    page = page_of(run)
    seen = Seen(page)
    titles = ["rose & <co>", "Base model and LoRA", "Is it good", "Is it new", "Which checkpoint", "The training",
              "Designs", "In repeat", "For the engineer"]  # fmt: skip
    assert [data for around, data in seen.texts if around[-1][0] in ("h1", "h2")] == titles
    assert page.count("<img ") == 7 and page.count("src='data:image/jpeg;base64,") == 7 and page.count("<polyline") == 4
    assert "left out" not in seen.text and "cannot be understood" not in seen.text
    assert not [tag for tag, _ in seen.tags if tag in ("script", "link", "iframe", "object", "base", "form")]
    for _, attributes in seen.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/jpeg;", "#"))
    assert "default-src 'none'" in page and "url(" not in page and "@import" not in page


def test_the_head_says_what_was_trained_on_what(run):
    """C13, L20."""
    said = Seen(page_of(run)).text
    assert "54 photographs, 6 more held out" in said and "a photo of <sks>" in said and "4 of 4, finished" in said
    assert "demo" in said and "2026-11-21" in said
    run.scores.unlink()
    said = Seen(page_of(run)).text
    assert "60 photographs, some held out" in said and "was not measured yet: lace-lora evaluate" in said


def test_every_part_names_the_file_that_its_numbers_come_from(run):
    """L20: and each of these files is there."""
    seen = Seen(page_of(run))
    named = {data for around, data in seen.texts if around[-1][0] == "code" and "/" in data}
    sources = {data for around, data in seen.texts if ("p", {"class": "source"}) in around and around[-1][0] == "code"}
    assert {"evaluation/scores.json", "run.json", "log.jsonl", "config.yaml", "images/sheet/images.jsonl"} <= sources
    assert [name for name in sources | named if not (run.root / name).is_file()] == []


def test_text_from_prompts_and_names_is_shown_as_text(run):
    """L20."""
    page = page_of(run)
    assert "<b>bold</b>" not in page and "&lt;b&gt;bold" in page
    assert "rose &amp; &lt;co&gt;" in page and "The style was learnt &lt;well&gt;." in page


def test_where_the_run_lies_is_told_nowhere(tmp_path):
    """C10: the page is made to be sent; its folders, and those of the settings, are named by their last part."""
    secret = tmp_path / "home-of-somebody"
    model = secret / "models" / "my-sdxl"
    model.mkdir(parents=True)
    run = reported_run(secret / "runs" / "rose", images_dir=str(secret / "lace"), pretrained_model=str(model))
    run.nearest(1).write_bytes(b"no picture")
    (run.root / "annotations.txt").write_bytes(b"\xff\xfe")
    page = page_of(run)
    assert "home-of-somebody" not in page and "…/lace" in page and "my-sdxl" in page


def test_a_run_that_has_only_begun_gives_a_page_without_what_is_not_there(tmp_path):
    """C13."""
    run = RunFolder(tmp_path / "begun").create()
    run.record.write_text(json.dumps({"state": "training", "step": 1, "total": 9}))
    page = page_of(run)
    assert "1 of 9, training" in Seen(page).text and "<img" not in page and "<polyline" not in page


def test_a_folder_without_a_run_has_its_sentence(tmp_path):
    """C13."""
    with pytest.raises(RunError, match="holds no run. Train first: lace-lora train"):
        report.write(RunFolder(tmp_path))


# -- every number can be traced --


def untraced(page: str, told: dict[str, Any]) -> list[str]:
    """What the scores on a page say that scores.json does not: the slow way, from the page as a browser reads it."""
    faults = []
    by_id = {score["id"]: score for score in told["scores"]}
    words = json.dumps([[score[name] for name in ("name", "means", "refusal")] for score in told["scores"]])
    words += json.dumps(told["judges"]) + OWN_WORDS
    shown: dict[str, list[float]] = {}
    current = ""
    for around, data in Seen(page).texts:
        if not any(attributes.get("id") == "scores" for _, attributes in around):
            continue
        tags = [tag for tag, _ in around]
        current = next((str(found["data-score"]) for _, found in around if "data-score" in found), current)
        if tags[-1] == "data":
            exact = float(str(around[-1][1]["value"]))
            shown.setdefault(current, []).append(exact)
            read = float(data.replace(",", ""))
            decimals = len(data.partition(".")[2])
            if abs(read - exact) > 0.5000001 * 10**-decimals:
                faults.append(f"{current}: {data} is not {exact}")
        elif "svg" not in tags:
            faults += [f"{found} is nowhere in scores.json" for found in NUMBER.findall(data) if found not in words]
    for name, score in by_id.items():
        expected = [score[key] for key in ("value", "low", "high", "count") if score[key] is not None]
        expected = [] if score["value"] is None else expected
        if shown.get(name, []) != [one for one in expected if one or name != "ssim"]:
            faults.append(f"{name}: {shown.get(name)} are shown, {expected} stand in scores.json")
    return faults


def test_every_number_of_the_scores_stands_in_scores_json(run):
    """D8, L20."""
    assert untraced(page_of(run), json.loads(run.scores.read_text())) == []


def test_a_number_altered_on_the_page_or_in_scores_json_is_noticed(run):
    """D8, L20: the test above can fail, for every single number."""
    page, told = page_of(run), json.loads(run.scores.read_text())
    inside = page[page.index("id='scores'") :]
    inside = inside[: inside.index("</section>")]
    found = list(re.finditer(r'<data value="([^"]+)">([^<]+)<', inside))
    assert len(found) == 4 * 3 + 2
    start = page.index(inside)
    for one in found:
        for group in (1, 2):
            place = start + one.start(group)
            changed = "7" if page[place] != "7" else "3"
            assert untraced(page[:place] + changed + page[place + 1 :], told), one.group()
    for number, score in enumerate(told["scores"]):
        if score["value"] is not None:
            assert untraced(page, told | {"scores": [*told["scores"][:number], score | {"value": score["value"] + 0.01},
                                                     *told["scores"][number + 1 :]]})  # fmt: skip
    assert untraced(page.replace("as near as real lace", "0.77 of real lace"), told)


def test_a_refused_score_shows_why_and_no_number(run):
    """P22, D8."""
    page = page_of(run)
    row = page[page.index("data-score='ssim'") :]
    row = row[: row.index("</tr>")]
    assert "not measured" in row and "There are no reference drawings." in row
    assert "<svg" not in row and "<data" not in row


def test_a_bar_places_value_and_interval_in_proportion_and_tells_its_axis():
    """D8: positions worked out by hand from the drawing's own ends."""
    drawn = report_parts.bar(0.25, 0.125, 0.75, (0.0, 1.0))
    left, right = 8.0, 192.0
    assert f'cx="{left + 0.25 * (right - left):.2f}"' in drawn
    assert f'd="M{left + 0.125 * (right - left):.2f} 12H{left + 0.75 * (right - left):.2f}"' in drawn
    assert re.findall(r"<text[^>]*>([^<]+)<", drawn) == ["0", "1"]
    assert 'class="interval"' not in report_parts.bar(0.25, None, None, (0.0, 1.0))
    crowded = report_parts.bar(0.3, None, None, (-0.02, 0.5))
    assert re.findall(r"<text[^>]*>([^<]+)<", crowded) == ["0", "0.5"], "-0.02 would lie on the 0"


@pytest.mark.parametrize(
    ("own", "others", "axis"),
    [
        ((0.27, 0.26, 0.28), [(0.42, 0.4, 0.51)], (0.0, 1.0)),  # on one axis with what it is compared with
        ((0.07, 0.04, 0.11), [(0.41, 0.37, 0.46)], (0.0, 0.2)),  # that is another kind of number
        ((0.003, -0.012, 0.019), [], (-0.02, 0.02)),
        ((0.0, None, None), [], (0.0, 1.0)),
        ((-3.0, None, None), [], (-5.0, 0.0)),
        ((20.0, None, None), [], (0.0, 20.0)),
    ],
)
def test_an_axis_has_round_ends_holds_all_that_is_compared_and_the_zero(own, others, axis):
    """D8: worked out by hand."""
    scores = [Score(str(number), "", "style", *one) for number, one in enumerate([own, *others])]
    assert report_evidence.axis_of(scores[0], scores) == axis


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.8312, 0.71, 0.92), "0.83 (0.71 to 0.92)"),
        ((0.0031, -0.012, 0.0192), "0.003 (-0.012 to 0.019)"),
        ((1234.5678, None, None), "1235"),
        ((12, None, None), "12"),
    ],
)  # fmt: skip
def test_numbers_have_as_many_decimals_as_can_be_read(values, said):
    """D8."""
    assert Seen(report_parts.with_interval(*values)).text == said


# -- what to think of it --


def changed(id: str, **values: Any) -> tuple[Score, ...]:
    return tuple(replace(score, **values) if score.id == id else score for score in SCORES)


COPIED = CopyCheck("x", 0.6, 47, (Nearest("a.png", "b.jpg", 0.9, True), *PAIRS))
LOOKS = [{"step": 100 * n, "val_loss": loss, "train_probe_loss": 0.5 - n / 20}
         for n, loss in enumerate((1.0, 0.6, 0.7, 0.8, 0.9))]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "good"),
        ({"copies": COPIED}, "problem"),
        ({"overfitting": curves.verdict(LOOKS)}, "problem"),
        ({"scores": changed("style_match", value=-0.2, low=-0.4, high=-0.1)}, "problem"),
        ({"scores": changed("style_match", value=0.2, low=-0.1, high=0.5)}, "closer"),
        ({"scores": changed("style_match", value=0.8, low=None, high=None)}, "closer"),
        ({"scores": changed("style_match", value=None, refusal="too few")}, "closer"),
        ({"scores": ()}, "closer"),
        ({"copies": CopyCheck(refusal="no photographs are there")}, "closer"),
    ],
)
def test_a_mark_with_a_word_says_how_the_run_stands(tmp_path, changes, kind):
    """D8, D9: by copies, by the log, by the style's interval; not by colour alone."""
    evaluation = replace(EVALUATION, **changes)
    assert report_evidence.standing(evaluation).kind == kind
    seen = Seen(page_of(reported_run(tmp_path / "rose", evaluation)))
    marks = [data for around, data in seen.texts if ("strong", {}) in around and data in report_parts.MARKS.values()]
    assert marks == [report_parts.MARKS[kind]]


def test_copies_are_called_out_with_threshold_and_false_alarms(tmp_path):
    """D9."""
    said = Seen(page_of(reported_run(tmp_path / "rose", replace(EVALUATION, copies=COPIED)))).text
    assert "1 of 3 pictures is called a copy: a.png." in said
    assert "is called a copy if its likeness to a learnt photograph is above 0.60. Likeness is x." in said
    assert "as many comparisons as 47 unseen pieces give: at most 1 in 48 new designs is called a copy" in said
    none = Seen(page_of(reported_run(tmp_path / "other"))).text
    assert "None of 2 pictures is called a copy." in none and "above 0.61. Likeness is correlation of threads." in none
    refused = replace(EVALUATION, copies=CopyCheck(refusal="the photographs are gone."))
    assert "not measured: the photographs are gone." in Seen(page_of(reported_run(tmp_path / "third", refused))).text


def test_the_first_page_of_neighbours_is_open_and_the_others_are_folded(run):
    """D9: every pair stands in numbers below."""
    page = page_of(run)
    assert page.index("evaluation/nearest.jpg") < page.index("the next pages") < page.index("evaluation/nearest-2.jpg")
    seen = Seen(page)
    values = [float(str(around[-1][1]["value"])) for around, _ in seen.texts if around[-1][0] == "data"]
    assert {pair.likeness for pair in PAIRS} | {0.6134, 0.31} <= set(values)


def test_the_choice_of_a_checkpoint_is_shown_whatever_columns_it_has(tmp_path):
    """D9."""
    choice = {**EVALUATION.choice, "rule": "the earliest that is good enough", "standard_error": 0.0061, "odd": None}
    choice["rows"] = [*choice["rows"], {"step": 4, "clarity of <lines>": [1, 2]}, "no row"]
    page = page_of(reported_run(tmp_path / "rose", replace(EVALUATION, choice=choice)))
    said = Seen(page).text
    assert "Take step 3: it copies nothing." in said and "The earliest that is good enough" in said
    assert "★ 3" in said and "0.5200 (0.4900 to 0.5500)" in said and "clarity of <lines>" in said and "0.0061" in said
    assert page.count("class=advised") == 1


def test_what_people_said_is_shown_as_it_was_given(run):
    """P24."""
    rows = [{"chosen": "LoRA", "times": 19}, {"chosen": "base", "why": "<i>"}]
    said = ["19 of 30: not yet more than chance."]
    people = [{"title": "Blind <pairs>", "sentences": said, "file": "evaluation/b.jsonl", "rows": rows}, {}]
    said = Seen(page_of(run, people=people)).text
    assert (
        "What people said Blind <pairs> 19 of 30: not yet more than chance." in said
        and "from evaluation/b.jsonl" in said
    )
    assert "What people said" not in Seen(page_of(run)).text
    run.blind_answers.write_text("{}\n")
    assert "Answers are kept in evaluation/blind.jsonl" in Seen(page_of(run)).text


def test_scores_of_another_adapter_are_told_to_be_old(tmp_path):
    """D8."""
    old = replace(EVALUATION, facts={"adapter_digest": "cd" * 32})
    assert "trained on since it was measured" in Seen(page_of(reported_run(tmp_path / "old", old))).text
    assert "trained on since" not in Seen(page_of(reported_run(tmp_path / "new"))).text


# -- designs, settings, times --


def test_sheets_come_newest_first_and_those_with_favourites_are_not_hidden(run, tmp_path):
    """L6: of eight sheets four are shown, the starred one among them though it is the oldest."""
    import os

    for number in range(7):
        folder = run.sheets / f"later-{number}"
        shutil.copytree(run.sheet("sheet").root, folder)
        (folder / "starred.json").unlink()
        for file in folder.iterdir():
            os.utime(file, (2e9 + number, 2e9 + number))
    seen = Seen(page_of(run))
    headings = [data for around, data in seen.texts if around[-1][0] == "h3"]
    assert [name for name in headings if name.startswith(("sheet", "later"))] == [
        "later-6", "later-5", "later-4", "sheet"
    ]  # fmt: skip
    assert "1 design, 1 starred ★: 0" in seen.text and "Other sheets: images/later-3, images/later-2" in seen.text
    assert "★ sheet/0, straight" in seen.text and "seam score 1.06" in seen.text


def test_settings_that_differ_from_their_default_come_first(tmp_path):
    """L20."""
    page = page_of(reported_run(tmp_path / "rose", rank=32))
    changed_ones, _, rest = page[page.index("the settings that ran") :].partition("settings have their defaults")
    assert "<code>rank</code>" in changed_ones and "<code>alpha</code>" not in changed_ones
    assert "<code>alpha</code>" in rest and "<code>rank</code>" not in rest


def test_times_and_memory_are_those_of_the_log_and_the_record(run):
    """L20: four steps of half a second; money only where the record knows it."""
    said = Seen(page_of(run)).text
    assert "0.50 s, from log.jsonl" in said and "2 s for 4 steps" in said and "9.80 GB, from run.json" in said
    assert "cost usd" not in said
    run.record.write_text(json.dumps(json.loads(run.record.read_text()) | {"cost_usd": 0.35}))
    assert "cost usd 0.35, from run.json" in Seen(page_of(run)).text


# -- what it weighs --


def test_a_page_of_sheets_of_large_designs_can_be_mailed(run):
    """C13: pictures that hardly compress, four sheets of 24 designs; below 6 MB, and none of the first is lost."""
    drawn = numpy.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=numpy.uint8)
    noise = Image.fromarray(drawn).resize((1600, 1200), Image.Resampling.BILINEAR)
    paths = [run.pairs, run.film_strip, *(run.nearest(page) for page in range(1, 6)), run.evaluation / "grid/grid.png"]
    for number in range(3):
        shutil.copytree(run.sheet("sheet").root, run.sheets / f"sheet-{number}")
    paths += [sheet / "contact_sheet.png" for sheet in run.sheets.iterdir()]
    paths += [sheet / "refined_output_000_repeat.png" for sheet in run.sheets.iterdir()]
    noise.save(paths[0], compress_level=1)
    for path in paths[1:]:
        shutil.copy(paths[0], path)
    page = page_of(run)
    assert len(page) < 6_000_000
    assert page.count("<img ") >= 12 and "4 more pages" not in page and "1 more pages" in page


def test_pictures_share_one_budget_and_what_has_no_room_is_named(tmp_path):
    """C13."""
    noise = Image.effect_noise((300, 300), 90).convert("RGB")
    for name in ("a.png", "b.png"):
        noise.save(tmp_path / name)
    pictures = report_parts.Pictures(tmp_path, most_bytes=60_000)
    first, second = (pictures.figure(tmp_path / name, "noise", most_bytes=50_000) for name in ("a.png", "b.png"))
    assert "<img" in first
    assert "<img" not in second and "see b.png; with it this page would be too large to mail" in second


def test_wide_pictures_are_shrunk(run):
    """C13: the strip is 3000 px wide."""
    widths = [int(str(found["width"])) for tag, found in Seen(page_of(run)).tags if tag == "img"]
    assert max(widths) == 1600


def test_a_link_brings_nothing_in(run, tmp_path):
    """C10: a picture elsewhere on this computer is not put on the page."""
    Image.new("RGB", (30, 30), "red").save(tmp_path / "private.png")
    run.pairs.unlink()
    run.pairs.symlink_to(tmp_path / "private.png")
    assert "Base model and LoRA" not in page_of(run)


# -- whatever stands in the folder --

ALLOWED = set(
    "html head meta title style body header h1 h2 h3 p table thead tbody tr th td code strong span nav a section "
    "figure figcaption div img svg path circle text rect line polyline data details summary ol li br".split()
)


def sound(page: str) -> None:
    """Nothing in the run became a tag, and nothing can run."""
    seen = Seen(page)
    assert {tag for tag, _ in seen.tags} <= ALLOWED
    assert not [name for _, found in seen.tags for name in found if name.startswith("on")]
    assert page.endswith("</body></html>\n")


WRONG = [b"", b"{", b"[]", b"null", b"3", b'"a"', b"\xff\xfe\x00", b'{"a": 1e999}', b"[" * 50_000,
         b"<script>alert(1)</script>",
         b'{"step": "<script>", "total": [1], "versions": [], "settings": 4, "scores": [[]], "updated": 1}',
         b'{"index": 0, "refined": "refined_output_000.png", "seam": "x", "repeat": {}, "prompt": ["<script>"]}',
         b"x: [1\ny: 2", b"rank: {a: [b, [c]]}\n4: <script>\n", b"w" * 2_000_000]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return reported_run(tmp_path_factory.mktemp("fuzz") / "rose")


def names_of(run: RunFolder) -> list[Path]:
    return sorted(path for path in run.root.rglob("*") if path.is_file() and path != run.report)


@pytest.mark.parametrize("place", range(len(WRONG) + 3))
def test_any_file_may_hold_anything(whole, place):
    """C13: each file of the run in turn is replaced, cut, or a folder; there is a page each time."""
    for path in names_of(whole):
        kept = path.read_bytes()
        try:
            if place == len(WRONG):
                path.write_bytes(kept[: len(kept) // 2])
            elif place == len(WRONG) + 1:
                path.write_bytes(random.Random(0).randbytes(200))
            elif place == len(WRONG) + 2:
                path.unlink()
                if path != whole.record:
                    path.mkdir()
                else:
                    continue
            else:
                path.write_bytes(WRONG[place])
            page = report.write(whole).read_text(encoding="utf-8")
            sound(page)
            assert len(page) < 400_000, path
        finally:
            if path.is_dir():
                path.rmdir()
            path.write_bytes(kept)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "\ud800", 10**400, "9" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
JSON_FILES = ("run.json", "adapter/adapter.json", "evaluation/scores.json", "log.jsonl", "images/sheet/images.jsonl",
              "images/sheet/starred.json", "config.yaml")  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_may_be_of_any_kind(whole, data):
    """C13: a value somewhere in a file of the run is replaced by another; the page is there and nothing runs in it."""
    name = data.draw(st.sampled_from(JSON_FILES))
    path = whole.root / name
    kept = path.read_bytes()
    if name == "config.yaml":
        told: Any = {"rank": 16, "prompts": ["a"], "resolution": 96}
    else:
        told = [json.loads(line) for line in kept.splitlines()] if name.endswith("l") else json.loads(kept)
    here = told
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(here[key], dict | list) and here[key]) or data.draw(st.booleans()):
            break
        here = here[key]
    here[key] = data.draw(VALUES)
    rows = told if name.endswith("l") and name != "config.yaml" else [told]
    try:
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
        sound(report.write(whole).read_text(encoding="utf-8"))
    finally:
        path.write_bytes(kept)


def test_what_is_broken_leaves_a_note_and_the_rest_stays(run):
    """C13."""
    run.scores.write_text("{}")
    run.nearest(1).write_bytes(b"\x89PNG but no more")
    run.sheet("sheet").contact_sheet.write_bytes(run.sheet("sheet").contact_sheet.read_bytes()[:60])
    said = Seen(page_of(run)).text
    assert "evaluation/scores.json cannot be understood. Write it again: lace-lora evaluate" in said
    assert "The picture images/sheet/contact_sheet.png is left out" in said and "For the engineer" in said


def test_a_run_without_scores_still_reads_its_evaluation_back(run):
    """The fixture is what Evaluation itself writes."""
    assert Evaluation.read(run) is not None
