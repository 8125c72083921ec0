"""A folder made of claims: prompts, splits, drawings, dataset, made again the same (P1–P5, P7–P12, P20, P22)."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from benchmarks.claims import generated, written
from lace_lora import (
    annotations,
    checkpoint,
    claim_dataset,
    claim_folder,
    claim_links,
    claim_prompts,
    claim_splits,
    claims,
    config,
    main,
    patent_example,
    patent_recipe,
    prompt_files,
)
from lace_lora.claim_folder import Made, Wishes
from lace_lora.demo import mechanism
from lace_lora.errors import MachineError, RunError, SettingsError
from lace_lora.families import sdxl
from tests.training import quietly

RECIPE = patent_recipe.read()
ROWS = [
    {"claim_id": "1", "category": "star wheel", "claim_text": "A wheel, comprising: a hub; and nine teeth."},
    {"claim_id": "2", "claim_text": "The wheel of claim 1, wherein a tooth is bent."},
    {"claim_id": "3", "category": "knob", "claim_text": "A knob, comprising a member of brass, see FIG. 3."},
]


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Made:
    """The example that ships, tokenised by nobody's tokenizer."""
    folder = tmp_path_factory.mktemp("patent")
    return claim_folder.make(
        [patent_example.write(folder / "in", side=96)], folder / "out", Wishes(RECIPE), say=quietly
    )


def linked(folder: Path, rows=ROWS) -> claim_links.Linked:
    path = folder / "claims.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return claim_links.linked(claims.read([path], RECIPE), RECIPE)


# -- prompts --


def test_three_claims_give_three_prompts_with_category_and_main_feature(tmp_path):
    """P1, P5: a dependent claim has its parent's category, its own feature first and then its parent's."""
    found = claim_prompts.claims_to_prompts(linked(tmp_path).claims, RECIPE)
    assert [one.text for one in found] == [
        "<patentline> Patent drawing of star wheel illustrating a hub, black lines on a white ground, nine teeth",
        "<patentline> Patent drawing of star wheel illustrating a tooth is bent, black lines on a white ground, a hub",
        "<patentline> Patent drawing of knob illustrating a part of brass, black lines on a white ground",
    ]
    assert [one.subset for one in found] == ["star wheel", "star wheel", "knob"]
    assert found[2].claim.text == ROWS[2]["claim_text"] and found[2].claim.figures == ("3",)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{main_feature} by {inventor}", "no field 'inventor'; the fields are category, main_feature, details"),
        ("{main_feature", "cannot be read"), ("a {category}", "does not say {main_feature}"),
        ("{main_feature:>10}", "formats a field"), ("{} {main_feature}", "no field ''"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_filled_says_which_fields_there_are(template, said):
    """P5."""
    with pytest.raises(SettingsError) as caught:
        RECIPE.changed(template=template)
    assert said in str(caught.value) and "category, main_feature" in str(caught.value)


def test_a_template_of_ones_own_is_filled_and_leaves_no_stray_signs(tmp_path):
    """P5: empty fields leave no commas; braces of a claim's text are its own, also in a prompts file."""
    rows = [{"claim_id": "1", "claim_text": "A set {a|b}, comprising a pin {c|d}.", "category": "set"}]
    recipe = RECIPE.changed(template="{title}, {main_feature}, {details}, {figures}; {patent_id}.", concept_token="<x>")
    (found,) = claim_prompts.claims_to_prompts(linked(tmp_path, rows).claims, recipe)
    assert found.text == "<x> a pin {c|d}." and found.as_query == "<x> a pin \\{c\\|d\\}."


@given(
    st.lists(st.text("abcdefg hijkl", min_size=1, max_size=60), min_size=1, max_size=12), st.integers(16, 75)
)  # fmt: skip
@examples(max_examples=60)
def test_a_prompt_never_takes_more_than_its_budget_and_loses_its_end_first(features, budget):
    """P5, P7: any features; what does not fit is told, and the main feature's first word always stays."""
    features = [" ".join(one.split()) for one in features if one.split()] or ["pin"]
    claim = claim_links.Claim("row 2", ("", "1"), "", "", "hub", (), ("", "1"), tuple(features), (), (), "", "en", None)
    count = lambda text: len(text.split())  # noqa: E731
    recipe = RECIPE.changed(budget=budget)
    (found,) = claim_prompts.claims_to_prompts([claim], recipe, count)
    assert found.tokens == count(found.text) <= max(budget, 15)
    assert features[0].startswith(found.main_feature) and found.main_feature
    assert list(found.details) == list(dict.fromkeys(features))[1 : len(found.details) + 1]
    whole = count(RECIPE.template.format(category="hub", main_feature=" ".join(features), details="")) + 1
    assert bool(found.lost) == (
        found.main_feature != features[0] or len(found.details) < len(dict.fromkeys(features)) - 1
    )
    assert not found.lost or whole > budget - 2


def test_negative_prompts_follow_the_category(tmp_path):
    """P3: the recipe's own, and what it adds for a word."""
    rows = [ROWS[0], {"claim_id": "4", "category": "method", "claim_text": "A method, comprising the steps of a, b."}]
    plain, method = claim_prompts.claims_to_prompts(linked(tmp_path, rows).claims, RECIPE)
    assert plain.negative == RECIPE.negative_prompt
    assert method.negative == f"{RECIPE.negative_prompt}, {RECIPE.negative_by_word['method']}"


# -- splits --


@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), st.integers(0, 5))
@examples(max_examples=60)
def test_no_patent_stands_on_two_sides_and_sizes_are_as_near_as_whole_patents_allow(patents, seed):
    """P8: any number of claims of any patents; the same again for the same seed."""
    found = [
        claim_links.Claim("", (f"US{one}", str(n)), "", "", "x", (), (f"US{one}", str(n)), (), (), (), "", "en", None)
        for n, one in enumerate(patents)
    ]
    splits = claim_splits.split(found, seed=seed)
    sides = {one.patent_id: {splits[other.key] for other in found if other.patent_id == one.patent_id} for one in found}
    assert all(len(side) == 1 for side in sides.values())
    largest = max(patents.count(one) for one in patents)
    for name in ("validation", "test"):
        share = sum(side == name for side in splits.values())
        assert share <= len(found) / 2 and (share - 0.1 * len(found) <= largest)
        assert 0.1 * len(found) - share <= max(largest, 1)
    assert claim_splits.split(found[::-1], seed=seed) == splits


def test_without_patents_a_tree_of_claims_stays_together_and_so_do_claims_of_one_drawing(tmp_path):
    """P8: by tree where there is no patent_id; a drawing learnt from is not measured by."""
    found = linked(tmp_path).claims
    assert claim_splits.groups_of(found) == [(("", "1"), ("", "2")), (("", "3"),)]
    same = {("", "2"): "digest", ("", "3"): "digest"}
    assert len(claim_splits.groups_of(found, same)) == 1


@pytest.mark.parametrize("shares", [(0.8, 0.1), (0.9, 0.2, 0.1), (0.2, 0.4, 0.4), (1.2, -0.1, -0.1)])
def test_shares_that_cannot_be_are_refused(shares):
    """P8."""
    with pytest.raises(SettingsError, match=r"three numbers that add up to 1, the first at least 0.5"):
        claim_splits.split((), shares)


# -- the folder --


def test_the_example_is_whole_and_its_faults_are_named(example):
    """P1, P4, P8, P12: 55 claims of ten patents, three rows with a fault, whole patents held out."""
    assert len(example.prompts) == 55 and example.rows == 58
    assert [fault.kind for fault in example.faults] == ["language", "parent missing", "no claim"]
    sides = {key[0]: side for key, side in example.splits.items()}
    assert all(sides[key[0]] == side for key, side in example.splits.items()) and len(sides) == 10
    assert sorted(sides.values()).count("train") == 8 and not example.not_drawings
    told = (example.folder / "faults.csv").read_text(encoding="utf-8-sig").splitlines()
    assert told[0] == "place,field,reason" and len(told) == 4


def test_the_other_commands_read_what_is_written(example):
    """P2, P3, P20, P22: annotations, prompts with subsets and references, and settings, each by its own reader."""
    learnt = annotations.read_annotations(example.folder / "drawings/train")
    keys = [key for key, side in example.splits.items() if side == "train"]
    assert len(learnt) == len(keys) == 43
    assert {one.caption for one in learnt} == {one.text for one in example.prompts if one.claim.key in keys}
    asked = prompt_files.read(example.folder / "prompts.csv")
    held = [one for one in example.prompts if one.claim.key not in keys]
    assert [(one.prompt, one.subset) for one in asked] == [(one.as_query, one.subset) for one in held]
    assert all(one.negative_prompt == RECIPE.negative_prompt for one in asked[:3])
    for one, prompt in zip(asked, held, strict=True):
        assert checkpoint.sha256(Path(one.reference_path)) == checkpoint.sha256(prompt.claim.reference)
    settings = config.load(example.folder / "patent.yaml")
    assert settings.images_dir == str(example.folder / "drawings/train") and settings.random_flip is False
    assert settings.prompts_file == str(example.folder / "prompts.csv") and settings.image_types == (".png",)
    assert settings.concept_token in settings.instance_prompt


def test_a_claim_without_a_drawing_is_kept_for_prompts_and_counted(tmp_path):
    """P2, P4: as is one whose drawing is none; both are said."""
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 70, 70), outline="red", width=6)
    picture.save(tmp_path / "red.png")
    mechanism.write(mechanism.Part("ring nut"), tmp_path / "nut.png", side=96)
    linked(tmp_path, [ROWS[0] | {"reference_path": "red.png"}, ROWS[1] | {"reference_path": "nut.png"}, ROWS[2]])
    said = []
    wishes = Wishes(RECIPE, drawn="all")
    made = claim_folder.make([tmp_path / "claims.jsonl"], tmp_path / "out", wishes, dataset=False, say=said.append)
    assert len(made.prompts) == 3 and list(made.drawings) == [("", "2")]
    assert "! red.png is no line drawing and is not used: " in said[0] and "in colour (0.5% at most)" in said[0]
    assert "1 of claims, 1 pictures to learn from, 2 claims without one (for prompts only)" in repr(made)
    asked = prompt_files.read(tmp_path / "out/prompts.csv")
    assert [one.reference_path is not None for one in asked] == [False, True, False]
    assert not (tmp_path / "out/dataset").exists()


def test_made_again_it_is_the_same_and_what_a_person_wrote_is_kept(tmp_path):
    """P12: the same bytes but for the other program's own files; a caption that was corrected stays beside."""
    file = patent_example.write(tmp_path / "in", side=64)
    first = claim_folder.make([file], tmp_path / "a", Wishes(RECIPE, seed=3), say=quietly)
    again = claim_folder.make(
        [file], tmp_path / "b", claim_folder.wishes_of(tmp_path / "a/dataset_config.json"), say=quietly
    )
    assert again.config == first.config and again.splits == first.splits and len(first.config["dataset"]) == 64
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    same = [name for name in names if name.parts[0] != "dataset" and name.name != "patent.yaml"]
    assert len(same) > 55 and all(
        (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in same
    )
    notes = tmp_path / "a/drawings/train/annotations.txt"
    notes.write_text("mine\tcaption\n", encoding="utf-8")
    (tmp_path / "a/drawings/train/own.png").write_bytes(b"mine")
    claim_folder.make([file], tmp_path / "a", Wishes(RECIPE, seed=4), say=quietly)
    assert notes.with_name("annotations.txt.bak").read_text(encoding="utf-8") == "mine\tcaption\n"
    left = {path.name for path in (tmp_path / "a/drawings").rglob("*.png")}
    assert "own.png" in left and len(left) == 56  # those of the earlier split are not there twice


def test_a_cut_while_drawings_are_copied_leaves_none_that_the_next_time_does_not_know(tmp_path, monkeypatch):
    """P12: killed after some, made again with another split: each drawing is there once."""
    file = patent_example.write(tmp_path / "in", side=64)
    write, done = checkpoint.write_bytes, []

    def cut(path, data):
        if path.suffix == ".png":
            done.append(path)
            if len(done) > 50:  # also some that another seed puts on another side
                raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes", cut)
    with pytest.raises(KeyboardInterrupt):
        claim_folder.make([file], tmp_path / "a", Wishes(RECIPE), dataset=False, say=quietly)
    monkeypatch.undo()
    assert not (tmp_path / "a/dataset_config.json").exists()
    claim_folder.make([file], tmp_path / "a", Wishes(RECIPE, seed=4), dataset=False, say=quietly)
    assert len(list((tmp_path / "a/drawings").rglob("*.png"))) == 55


def test_where_all_belongs_together_prompts_are_written_of_all(tmp_path):
    """P1, P8: one patent cannot be split."""
    linked(tmp_path, [row | {"patent_id": "US1"} for row in ROWS])
    said = []
    made = claim_folder.make(
        [tmp_path / "claims.jsonl"], tmp_path / "o", Wishes(RECIPE), dataset=False, say=said.append
    )
    assert made.config["prompts"] == 3 and any("no claim is held out" in line for line in said)


def test_where_nothing_can_be_used_it_says_why(tmp_path):
    """P10."""
    (tmp_path / "claims.jsonl").write_text('{"claim_id": "1", "claim_text": "nice"}', encoding="utf-8")
    with pytest.raises(SettingsError, match="None of the claims can be used: line 1, claim_text: has none of the wor"):
        claim_folder.make([tmp_path / "claims.jsonl"], tmp_path / "o", Wishes(RECIPE), say=quietly)
    assert (tmp_path / "o/faults.csv").is_file()


# -- the dataset --


def test_the_dataset_opens_with_its_own_library_and_holds_what_both_tokenizers_give(tmp_path, tiny_sdxl):
    """P7, P8, P9: load_from_disk; ids equal to those of the tokenizers, 77 long, also where a prompt is too long."""
    import datasets

    tokenizers = sdxl.load_tokenizers(str(tiny_sdxl))
    rows, _ = generated(60)
    made = claim_folder.make(
        [written(rows, tmp_path)], tmp_path / "o", Wishes(RECIPE), tokenizers=tokenizers, say=quietly
    )
    found = datasets.load_from_disk(str(tmp_path / "o/dataset"))
    assert {name: len(found[name]) for name in found} == made.config["split"]["sizes"]
    assert sum(made.config["split"]["sizes"].values()) == 57
    for one in [row for name in found for row in found[name]][::7]:
        for column, tokenizer in zip(claim_dataset.IDS, tokenizers, strict=True):
            expected = tokenizer(one["prompt"], padding="max_length", max_length=77, truncation=True).input_ids
            assert one[column] == expected and len(expected) == 77
        # The tiny tokenizer cuts every letter apart: nearly nothing fits, and all of the rest is told.
        assert one["lost"] and one["claim_text"] and one["tokens"] == sdxl.count_tokens(tokenizers, one["prompt"])
    patents = {name: set(found[name]["patent_id"]) for name in found}
    assert not (patents["train"] & patents["test"] or patents["train"] & patents["validation"])
    assert claim_dataset.digest(found) == made.config["dataset"]


def test_the_same_rows_from_a_table_and_from_json_lines_give_equal_datasets(tmp_path):
    """P9: by the digest of all that they hold; another row gives another."""
    rows, _ = generated(40)
    table = written(rows, tmp_path)
    lines = tmp_path / "claims.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = [claim_folder.make([file], tmp_path / f"o{n}", Wishes(RECIPE), say=quietly).config["dataset"]
             for n, file in enumerate((table, lines))]  # fmt: skip
    assert found[0] == found[1]
    lines.write_text("\n".join(json.dumps(row) for row in rows[:-2]), encoding="utf-8")
    assert claim_folder.make([lines], tmp_path / "o", Wishes(RECIPE), say=quietly).config["dataset"] != found[0]


def test_without_the_package_it_says_what_to_type_before_anything_is_written(tmp_path, monkeypatch):
    """P7."""
    monkeypatch.setattr(claim_dataset.importlib.util, "find_spec", lambda name: None)
    linked(tmp_path)
    with pytest.raises(MachineError, match=r"package datasets, .* Type pip install datasets .* --no-dataset"):
        claim_folder.make([tmp_path / "claims.jsonl"], tmp_path / "o", Wishes(RECIPE), say=quietly)
    assert not (tmp_path / "o").exists()


# -- the recipe and the command --


def test_a_recipe_of_ones_own_changes_what_it_names(tmp_path):
    """P3, P5, P11."""
    (tmp_path / "terms.yaml").write_text("terms: {hub: core}", encoding="utf-8")
    own = patent_recipe.read(tmp_path)
    assert own.terms == {"hub": "core"} and own.template == RECIPE.template and own.digest != RECIPE.digest
    (tmp_path / "heuristics.yaml").write_text("languge: en\nleast_letters: many\nclaim_words: ['(']", encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        patent_recipe.read(tmp_path)
    assert "no value called 'languge'; did you mean language?" in str(caught.value)
    assert "least_letters: " in str(caught.value) and "'(' is no regular expression" in str(caught.value)
    with pytest.raises(SettingsError, match="There is no recipe in"):
        patent_recipe.read(tmp_path / "none")


def said(capsys, *words) -> tuple[int, str, str]:
    code = main.run(["claims", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_makes_the_example_and_says_what_comes_next(tmp_path, monkeypatch, capsys):
    """P1, P27: without a file, on the demo's tokenizers; a second time like the first one."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = said(capsys, "--output", "a", "--pretrained-model", "lace-demo", "--no-dataset", "--seed", "1")
    assert code == 0 and "55 claims of 58 rows can be used" in out
    assert "set aside   1 × language, 1 × parent missing, 1 × no claim" in out
    assert "row 57, claim_text: is in another language (fr, not en)" in out
    assert "Next: lace-lora train --config a/patent.yaml, then" in out
    values = yaml.safe_load((tmp_path / "a/patent.yaml").read_text(encoding="utf-8"))
    assert Path(values["images_dir"]).is_dir() and 0 < len(values["prompts"]) <= claim_folder.MEASURED
    again = ("a/example/claims.csv", "--output", "b", "--like", "a/dataset_config.json", "--no-dataset")
    assert said(capsys, *again, "--pretrained-model", "lace-demo")[0] == 0
    assert (tmp_path / "a/claims.jsonl").read_bytes() == (tmp_path / "b/claims.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lost.csv"], "There is no claims file lost.csv"),
        (["--shares", "a,b"], "--shares is 'a,b'; give three numbers such as 0.8,0.1,0.1."),
        (["--prompts-of", "some"], "Prompts can be written of: held-out, all, train, validation, test; not of 'some'."),
        (["--template", "{x}"], "the template has no field 'x'; the fields are"),
        (["--like", "lost.json"], "lost.json is no dataset_config.json that can be read (No such file"),
        (["--like", "a", "--recipe", "b"], "Give one of --like and --recipe."),
    ],
)  # fmt: skip
def test_the_command_refuses_in_a_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    """P5, P27."""
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, *words, "--output", "out", "--no-dataset", "--pretrained-model", "lace-demo")
    assert code == 1 and sentence in err and "Traceback" not in err


def test_an_output_that_is_a_file_is_said(tmp_path):
    """P12."""
    linked(tmp_path)
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="Choose another --output"):
        claim_folder.make([tmp_path / "claims.jsonl"], tmp_path / "out", Wishes(RECIPE), dataset=False, say=quietly)
