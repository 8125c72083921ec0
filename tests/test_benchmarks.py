"""The benchmarks measure what they say: counts against numbers made by hand, and every loop runs (P16, P28, C10)."""

import functools
import json

import pytest
import torch
from torch import nn

from benchmarks import contenders, hardware, loops, meters, report, train
from benchmarks import plan as benchmark_of_plan
from lace_lora import config, estimate, presets, stage_needs
from tests.test_presets import A100

PRECISIONS = ("fp32", "bf16")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """The tiny model and its pictures, in the folder where a run looks for them."""
    words = ["--size", "tiny", "--work", str(tmp_path_factory.mktemp("bench"))]
    return train.prepare(train.parser().parse_args(words))


@functools.cache
def step_of(task, loop, dtype, **more):
    """GFLOP of the second step, and the most bytes that live in the third beside the encoded pictures; the first step
    makes the optimizer's state."""
    meters.data_bytes, before = 0, meters.bytes_of_live_tensors()
    steps = loops.LOOPS[loop](task, contenders.Contender(loop, dtype, 2, **more))
    next(steps)
    read = meters.flops()
    next(steps)
    gflop = read()["gflop"]
    read = meters.memory()
    next(steps)
    found = read()
    return gflop, (found["peak_mb"] - found["data_mb"]) * 1e6 - before


def test_flops_of_products_and_attention_are_counted_as_by_hand():
    """P28: a product of 3 × 4 by 4 × 5 is 2·3·4·5; attention is two products forward and five backward."""
    one, other, held = torch.ones(3, 4), torch.ones(4, 5), torch.ones(3, 5)
    read = meters.flops()
    held.addmm_(one @ torch.eye(4), other)
    assert read()["gflop"] * 1e9 == pytest.approx(2 * 3 * 4 * 4 + 2 * 3 * 4 * 5)
    query, key = torch.ones(2, 3, 6, 8, requires_grad=True), torch.ones(2, 3, 7, 8)
    read = meters.flops()
    nn.functional.scaled_dot_product_attention(query, key, key).sum().backward()
    assert read()["gflop"] * 1e9 == pytest.approx((2 + 5) * 2 * (2 * 3) * 6 * 7 * 8)


def test_flops_of_a_step_are_counted_as_by_hand():
    """P28: y = Wx and its LoRA, forward and backward; no gradient for W."""
    layer = loops.HandLora(nn.Linear(16, 24).requires_grad_(False), 2)
    x = torch.randn(5, 16, requires_grad=True)
    read = meters.flops()
    layer(x).sum().backward()
    base, lora = 2 * 5 * 16 * 24, 2 * 5 * 2 * (16 + 24)
    # Forward once; backward for the input, and for the LoRA's input and weights.
    assert read()["gflop"] * 1e9 == pytest.approx((base + lora) + base + 2 * lora)


def test_the_most_live_bytes_are_those_that_are_alive_together():
    """L19: 4 kB held, 8 kB and 12 kB made, the 8 kB given back before another 4 kB is made; a view is no new memory."""
    held = torch.zeros(1000)
    with meters.LiveTensors() as live:
        live.note_all()
        before = live.now
        second = held.repeat(2)
        third = held.repeat(3)
        part = third[:10].view(2, 5)
        del second
        fourth = held + 1
        assert live.now - before == 12_000 + 4_000
    assert live.peak - before == 8_000 + 12_000
    del part, third, fourth


def test_the_hand_written_lora_computes_what_pefts_does():
    """P16: the leanest loop is a limit only while it does the same work."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential()
    base.add_module("to_q", nn.Linear(12, 20))
    hand = loops.HandLora(base.to_q, 4)
    theirs = get_peft_model(base, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"]))
    layer = theirs.base_model.model.to_q
    with torch.no_grad():
        hand.up_OR.normal_()
        layer.lora_A["default"].weight.copy_(hand.down_RI)
        layer.lora_B["default"].weight.copy_(hand.up_OR)
    x = torch.randn(3, 5, 12, requires_grad=True)
    outcomes = []
    for way in (hand, layer):
        x.grad = None
        output = way(x)
        output.square().mean().backward()
        outcomes.append((output.detach(), x.grad.clone()))
    for mine, other in zip(*outcomes, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)
    assert torch.allclose(hand.down_RI.grad, layer.lora_A["default"].weight.grad, atol=1e-6)
    assert torch.allclose(hand.up_OR.grad, layer.lora_B["default"].weight.grad, atol=1e-6)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_our_step_has_the_flops_of_the_bare_loops_and_holds_no_more(task, dtype):
    """P28, P17: encoding is done before, and cache, noise, loss weights, clipping and schedule multiply no matrices.

    L19: what ours holds beside is three tables of 1000 float32, one of 1000 int64, and some single numbers.
    """
    others = {"fp32": ("hand", "peft", "lean"), "bf16": ("hand",)}[dtype]
    gflop, peak = step_of(task, "ours", dtype)
    bare = {loop: step_of(task, loop, dtype) for loop in others}
    assert gflop > 0
    assert all(one == pytest.approx(gflop, rel=1e-9) for one, _ in bare.values()), (gflop, bare)
    assert peak < min(held for _, held in bare.values()) + 30_000, (peak, bare)


def test_checkpointing_gives_back_memory_and_is_paid_in_flops(task):
    """L19: full checkpointing makes the forward pass once more, which is less than the whole step once more."""
    plain, peak = step_of(task, "ours", "fp32")
    more, lower_peak = step_of(task, "ours", "fp32", checkpointing="full")
    assert 1.2 * plain < more < 1.7 * plain and lower_peak < peak


@pytest.mark.slow
def test_a_run_writes_a_page_and_its_numbers(task, tmp_path, monkeypatch):
    """P16, C10: the hardware, the versions and the command, and no folder of the machine."""
    monkeypatch.setattr(train, "BARE", ())  # each loop is a process that loads torch
    words = ["--size", "tiny", "--dtypes", "fp32", "--batches", "2", "--rounds", "2"]
    train.main([*words, "--work", task.work, "--results", str(tmp_path)])
    facts = json.loads(next(tmp_path.glob("train-cpu-tiny-*.json")).read_text())
    assert {"hardware", "versions", "date", "command"} <= facts.keys() and facts["versions"].keys() >= {"torch", "peft"}
    (row,) = facts["rows"]
    assert row["loop"] == "ours" and "error" not in row and len(row["cpu_s"]) == len(row["clock_s"]) == 2
    assert row["gflop"] == pytest.approx(step_of(task, "ours", "fp32")[0], rel=1e-9)
    assert row["peak_mb"] > row["held_mb"] > row["data_mb"] > 0
    page = next(tmp_path.glob("train-cpu-tiny-*.md")).read_text()
    assert "| ours | fp32 | 2 |" in page and f"torch {torch.__version__}" in page
    assert str(tmp_path.parent) not in page + json.dumps(facts)


def test_a_loop_that_ends_before_its_time_is_a_row_and_not_the_end(tmp_path):
    """C10: too little memory for one precision leaves the others' numbers; no folder of the machine is told."""
    task = contenders.Task("model", "pictures", str(tmp_path), 64, targets=f"{tmp_path}/norms")
    (row,) = train.measure(task, [contenders.Contender("diffusers", "fp32", 1)], rounds=1)
    assert row["error"] == "ValueError: The script trains a LoRA on attention only, not on norms."
    assert "cpu_s" not in row


def test_a_ratio_is_taken_round_by_round():
    """P28: a machine that is twice as slow in the second round changes nothing."""
    assert report.ratios([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]) == (0.5, 0.5, 0.5)
    assert report.told((0.5, 0.25, 1.0), "×") == "0.500× (0.250–1.000)"


def row_of(loop, cpu_s, group=0, checkpointing="none", **more):
    plain = {"dtype": "bf16", "batch": 1, "compile": "none", "gflop": 100.0, "peak_mb": 50.0, "data_mb": 0.0}
    return (
        plain | {"loop": loop, "group": group, "checkpointing": checkpointing, "cpu_s": cpu_s, "clock_s": cpu_s} | more
    )


def test_a_target_that_is_missed_is_called_missed():
    """P28: each target beside what was measured, from numbers made by hand."""
    beside_bare = [
        row_of("hand", [1.0, 1.0]), row_of("peft", [1.1, 1.1]), row_of("peft-autocast", [1.2, 1.2], peak_mb=40.0),
        row_of("ours", [1.06, 1.06], peak_mb=53.0, data_mb=2.5, gflop=101.0),
    ]  # fmt: skip
    beside_script = [
        row_of("ours", [1.0, 1.0], 1), row_of("diffusers", [1.3, 1.3], 1),
        row_of("ours", [1.4, 1.4], 1, "full"), row_of("diffusers", [1.5, 1.5], 1, "full"),
    ]  # fmt: skip
    facts = {
        "date": "2026-01-01", "command": "c", "hardware": "h", "threads": 1, "versions": {}, "size": "small",
        "side_px": 512, "rounds": 2, "script": {"asks for": "0.1", "sha256": "ab" * 32}, "matmul_flop_s": None,
    }  # fmt: skip
    page = report.page(facts, beside_bare + beside_script)
    targets = [line.strip("| ").split(" | ") for line in page.partition("## Targets")[2].strip().splitlines()[2:]]
    assert targets == [
        ["FLOPs a step equal the bare loops'", "bf16, 1", "1.0100", "no"],
        ["time within 5 % of the leanest bare loop (hand)", "bf16, 1", "1.060 (1.060–1.060)", "no"],
        ["live tensors not above the leanest bare loop's, within 0.1 %", "bf16, 1", "1.01000", "no"],
        ["1.25× faster than diffusers' script without checkpointing", "bf16, 1", "1.300× (1.300–1.300)", "yes"],
        ["1.6× faster than diffusers' script with its checkpointing", "bf16, 1", "1.500× (1.500–1.500)", "no"],
    ]
    assert "| diffusers | bf16 | 1 | full | 1.500 | 1.071 (1.071–1.071) | 1.500 (1.500–1.500) | 100.00 | 50.0 |" in page


def test_at_most_five_loops_are_in_memory_together_and_ours_is_in_every_group():
    """L19: beside the script, ours stands with the same checkpointing and without any."""
    groups = train.for_cpu(PRECISIONS, [1, 4], has_script=True)
    assert len(groups) == 8 and max(map(len, groups)) == 5
    for group in groups:
        assert len({(one.dtype, one.batch) for one in group}) == 1 and "ours" in {one.loop for one in group}
        ways = [(one.loop, one.checkpointing) for one in group]
        assert ("diffusers", "full") not in ways or {("ours", "full"), ("ours", "none")} < set(ways)
    assert len(train.for_cpu(PRECISIONS, [1, 4], has_script=False)) == 4


def test_the_gpus_rows_cover_every_mode_and_carry_the_plans_prediction(tmp_path):
    """C10: the code that waits for a GPU is walked through without one."""
    groups = train.for_gpu([1, 4])
    assert len(groups) == 3 * 2 * 3 * 2 and len({group[0].name for group in groups}) == 36
    task = contenders.Task("model", "pictures", str(tmp_path), 1024, device="cuda")
    told = train.predicted(task, {"dtype": "nf4", "batch": 4, "checkpointing": "full"})
    settings = config.load(
        preset="none", train_batch_size=4, rank=16, resolution=1024, quantization="nf4", gradient_checkpointing="full"
    )
    planned = estimate.plan(presets.settle(settings, A100), A100, 1)  # which trains in bf16
    assert told["gib"] == pytest.approx(stage_needs.training_gib(planned.job))
    assert told["seconds"] > 60  # on a CPU; estimated


def test_a_compiled_step_counts_the_flops_of_the_same_step_and_the_page_tells_its_share_of_the_gpu():
    """C10, P28: 400 GFLOP in half a second, of 1.6 TFLOP/s that plain products reach, is half of them."""
    common = {"batch": 4, "peak_vram_gib": 9.5, "data_mb": 1.0, "predicted": {"gib": 9.9, "seconds": None}}
    eager = row_of("ours", [0.8]) | common | {"gflop": 400.0}
    compiled = row_of("ours", [0.5], 1, compile="blocks") | common
    failed = row_of("ours", [], 2, compile="blocks", checkpointing="full", error="out of memory") | common
    del compiled["gflop"]
    rows = [eager, compiled, failed]
    train.lend_flops(rows)
    assert compiled["gflop"] == 400.0
    facts = {
        "date": "2026-01-01", "command": "c", "hardware": "h", "threads": 1, "versions": {}, "size": "sdxl",
        "side_px": 1024, "rounds": 1, "script": None, "matmul_flop_s": {"bfloat16": 1.6e12, "float16": 1e12},
    }  # fmt: skip
    page = report.page(facts, rows)
    assert "| bf16 | 4 | none | blocks | 0.500 | not known | 8.00 | 9.5 | 9.9 | 50% |" in page
    assert "| bf16 | 4 | full | blocks | out of memory |" in page
    assert "| 45% of the matmul rate | bf16, 4, checkpointing none | 50.0% | yes |" in page


def test_the_hardware_is_named_without_the_name_of_the_machine():
    """C10: what a report may carry."""
    import platform

    assert f"{hardware.name('cpu')}".count("cores") == 1 and hardware.versions()["torch"] == torch.__version__
    assert platform.node() not in hardware.name("cpu")


def test_the_plans_benchmark_asks_the_plan_itself_after_one_run():
    """C14: seconds of another setting are those of a plan that knows the figure; on the page the known run is left out.

    Twice the table's seconds in the one run make twice the table's seconds of the other.
    """
    from lace_lora.coefficients import Coefficients, shipped

    small, large = (
        benchmark_of_plan.job_of(one, Coefficients(shipped("demo"), px_a_cell=4))
        for one in (benchmark_of_plan.DEMO[0], benchmark_of_plan.DEMO[5])
    )
    by_table = [stage_needs.train(job).seconds for job in (small, large)]
    told = benchmark_of_plan.predicted(large, small, 2 * by_table[0])
    assert told == pytest.approx(2 * by_table[1])
    rows = [
        {"side_px": 96, "batch": 1, "rank": 16, "targets": "attention", "checkpointing": "none", "model": "demo",
         "peak_mb": 100.0, "predicted_mb": 105.0, "seconds": 1.0, "predicted_seconds": seconds,
         "from_each": [seconds, 1.5, 1.0]}
        for seconds in (1.0, 1.1, 1.3)
    ]  # fmt: skip
    page = benchmark_of_plan.page({"date": "d", "hardware": "h", "command": "c", "versions": {}}, rows)
    assert "Memory: 3 of 3 within 10%, the worst 5.0%." in page
    assert "is predicted from: 1 of 2 within 20%, the worst 30.0%." in page and "3 of 6 within 20%" in page
