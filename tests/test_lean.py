"""The leaner forward pass of PEFT's linear layer, with PEFT's own as its oracle (issue 3 point 4: the step)."""

import copy
from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lace_lora import lean
from tests.conftest import unet_config

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Block(nn.Module):
    """Two linear layers, one with a bias, and something between them."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 20, bias=False), nn.Linear(20, width)

    def forward(self, x):
        return self.second(torch.nn.functional.silu(self.first(x)))


def with_lora(module, targets=("first", "second"), **options):
    """The frozen module with a LoRA whose B is not zero, so that all gradients differ from zero."""
    torch.manual_seed(1)
    module.requires_grad_(False)
    settings = {"r": 4, "lora_alpha": 6, "lora_dropout": 0.0} | options
    inject_adapter_in_model(LoraConfig(target_modules=list(targets), **settings), module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return module


def pair(**options):
    """The same block with PEFT's layers and with ours."""
    torch.manual_seed(0)
    plain = with_lora(Block(), **options)
    ours = copy.deepcopy(plain)
    return plain, ours, lean.make_lean(ours)


def results(module, x, forward=None):
    """Output, gradient of the input, and gradients of the LoRA by name."""
    x = x.clone().requires_grad_()
    output = (module if forward is None else forward)(x)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output).to(output.dtype)
    (output * weights).sum().backward()
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    module.zero_grad()
    return {"output": output.detach(), "x": x.grad} | found


def assert_close(mine, theirs, tolerance=1e-6):
    assert mine.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 12), (2, 3, 4, 12)])
def test_outputs_and_gradients_are_pefts(shape):
    plain, ours, count = pair()
    x = torch.randn(shape)
    assert count == 2
    assert_close(results(ours, x), results(plain, x))


def test_an_input_that_is_not_contiguous_gives_the_same():
    plain, ours, _ = pair()
    x = torch.randn(12, 5, 2).permute(2, 1, 0)
    assert_close(results(ours, x), results(plain, x))


def test_a_whole_unet_gives_pefts_outputs_and_gradients_with_and_without_checkpointing():
    torch.manual_seed(0)
    plain = with_lora(UNet2DConditionModel(**unet_config(32, 16, 6)), TARGETS).train()
    ours = copy.deepcopy(plain)
    assert lean.make_lean(ours) == sum(name.endswith(tuple(TARGETS)) for name, _ in plain.named_modules())
    x, text = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 32)
    conditions = {"text_embeds": torch.randn(2, 16), "time_ids": torch.full((2, 6), 64.0)}

    def of(unet):
        def forward(x):
            return unet(x, torch.tensor([7, 900]), text, added_cond_kwargs=conditions, return_dict=False)[0]

        return results(unet, x, forward)

    expected = of(plain)
    assert_close(of(ours), expected, 2e-5)  # sums of many layers; each layer is held to 1e-6 above
    ours.enable_gradient_checkpointing()
    assert_close(of(ours), expected, 2e-5)


def test_half_precision_is_nearer_to_the_exact_result_than_peft_is():
    plain, ours, _ = pair()
    x = torch.randn(64, 12).bfloat16()
    exact = results(copy.deepcopy(plain).bfloat16().double(), x.double())
    mine, theirs = (results(module.bfloat16(), x) for module in (ours, plain))
    assert all(value.dtype == torch.bfloat16 for value in mine.values())

    def error(found):
        return sum(float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact)

    assert error(mine) <= error(theirs) < 0.2


def test_names_parameters_and_state_stay_pefts():
    plain, ours, _ = pair()
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert ours.load_state_dict(plain.state_dict()).missing_keys == []
    assert isinstance(ours.first, Linear) and ours.first.get_delta_weight("default").shape == (20, 12)


def test_frozen_and_unasked_gradients_are_not_computed():
    _, ours, _ = pair()
    ours.first.lora_A["default"].weight.requires_grad_(False)
    x = torch.randn(3, 12)
    output = ours.first(x)
    output.sum().backward()
    assert ours.first.base_layer.weight.grad is None and ours.first.lora_A["default"].weight.grad is None
    torch.testing.assert_close(
        ours.first.lora_B["default"].weight.grad,
        1.5 * torch.ones(20, 3) @ (x @ ours.first.lora_A["default"].weight.t()),  # alpha / rank = 1.5
    )


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True, "targets": ["second"]}],
    ids=["DoRA", "dropout", "a bias in B"],
)
def test_what_is_more_than_plain_stays_pefts(options):
    _, ours, count = pair(**options)
    assert count == 0 and not any(isinstance(module, lean.LeanLinear) for module in ours.modules())


def test_rslora_differs_only_in_its_scale_and_is_made_lean():
    plain, ours, count = pair(use_rslora=True)
    x = torch.randn(3, 12)
    assert count == 2 and ours.first.scaling["default"] == 3.0  # 6 / √4
    assert_close(results(ours, x), results(plain, x))


def disabled(layer):
    layer.enable_adapters(False)


def merged(layer):
    layer.merge()


def unfrozen(layer):
    layer.base_layer.weight.requires_grad_(True)


def none_active(layer):
    layer._active_adapter = []


def second_added(layer):
    layer.update_layer("other", 3, lora_alpha=3, config=LoraConfig(r=3, lora_alpha=3, init_lora_weights=False))
    layer.set_adapter(["default", "other"])


@pytest.mark.parametrize("change", [disabled, merged, unfrozen, none_active, second_added])
def test_a_layer_that_is_changed_later_is_pefts_own_again(change):
    plain, ours, _ = pair()
    for module in (plain, ours):
        torch.manual_seed(3)
        change(module.first)
        change(module.second)
    x = torch.randn(3, 12)
    assert lean._only_adapter(ours.first) is None
    assert_close(results(ours, x), results(plain, x), 0.0)


def test_under_autocast_and_with_a_float32_lora_on_half_weights_the_layer_is_pefts_own():
    plain, ours, _ = pair()
    x = torch.randn(3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(results(ours, x), results(plain, x), 0.0)
    for module in (plain, ours):
        module.first.base_layer.bfloat16()
        module.second.base_layer.bfloat16()
    assert_close(results(ours, x.bfloat16()), results(plain, x.bfloat16()), 0.0)


def test_compiled_gives_the_same_as_eager():
    plain, ours, _ = pair()
    x = torch.randn(2, 5, 12)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    assert_close(results(ours, x, compiled), results(plain, x))
    torch._dynamo.reset()


class Counted(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_it_makes_fewer_passes_over_memory_than_peft():
    """No pass of its own for the scale, the sum, or the two gradients of the input."""
    plain, ours, _ = pair()
    x = torch.randn(6, 12)
    counts = {}
    for name, module in (("peft", plain), ("lean", ours)):
        with Counted() as counted:
            module.first(x.requires_grad_()).sum().backward()
        counts[name] = counted.counts
        x.grad = None
    products = ("mm", "addmm", "addmm_")
    for kind in counts:
        assert sum(counts[kind][product] for product in products) == 8  # three forward, five backward
    assert counts["lean"]["add"] == counts["lean"]["add_"] == 0
    assert counts["peft"]["add"] + counts["peft"]["add_"] >= 1
