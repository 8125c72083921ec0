"""What finished runs took corrects the next plan on the same machine, and no other (C9, C14)."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lace_lora import config, estimate, experience, figures, inference, presets, replanning, throughput, train
from lace_lora.experience import Experience
from lace_lora.run_folder import RunFolder
from tests.test_presets import A100, LAPTOP, T4
from tests.training import quietly

QUICK = settings(max_examples=20, deadline=None)
UNHEARD = dataclasses.replace(T4, gpu_name="NVIDIA Unheard Of", vram_gb=15.0)


def planned(machine, known=experience.NOTHING, pictures=250, **overrides):
    asked = {"validate_every": 0, "sample_every": 0} | overrides
    return estimate.plan(presets.settle(config.load(**asked), machine), machine, pictures, known)


def measured(plan, times=1.0, peak_gb=0.0, **more):
    """A run whose steps took that many times what was planned."""
    steps = int(plan.config.max_train_steps)
    seconds = (plan.stage("train").seconds or steps) / steps * times
    found = figures.of_training(plan, seconds, plan.config.gradient_checkpointing, peak_gb, 0)
    return Experience(tuple(dataclasses.replace(one, **more) for one in found))


@QUICK
@given(st.floats(0.1, 10), st.sampled_from([T4, A100]), st.sampled_from(["none", "nf4"]), st.integers(1, 64))
def test_a_run_that_took_so_many_times_as_long_makes_the_next_estimate_so_many_times_as_long(
    times, machine, quantization, rank
):
    """C14: twice as long doubles it; the drawing of designs, which was not measured, stays as it was."""
    asked = {"quantization": quantization, "rank": rank}
    before = planned(machine, **asked)
    after = planned(machine, measured(before, times), **asked)
    assert after.minutes == pytest.approx(times * before.minutes)
    assert after.stage("refine").minutes == before.stage("refine").minutes
    assert (before.time_is, after.time_is) == ("estimated", "measured on your last run")
    assert "(measured on your last run)" in str(after) and "measured on your last run: train" in after.table()


def test_another_rank_and_more_pictures_are_corrected_by_the_same_share():
    """C14: the share belongs to the machine, the model, the precision and the quantization."""
    known = measured(planned(T4, rank=16), 2.0)
    for changed in ({"rank": 64}, {"resolution": 512}, {"pictures": 900}):
        pictures, rest = changed.get("pictures", 250), {k: v for k, v in changed.items() if k != "pictures"}
        times = planned(T4, known, pictures, **rest).minutes / planned(T4, pictures=pictures, **rest).minutes
        assert times == pytest.approx(2)
        told = planned(T4, known, pictures, **rest).time_is
        assert told == ("scaled from your last run" if rest else "measured on your last run")


@pytest.mark.parametrize("change", [
    {"machine": "L4"}, {"model": "demo"}, {"precision": "bf16"}, {"quantization": "nf4"}, {"stage": "generate"},
])  # fmt: skip
def test_figures_of_another_machine_model_or_precision_are_not_used(change):
    """C14."""
    before = planned(T4)
    after = planned(T4, measured(before, 3.0, **change))
    assert after.minutes == before.minutes and after.time_is == "estimated"


def test_processors_are_told_apart_by_name_and_cores():
    """A shared Drive brings the runs of several computers together."""
    named = dataclasses.replace(LAPTOP, cpu_name="Fast")
    others = [dataclasses.replace(named, cpu_name="Slow"), dataclasses.replace(named, cpu_cores=named.cpu_cores + 1)]
    assert len({throughput.kind(one) for one in (named, *others)}) == 3
    assert throughput.kind(T4) == throughput.kind(throughput.machine("T4")) == "T4"


def test_of_several_runs_the_last_one_of_the_same_settings_counts_and_runs_before_self_tests():
    """C14."""
    plan = planned(T4, rank=16)
    rows = [
        measured(planned(T4, rank=8), 5.0, at="2026-04").figures[0], measured(plan, 2.0, at="2026-01").figures[0],
        measured(plan, 3.0, at="2026-02").figures[0], measured(plan, 9.0, at="2026-03", by="selftest").figures[0],
    ]  # fmt: skip
    assert planned(T4, Experience(tuple(rows)), rank=16).minutes == pytest.approx(3 * plan.minutes)
    only_test = planned(T4, Experience((rows[3],)), rank=16)
    assert only_test.time_is == "measured" and only_test.stage("train").source.endswith("self-test of 2026-03")


def test_a_gpu_that_the_table_does_not_know_is_known_after_its_first_run():
    """C14: 625 steps of as much work as the measured one."""
    before = planned(UNHEARD)
    assert before.minutes is None
    after = planned(UNHEARD, measured(before))  # a second a step
    assert after.minutes * 60 == pytest.approx(int(after.config.max_train_steps))


@QUICK
@given(st.floats(0.85, 1.9))
def test_memory_that_was_measured_corrects_the_activations_and_only_them(share):
    """C14, D10: what was held beside weights, LoRA and optimizer."""
    before = planned(A100, gradient_checkpointing="none", train_batch_size=1)
    stage = before.stage("train")
    fixed = stage.weights_gb + stage.adapter_gb + stage.optimizer_gb + before.encoded_gb * before.cache_is_on_gpu
    known = measured(before, peak_gb=fixed + share * stage.activations_gb)
    after = planned(A100, known, gradient_checkpointing="none", train_batch_size=1).stage("train")
    assert after.activations_gb == pytest.approx(share * stage.activations_gb)
    assert after.weights_gb == stage.weights_gb and after.optimizer_gb == stage.optimizer_gb
    other = planned(A100, known, gradient_checkpointing="full", train_batch_size=1).stage("train")
    assert other == planned(A100, measured(before), gradient_checkpointing="full", train_batch_size=1).stage("train")


def test_memory_of_another_version_or_a_measurement_beyond_belief_is_not_taken_at_its_word():
    """D10: another version may have planned otherwise; half of what was counted is a mistake of the measurement."""
    before = planned(A100, train_batch_size=1)
    gib = before.stage("train").activations_gb
    wild = [planned(A100, measured(before, peak_gb=peak), train_batch_size=1) for peak in (1e-6, 1e6)]
    assert [one.stage("train").activations_gb / gib for one in wild] == pytest.approx(list(experience.SHARES))
    old = planned(A100, measured(before, peak_gb=1e6, version="0.0.0"), train_batch_size=1)
    assert old.stage("train").activations_gb == gib


# -- the file --


@pytest.fixture
def figure():
    return measured(planned(T4), 2.0, at="2026-01-01").figures[0]


def test_figures_are_kept_one_of_a_kind_and_at_most_a_hundred(tmp_path, figure):
    """C14: the file stays small however many runs there are."""
    assert experience.read(tmp_path) == experience.NOTHING
    for number in range(130):
        experience.keep(tmp_path, [dataclasses.replace(figure, detail=str(number), at=f"{number:04}")])
    experience.keep(tmp_path, [dataclasses.replace(figure, detail="60", at="9999")])
    found = experience.read(tmp_path).figures
    assert len(found) == experience.ROWS_AT_MOST and len({one.detail for one in found}) == len(found)
    assert found[-1] == dataclasses.replace(figure, detail="60", at="9999")
    assert sorted(path.name for path in tmp_path.iterdir()) == [experience.KEPT]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"figures": 3}', '{"figures": [3, {}, {"work": 1}]}', "\x00",
                                  '{"figures": ' * 5000])  # fmt: skip
@pytest.mark.parametrize("name", [experience.KEPT, experience.SELFTEST])
def test_a_damaged_file_is_ignored_and_written_anew(tmp_path, text, name, figure):
    """C14: a plan is made all the same, by estimate."""
    (tmp_path / name).write_text(text)
    assert experience.read(tmp_path) == experience.NOTHING
    experience.keep(tmp_path, [figure])
    assert experience.read(tmp_path).figures == (figure,)


@pytest.mark.parametrize(("name", "value"), [
    ("seconds", -1), ("seconds", math.nan), ("seconds", "1"), ("work", {"tflop": 0}), ("work", {"tflop": "3"}),
    ("seconds", 1e308), ("seconds", True), ("work", {"tflop": 1e300}), ("work", {"tflop": True}), ("peak_gb", 1e16),
    ("work", {"tflop": 1, "layers": -1}),
    ("machine", 3), ("peak_gb", math.inf), ("at", None), ("work", {"tflop": 1, "processes": 0}), ("work", [1]),
])  # fmt: skip
def test_a_damaged_row_is_left_out_and_its_neighbours_are_not(tmp_path, name, value, figure):
    good, bad = experience.as_rows([figure, figure])
    (tmp_path / experience.KEPT).write_text(json.dumps({"figures": [bad | {name: value}, good]}))
    assert experience.read(tmp_path).figures == (figure,)


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path, figure):
    (tmp_path / "file").write_text("")
    experience.keep(tmp_path / "file", [figure])
    assert experience.read(tmp_path / "file") == experience.NOTHING


def test_a_new_machine_learns_from_the_runs_on_drive_and_one_that_knows_does_not_look(tmp_path, figure):
    """C14: a fresh machine in Colab has no cache; a Drive that is gone tells nothing and stops nothing."""
    run = tmp_path / "drive" / "lace"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"figures": experience.as_rows([figure])}))
    assert experience.read(tmp_path / "cache", T4, tmp_path / "drive").figures == (figure,)
    assert experience.read(tmp_path / "cache", T4, tmp_path / "gone").figures == ()
    own = dataclasses.replace(figure, detail="other")
    experience.keep(tmp_path / "cache", [own])
    assert experience.read(tmp_path / "cache", T4, tmp_path / "drive").figures == (own,)


def test_a_form_reads_nothing_again_at_each_change(tmp_path, figure, monkeypatch):
    """C14: what was read with the first plan is used for all that follow."""
    experience.keep(tmp_path, [figure])
    first = planned(T4, experience.read(tmp_path))
    replan = replanning.replanner(first)
    monkeypatch.setattr(experience, "read", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(experience, "_content", lambda *_: pytest.fail("read again"))
    again = replan(config.load(validate_every=0, sample_every=0, rank=64, images_dir=first.config.images_dir))
    assert again.time_is == "scaled from your last run"  # of another rank
    assert "(scaled from your last run)" in dict(replanning.plan_summary(again))["time"]


def test_a_speed_of_the_self_test_takes_the_place_of_the_tables(tmp_path):
    """C14: twice the rate, half the time; a damaged one is left out."""
    table = throughput.of(T4)
    twice = dataclasses.asdict(table) | {"half_tflops": 2 * table.half_tflops, "source": "measured 2026-01-01, …"}
    content = {"speeds": {"T4": twice, "L4": twice | {"gb_s": -1}, "A100": 3}}
    (tmp_path / experience.SELFTEST).write_text(json.dumps(content))
    known = experience.read(tmp_path)
    assert list(known.speeds) == ["T4"]
    plan = planned(T4, known, quantization="none")
    assert plan.minutes == pytest.approx(planned(T4, quantization="none").minutes / 2)
    assert plan.time_is == "measured" and plan.as_json()["speed_is"] == "measured 2026-01-01, …"


# -- runs --


def test_a_finished_run_leaves_its_figures_and_the_next_plan_uses_them(settings, tmp_path):
    """C14: in run.json and below cache_dir; the seconds are those of run.json itself."""
    asked = settings.model_copy(
        update={"cache_dir": str(tmp_path / "cache"), "max_train_steps": 4, "validate_every": 0}
    )
    train.run(asked, say=quietly)
    record = json.loads(RunFolder.of(asked).record.read_text())
    (figure,) = experience.read(tmp_path / "cache").figures
    assert record["figures"] == experience.as_rows([figure])
    assert figure.seconds == pytest.approx(record["seconds_per_step"])
    plan = estimate.prepare(asked.model_copy(update={"max_train_steps": 1000}), say=quietly)
    assert plan.time_is == "measured on your last run"
    assert plan.minutes * 60 == pytest.approx(1000 * figure.seconds)
    newest = max(RunFolder.of(asked).checkpoints.iterdir())
    assert figure.checkpoint_bytes == sum(path.stat().st_size for path in newest.iterdir())


def test_two_steps_are_too_few_to_learn_from(settings, tmp_path):
    asked = settings.model_copy(update={"cache_dir": str(tmp_path / "cache"), "max_train_steps": 2})
    train.run(asked, say=quietly)
    assert experience.read(tmp_path / "cache") == experience.NOTHING


def test_a_sheet_leaves_figures_of_its_three_stages(asked, tmp_path):
    """C14: seconds of all its designs, without loading models, and as much work as was planned for them."""
    settings = asked(num_images=3, cache_dir=str(tmp_path / "cache"))
    assert len(inference.run(settings, say=quietly)) == 3
    found = experience.read(tmp_path / "cache").figures
    assert sorted(one.stage for one in found) == ["decode", "generate", "refine"]
    assert all(one.seconds > 0 and one.work.tflop > 0 for one in found)
    inference.run(settings, say=quietly)  # nothing is missing, so nothing is measured
    assert experience.read(tmp_path / "cache").figures == found


def test_the_first_piece_of_a_stage_which_waits_for_its_model_does_not_count(monkeypatch):
    """C14: two rows in 9 s, then one in 1 s and two in 2 s: five rows at a second a row."""
    clock = iter([0.0, 9.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(figures, "monotonic", lambda: next(clock))
    watch = figures.Watch()
    for rows in watch.begins([2, 1, 2]):
        watch.made("generate", rows, rows)
    assert (watch.seconds("generate"), watch.designs["generate"], watch.seconds("decode")) == (5.0, 5, 0.0)


def test_designs_of_several_sizes_tell_nothing():
    watch = figures.Watch({"generate": [(2, 1.0)]}, {"generate": 2})
    plan = planned(T4)
    assert figures.of_drawing(plan, watch, plan.config.pretrained_model, {(512, 512), (1024, 1024)}) == []
    (one,) = figures.of_drawing(plan, watch, plan.config.pretrained_model, {(1024, 1024)})
    both = planned(T4, num_images=2, width=1024, height=1024).stage("generate")
    assert one.work == both.work
