"""A sweep's file: which combinations it stands for, their names, and all mistakes at once (L12, P17)."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trying
from hypothesis import strategies as some

from lace_lora import config, sweep
from lace_lora.errors import SettingsError

NOTEBOOKS = {"rank", "learning_rate", "run_name", "max_train_steps", "preset"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, shared: dict[str, Any] | None = None, verbs: tuple[str, ...] = ("train",), **more: Any) -> Any:
    path = Path("rose.yaml")
    path.write_text(text, encoding="utf-8")
    return sweep.read(path, shared or {}, verbs, **more)


def wrong(text: str, **more: Any) -> list[str]:
    with pytest.raises(SettingsError) as error:
        read(text, **more)
    return str(error.value).splitlines()


def test_a_grid_is_every_value_with_every_other_and_the_list_goes_together() -> None:
    """L12: by hand: two rows, two ranks, two rates are eight combinations."""
    text = """
        parameters: {max_train_steps: 20, run_name: rose}
        grid: {rank: [8, 16], learning_rate: [1e-4, 5e-5]}
        list: [{resolution: 512}, {resolution: 768, train_batch_size: 1}]
    """
    found = read(text)
    assert found.varying == ("resolution", "rank", "learning_rate", "train_batch_size")
    rows = [tuple(one.varied.get(name) for name in ("resolution", "train_batch_size")) for one in found.combinations]
    assert rows == [(512, None)] * 4 + [(768, 1)] * 4
    grid = [(one.varied["rank"], one.varied["learning_rate"]) for one in found.combinations]
    assert grid == list(itertools.product((8, 16), (1e-4, 5e-5))) * 2
    first = found.combinations[0]
    assert first.name == "rose-resolution-512-rank-8-learning_rate-0.0001" == first.settings["run_name"]
    assert first.settings == {
        "max_train_steps": 20, "resolution": 512, "rank": 8, "learning_rate": 1e-4, "run_name": first.name,
    }  # fmt: skip
    assert {type(one.settings["learning_rate"]) for one in found.combinations} == {float}


def test_what_is_given_beside_the_file_stands_for_all() -> None:
    """P17: -p max_train_steps 3."""
    found = read("grid: {rank: [8, 16]}", {"max_train_steps": "3"})
    assert [one.settings["max_train_steps"] for one in found.combinations] == [3, 3]
    assert [one.name for one in found.combinations] == ["rose-rank-8", "rose-rank-16"]


def test_a_sweep_that_only_draws_has_a_sheet_for_each_combination() -> None:
    """L12: one run, many sheets; its name is not touched."""
    found = read("parameters: {run_name: lace}\ngrid: {lora_scale: [0.5, -1]}", verbs=("generate",))
    assert [one.settings["sheet_name"] for one in found.combinations] == ["rose-lora_scale-0.5", "rose-lora_scale--1"]
    assert {one.settings["run_name"] for one in found.combinations} == {"lace"}


def test_names_may_be_given_by_the_file() -> None:
    """L12."""
    found = read("list: [{run_name: small, rank: 4}, {run_name: large, rank: 64}]")
    assert [(one.name, one.settings["run_name"]) for one in found.combinations] == [("small",) * 2, ("large",) * 2]


def test_all_that_is_wrong_is_said_at_once() -> None:
    """L12, P17: unknown names and bad values are refused before anything runs."""
    text = """
        parametres: {}
        rank: 3
        parameters: {lerning_rate: 1, seed: -1, preset: dmeo, dpi: null}
        grid: {rnak: [1], rank: [500, 8, many], alpha: 4, learning_rate: [1e-4]}
        list: [{learning_rate: 1e-5}, {train_batch_size: 0, resolution: 1004}]
        slurm: {partitoin: gpu, minutes: 0, gpus: many}
    """
    lines = wrong(text)
    assert all(line.startswith("rose.yaml: ") for line in lines)
    said = "\n".join(line.removeprefix("rose.yaml: ") for line in lines)
    for sentence in (
        "no part called 'parametres'; did you mean parameters? There are: parameters, grid, list, slurm.",
        "no part called 'rank'; it is a setting: write it below parameters.",
        "parameters: no setting called 'lerning_rate'; did you mean learning_rate?",
        "parameters: seed is -1 but must be",
        "parameters: No preset called 'dmeo'; did you mean demo?",
        "parameters: dpi is empty; give it a value.",
        "grid: no setting called 'rnak'; did you mean rank?",
        "grid: rank is 500 but must be 1 to 128.",
        "grid: rank is 'many'",
        "grid: alpha needs a list of values, such as alpha: [1, 2].",
        "learning_rate stands in the grid and in the list; keep one.",
        "list: train_batch_size is 0 pictures but must be",
        "list: resolution is 1004 px but must be a multiple of 8; use 1000 or 1008",
        "slurm: nothing is called 'partitoin'; did you mean partition?",
        "slurm: minutes is 0: input should be greater than or equal to 1.",
        "slurm: gpus is 'many':",
    ):
        assert sentence in said, sentence
    assert len(lines) == 16


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid: {rank: [8, 16]}\nparameters: {rank: 4}", "rank varies, and stands below parameters too; keep one."),
        ("grid: {rank: [8, 8]}", "combinations 1 and 2 are both called 'rose-rank-8'"),
        ("list: [{run_name: Lace}, {run_name: lace, rank: 2}]", "combinations 1 and 2 are both called 'lace'"),
        ("parameters: {rank: 8}", "there is nothing to vary: it needs a grid or a list."),
        ("list: [{}]", "there is nothing to vary"),
        ("grid: 3", "grid must hold `name: value` lines."),
        ("list: {rank: 3}", "list must hold entries such as"),
        ("- 1", "is no sweep: it needs a `grid:`"),
        ("grid: {rank: [1, 2]", "at line"),
        (f"grid: {{seed: {list(range(40))}, rank: {list(range(1, 41))}}}", "these are 1600 combinations"),
        ("grid: {1: [2]}", "no setting called '1'"),
    ],
)
def test_a_file_that_will_not_do_is_a_sentence(text: str, sentence: str) -> None:
    """L12."""
    assert sentence in "\n".join(wrong(text))


def test_what_is_given_twice_or_taken_by_no_notebook_is_refused() -> None:
    """P17."""
    assert "rank varies, and is given beside the file too" in wrong("grid: {rank: [1, 2]}", shared={"rank": 3})[0]
    (line,) = wrong("grid: {rank: [1, 2], use_dora: [true, false]}", verbs=(), taken=NOTEBOOKS)
    assert "use_dora is a setting, but no notebook takes it" in line and "--verbs train,generate" in line
    assert "share one folder" in wrong("grid: {rank: [1, 2]}", verbs=(), taken={"rank"})[0]
    assert read("grid: {rank: [1, 2]}", verbs=(), taken=NOTEBOOKS).verbs == ()


def test_verbs_are_known_and_each_combination_writes_something_of_its_own() -> None:
    """L12."""
    assert sweep.checked_verbs(["check", "train", "generate"]) == ("check", "train", "generate")
    with pytest.raises(SettingsError, match="there is no 'trian'; did you mean train"):
        sweep.checked_verbs(["trian"])
    with pytest.raises(SettingsError, match="needs train or generate"):
        sweep.checked_verbs(["evaluate"])
    with pytest.raises(SettingsError, match="rose.yaml cannot be read"):
        sweep.read(Path("rose.yaml"), {})


VALUES = some.one_of(some.integers(), some.floats(allow_nan=False), some.booleans(), some.text(), some.none())
VARIED = some.dictionaries(some.sampled_from(sorted(config.Config.model_fields)), VALUES, min_size=1, max_size=4)


@given(base=some.text(max_size=70), one=VARIED, other=VARIED)
@trying(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_names_are_safe_and_differ_where_settings_do(base: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    """L12: a name that the setting run_name takes, whatever stands in the file, the same each time."""
    name = sweep.name_of(base, one)
    assert config.load(run_name=name).run_name == name and len(name) <= 64 and not name.endswith((".", " "))
    assert name == sweep.name_of(base, dict(one))
    if repr(one) != repr(other) and one.keys() == other.keys() and all(type(one[n]) is type(other[n]) for n in one):
        said = [{n: sweep._said(v) for n, v in values.items()} for values in (one, other)]
        assert (said[0] == said[1]) == (name == sweep.name_of(base, other))


def test_texts_that_look_the_same_once_they_are_safe_have_names_that_differ() -> None:
    """L12."""
    texts = ["a rose?", "a rose!", "A rose?", "a rose with many leaves, 1", "a rose with many leaves, 2"]
    names = {sweep.name_of("a", {"negative_prompt": text}).casefold() for text in texts}
    assert len(names) == 5 and all(name.startswith("a-negative_prompt-a rose") for name in names)
    assert sweep.name_of("x" * 80, {"rank": 1}) != sweep.name_of("x" * 80, {"rank": 2})


def test_floats_that_differ_in_their_last_place_have_names_that_differ() -> None:
    """L12."""
    names = {sweep.name_of("a", {"learning_rate": value}) for value in (1e-4, 1.00000000001e-4, 1e-5)}
    assert len(names) == 3 and "a-learning_rate-0.0001" in names
