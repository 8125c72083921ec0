"""Steps: what one update does, by independent formulas and against the same work done another way (P16, L5, L19)."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lace_lora import cuts, losses, optimizers, parts, schedule, steps
from lace_lora.config import Config
from lace_lora.data_utils import open_picture
from lace_lora.errors import RunError
from lace_lora.families import sdxl
from lace_lora.losses import Pictures
from lace_lora.processes import Processes
from tests.conftest import draw_lace
from tests.training import grow, one_update, parts_and_pictures, quietly, same_gradients

ALONE = Processes(0, 1, "cpu")


def same_shape(settings: Config, tmp_path: Path, count: int = 8) -> Config:
    """Pictures of one bucket, so that batches of any size hold the same ones."""
    return settings.model_copy(update={"images_dir": str(draw_lace(tmp_path / "square", ((70, 70),) * count))})


def gradients(made: parts.Parts) -> dict[str, torch.Tensor]:
    return {name: master.grad.clone() for name, master in made.masters.items() if master.grad is not None}


def backward(made: parts.Parts, pictures: Pictures, batches: range, settings: Config, weight: float = 1.0) -> None:
    steps._backward(made, pictures, batches, settings, weight, ALONE)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_cached_and_uncached_losses_are_equal(kind: str, settings: Config, tiny_sdxl: Path) -> None:
    """The whole path again without cache or schedule: decode, cut, encode, diffusers' add_noise, UNet, weight, mean."""
    changed = settings.model_copy(update={"caption_dropout": 0.5, "loss": kind})
    made, encoded = parts_and_pictures(changed)
    vae = sdxl.load_vae(str(tiny_sdxl), torch.float32, "cpu")
    text = sdxl.load_text(str(tiny_sdxl), torch.float32, "cpu")
    wordless = 0
    for number in range(6):
        cached = losses.losses_of_batch(made, encoded, number, changed)
        for place, visit in enumerate(encoded.stream.batch(number)):
            sample = encoded.cache.samples[visit.sample]
            shape = encoded.cache.latent_shape(visit.sample, visit.variant)
            chance = schedule.draw(encoded.stream, visit, shape, 0.5, changed.noise_offset)
            cut = sample.cuts[visit.variant]
            mean, std = sdxl.encode_images(vae, cuts.pixels_of(open_picture(sample.path), cut)[None])
            latents = (mean + std * chance.spread_CHW) * 0.13025
            timestep = torch.tensor([int(1000 * chance.within)])
            noisy = made.noising.add_noise(latents, chance.noise_CHW[None], timestep)
            words = sdxl.encode_captions(text, [sample.caption])
            keep = 0.0 if chance.is_wordless else 1.0
            wordless += chance.is_wordless
            conditions = {
                "text_embeds": words.pooled_BP * keep,
                "time_ids": sdxl.size_numbers(cut.original_hw, cut.crop_top_left, cut.target_hw)[None],
            }
            with torch.no_grad():
                predicted = made.denoiser(noisy, timestep, words.text_BLD * keep, added_cond_kwargs=conditions).sample
            snr = float(made.noising.alphas_cumprod[timestep] / (1 - made.noising.alphas_cumprod[timestep]))
            difference = predicted - chance.noise_CHW[None]
            by_hand = {"mse": difference**2, "huber": 0.2 * (torch.sqrt(difference**2 + 0.01) - 0.1)}[kind]
            loss = min(snr, 5.0) / snr * by_hand.mean()
            assert float(cached[place].detach()) == pytest.approx(float(loss), abs=1e-6)
    assert 0 < wordless < 12


def test_four_batches_of_one_equal_a_batch_of_four(settings: Config, tmp_path: Path) -> None:
    """P16, in gradients: the first update of AdamW has the same length whatever the gradient."""
    found = []
    for size, accumulate in ((4, 1), (1, 4), (2, 2)):
        update = {"train_batch_size": size, "gradient_accumulation_steps": accumulate, "max_grad_norm": 0}
        changed = same_shape(settings, tmp_path).model_copy(update=update)
        made, encoded = parts_and_pictures(changed)
        grow(made)
        backward(made, encoded, range(accumulate), changed)
        found.append(gradients(made))
    assert all(same_gradients(found[0], other, 1e-5) for other in found[1:])


def test_small_batches_weigh_by_their_pictures(settings: Config, tmp_path: Path) -> None:
    """Five pictures by twos leave a batch of one at the end of an epoch; every picture of an update counts the same."""
    changed = same_shape(settings, tmp_path, 5).model_copy(update={"gradient_accumulation_steps": 3})
    made, encoded = parts_and_pictures(changed)
    batches = [losses.losses_of_batch(made, encoded, number, changed).detach() for number in range(3)]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    step = next(steps.steps(made, encoded, None, changed, 0))
    assert step.loss == pytest.approx(float(torch.cat(batches).mean()), abs=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_an_update_and_their_sum_is_the_update_of_one(count: int, settings: Config) -> None:
    """C19: every batch is somebody's work, once; shares add up to what one process computes."""
    changed = settings.model_copy(update={"gradient_accumulation_steps": 4, "train_batch_size": 1})
    made, encoded = parts_and_pictures(changed)
    grow(made)
    backward(made, encoded, range(4), changed)
    whole = gradients(made)
    parts.forget_gradients(made)
    for rank in range(count):
        steps._backward(made, encoded, range(4), changed, 1.0, Processes(rank, count, "cpu"))
    shared = gradients(made)
    assert same_gradients(whole, shared, 1e-6)
    work = [Processes(rank, count, "cpu").share(range(4)) for rank in range(count)]
    assert sorted(sum(work, [])) == [0, 1, 2, 3] and max(map(len, work)) - min(map(len, work)) <= 1


# -- memory: what is kept for the backward pass, and in which precision --


@pytest.mark.parametrize("mode", ["transformers", "full"])
def test_checkpointing_gives_the_same_gradients(mode: str, settings: Config) -> None:
    """C10: and really recomputes, the more the more is asked for."""
    found, kept = [], []
    for one in ("none", mode):
        changed = settings.model_copy(update={"gradient_checkpointing": one})
        made, encoded = parts_and_pictures(changed)
        grow(made)
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = losses.losses_of_batch(made, encoded, 0, changed).sum()
        loss.backward()
        parts.gather(made)
        found.append(gradients(made))
        kept.append(sum(sizes.values()))
    assert same_gradients(found[0], found[1], 1e-6)
    assert kept[1] < (0.95 if mode == "transformers" else 0.75) * kept[0]


def test_transformers_mode_recomputes_the_transformer_blocks_and_nothing_else(settings: Config) -> None:
    made, _ = parts_and_pictures(settings.model_copy(update={"gradient_checkpointing": "transformers"}))
    flags = {
        type(module).__name__: module.gradient_checkpointing
        for module in made.denoiser.modules()
        if hasattr(module, "gradient_checkpointing")
    }
    assert {name for name, is_on in flags.items() if is_on} == {"Transformer2DModel"} and len(flags) > 3


def test_half_precision_base_learns_with_half_precision_copies_of_float32_masters(settings: Config) -> None:
    """No autocast, nothing is upcast on the way; what the optimizer holds and files are written from is float32."""
    made, encoded = parts_and_pictures(settings, torch.bfloat16)
    assert {one.dtype for one in made.parameters.values()} == {torch.bfloat16}
    assert {one.dtype for one in made.masters.values()} == {torch.float32}
    assert {id(one) for group in made.optimizer.param_groups for one in group["params"]} == {
        id(one) for one in made.masters.values()
    }
    before = parts.learnt(made)
    seen = list(islice(steps.steps(made, encoded, None, settings, 0), 3))
    assert all(math.isfinite(step.loss) for step in seen)
    after = parts.learnt(made)
    assert all(not torch.equal(before[name], after[name]) for name in before if ".lora_B." in name)
    for name, one in made.parameters.items():
        assert torch.equal(one, after[name].to(torch.bfloat16)), "copies are the masters, rounded once"
    float32 = next(steps.steps(*parts_and_pictures(settings), None, settings, 0))
    assert seen[0].loss == pytest.approx(float32.loss, rel=0.03)


def test_updates_too_small_for_half_precision_add_up_in_the_masters(settings: Config) -> None:
    """A bf16 weight of 1 does not move by 1e-3; a hundred such updates must."""
    tiny = settings.model_copy(update={"learning_rate": 1e-6, "lr_scheduler": "constant", "lr_warmup_ratio": 0})
    made, encoded = parts_and_pictures(tiny, torch.bfloat16)
    name = next(name for name in made.masters if ".lora_A." in name)
    before, copies = made.masters[name].detach().clone(), made.parameters[name].detach().clone()
    for _ in islice(steps.steps(made, encoded, None, tiny, 0), 3):
        pass
    moved = (made.masters[name].detach() - before).abs()
    assert float(moved.median()) > 0
    assert torch.equal(made.parameters[name], copies) or float((made.parameters[name] != copies).float().mean()) < 0.2


def test_gradients_of_accumulated_batches_are_summed_in_float32(settings: Config, tmp_path: Path) -> None:
    changed = same_shape(settings, tmp_path).model_copy(
        update={"gradient_accumulation_steps": 4, "train_batch_size": 1, "mixed_precision": "bf16"}
    )
    made, encoded = parts_and_pictures(changed, torch.bfloat16)
    single = []
    for number in range(4):
        (losses.losses_of_batch(made, encoded, number, changed).sum() / 4).backward()
        single.append({name: one.grad.float() for name, one in made.parameters.items() if one.grad is not None})
        parts.forget_gradients(made)
    backward(made, encoded, range(4), changed)
    summed = gradients(made)
    for name, one in summed.items():
        assert one.dtype == torch.float32 and torch.equal(one, sum(part[name] for part in single))


def test_loss_scaling_survives_a_resume_and_skips_an_overflow(settings: Config, tmp_path: Path) -> None:
    """fp16 needs it; it also works on a CPU, where only the scaler's own arithmetic is looked at."""

    def with_scaler() -> parts.Parts:
        made, _ = parts_and_pictures(settings)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, enabled=True)
        return made

    made, encoded = with_scaler(), parts_and_pictures(settings)[1]
    plain = parts_and_pictures(settings)[0]
    next(steps.steps(plain, encoded, None, settings, 0))
    next(steps.steps(made, encoded, None, settings, 0))
    assert all(torch.allclose(one, plain.masters[name], atol=1e-6) for name, one in made.masters.items())

    scale = made.scaler.get_scale()
    before = parts.learnt(made)
    overflow = next(iter(made.parameters.values())).register_hook(lambda gradient: gradient + math.inf)
    step = next(steps.steps(made, encoded, None, settings, 1))
    overflow.remove()
    assert not math.isfinite(step.gradient_norm) and math.isfinite(step.loss)
    steps.check_finite(step, made.scaler)  # no error: it only lowers the scale
    assert all(torch.equal(before[name], one) for name, one in made.masters.items())
    assert made.scaler.get_scale() == scale / 2
    (tmp_path / "saved").mkdir()
    parts.save(made, tmp_path / "saved", 2, "this run")
    other = with_scaler()
    assert parts.restore(other, tmp_path / "saved", "this run") == 2
    assert other.scaler.get_scale() == scale / 2


def test_a_loss_scale_that_has_fallen_below_one_ends_the_run(settings: Config) -> None:
    made, encoded = parts_and_pictures(settings)
    made.scaler = torch.amp.GradScaler("cpu", init_scale=0.5, enabled=True)
    overflow = next(iter(made.parameters.values())).register_hook(lambda gradient: gradient + math.inf)
    step = next(steps.steps(made, encoded, None, settings, 0))
    overflow.remove()
    with pytest.raises(RunError, match="The gradient became NaN at step 1, with lace_"):
        steps.check_finite(step, made.scaler)


# -- no waiting for the device --


class HostReads(TorchDispatchMode):
    """Counts how often a number is read from the device, which on a GPU waits for everything before it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_reads_no_number_from_the_device_until_somebody_looks(scaled: bool, settings: Config) -> None:
    """The draws are made on the CPU, before; what remains is not allowed to read at all."""
    made, encoded = parts_and_pictures(settings.model_copy(update={"gradient_accumulation_steps": 2}))
    made.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    next(steps.steps(made, encoded, None, settings, 0))  # AdamW makes its state
    drawn = {number: encoded.stream.batch(number) for number in range(4)}
    assert drawn
    original = schedule.draw
    with HostReads() as reads:

        def uncounted(*words: Any, **named: Any) -> schedule.Draws:
            before = reads.count
            made_of_cpu = original(*words, **named)
            reads.count = before  # these numbers never were on a device
            return made_of_cpu

        patch = pytest.MonkeyPatch()
        patch.setattr(schedule, "draw", uncounted)
        try:
            step = next(steps.steps(made, encoded, None, settings, 1))
        finally:
            patch.undo()
        assert reads.count == 0
        assert step.loss > 0 and step.gradient_norm > 0
    assert optimizers.missing("adamw") is None


# -- out of memory --


def test_running_out_of_memory_steps_up_checkpointing_and_changes_no_number(
    settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L19: in the middle of an update, after one of its batches has left gradients already."""
    changed = settings.model_copy(update={"gradient_accumulation_steps": 2, "max_train_steps": 4})
    plain = one_update(changed, 4)
    predict, count = sdxl.predict, 0

    def starving(*words: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        if count in (4, 9):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(*words)

    monkeypatch.setattr(sdxl, "predict", starving)
    made, encoded = parts_and_pictures(changed)
    made.may_save_memory = True
    said: list[str] = []
    for _ in steps.steps(made, encoded, None, changed, 0, say=said.append):
        pass
    assert made.checkpointing == "full" and len(said) == 2 and "gradient_checkpointing is transformers" in said[0]
    learnt = parts.learnt(made)
    assert all(torch.allclose(plain[name], learnt[name], atol=1e-6) for name in plain)
    assert count == 4 * 2 + 2 + 1  # the update that failed in its second batch was begun again


def test_the_checkpointing_that_was_reached_is_part_of_the_checkpoint(settings: Config, tmp_path: Path) -> None:
    made, _ = parts_and_pictures(settings)
    made.may_save_memory = True
    assert parts.save_memory(made) and made.checkpointing == "transformers"
    parts.save(made, tmp_path, 3, "this run")
    other, _ = parts_and_pictures(settings)
    other.may_save_memory = True
    parts.restore(other, tmp_path, "this run")
    assert other.checkpointing == "transformers"
    chosen, _ = parts_and_pictures(settings)  # a person said none, for a larger GPU
    parts.restore(chosen, tmp_path, "this run")
    assert chosen.checkpointing == "none" and not parts.save_memory(chosen)


# -- options --


@pytest.mark.parametrize("name", ["paged_adamw8bit", "adamw8bit", "prodigy", "adafactor", "schedulefree"])
def test_a_run_with_any_optimizer_is_cut_and_goes_on_with_the_same_numbers(
    name: str, settings: Config, tmp_path: Path
) -> None:
    """P14."""
    rate = 1.0 if name == "prodigy" else 1e-3
    changed = settings.model_copy(update={"optimizer": name, "learning_rate": rate, "max_train_steps": 6})
    if optimizers.missing(name):
        pytest.skip(str(optimizers.missing(name)))
    made, encoded = parts_and_pictures(changed)
    whole = [step.loss for step in steps.steps(made, encoded, None, changed, 0)]
    first, _ = parts_and_pictures(changed)
    half = [step.loss for step in islice(steps.steps(first, encoded, None, changed, 0), 3)]
    parts.save(first, tmp_path, 3, "this run")
    second, _ = parts_and_pictures(changed)
    rest = [
        step.loss for step in steps.steps(second, encoded, None, changed, parts.restore(second, tmp_path, "this run"))
    ]
    assert half + rest == whole
    one, other = parts.learnt(made), parts.learnt(second)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    "update",
    [
        {"lora_targets": "attention+ff+conv"},
        {"lora_targets": "up_blocks"},
        {"use_dora": True},
        {"use_rslora": True, "rank": 8},
        {"train_text_encoder": True},
        {"learn_concept_token": True},
        {"train_text_encoder": True, "learn_concept_token": True, "use_dora": True},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_lora_learns_all_of_its_parameters(
    update: dict[str, Any], dtype: torch.dtype, settings: Config
) -> None:
    """L18, C8: nothing that is in the file stays as it began, and nothing else moves."""
    changed = settings.model_copy(update=update | {"caption_dropout": 0.0, "max_train_steps": 4})
    made, encoded = parts_and_pictures(changed, dtype)
    frozen = {
        name: parameter.detach().clone()
        for name, parameter in made.denoiser.named_parameters()
        if not any(parameter is one for one in made.parameters.values())
    }
    before = parts.learnt(made)
    for step in steps.steps(made, encoded, None, changed, 0):
        steps.check_finite(step, made.scaler)
    after = parts.learnt(made)
    still = [name for name in before if torch.equal(before[name], after[name])]
    # The first towers' last layer and final norm are not read by SDXL, which takes the penultimate layer.
    assert all("text_encoder.text_model.encoder.layers.2" in name or ".layers.2." in name for name in still), still
    for name, parameter in made.denoiser.named_parameters():
        assert name not in frozen or torch.equal(frozen[name], parameter)
    is_text = bool(update.get("train_text_encoder") or update.get("learn_concept_token"))
    assert (made.text is not None) == is_text


@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@pytest.mark.slow
def test_compiled_blocks_give_the_same_losses(settings: Config) -> None:
    """P13: skipped where there is no C++ compiler."""
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no C++ compiler on this machine")
    plain = [step.loss for step in steps.steps(*parts_and_pictures(settings), None, settings, 0)][:2]
    changed = settings.model_copy(update={"compile": "blocks", "max_train_steps": 10})
    made, encoded = parts_and_pictures(changed)
    compiled = [step.loss for step in islice(steps.steps(made, encoded, None, changed, 0), 2)]
    assert compiled == pytest.approx(plain, abs=1e-5)


def test_xformers_asked_for_where_it_is_missing_says_what_to_do(settings: Config) -> None:
    """L19."""
    from lace_lora.errors import MachineError

    with pytest.raises(MachineError, match="xformers cannot be used here .* Set attention_backend sdpa"):
        parts.assemble(settings.model_copy(update={"attention_backend": "xformers"}), torch.float32, "cpu", say=quietly)


# -- prior preservation --


def test_the_prior_term_is_weighted_and_off_by_default(settings: Config) -> None:
    """L5."""
    made, encoded = parts_and_pictures(settings)
    other = Pictures(encoded.cache, schedule.Stream("class pictures", encoded.stream.buckets, 2, 1, 0))

    def gradient(*terms: tuple[Pictures, float]) -> torch.Tensor:
        parts.forget_gradients(made)
        for pictures_of, weight in terms:
            backward(made, pictures_of, range(1), settings, weight)
        return torch.cat([one.flatten() for one in gradients(made).values()])

    both = gradient((encoded, 1.0), (other, 0.25))
    assert torch.allclose(both, gradient((encoded, 1.0)) + 0.25 * gradient((other, 1.0)), atol=1e-6)
    assert Config().prior_loss_weight == 0


def test_each_update_is_made_with_the_rate_of_its_schedule(settings: Config) -> None:
    """P15: what the log says is what the optimizer had, for every group."""
    changed = settings.model_copy(update={"max_train_steps": 8, "lr_warmup_ratio": 0.3, "learn_concept_token": True})
    made, encoded = parts_and_pictures(changed)
    for step in steps.steps(made, encoded, None, changed, 0):
        rates = {group["lr"] for group in made.optimizer.param_groups}
        assert rates == {step.learning_rate, 5 * step.learning_rate}
