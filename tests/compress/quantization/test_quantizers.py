from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from vcompress.compress.quantization.quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    freeze_norms,
    with_quantised_weight,
)


def activation(scale: float, zero_point: int = 0, **options: object) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(unsigned=True, **options)  # type: ignore[arg-type]
    quantizer.set_range(scale, zero_point)
    return quantizer


def test_a_value_is_rounded_to_even_and_clipped_at_both_ends() -> None:
    x = torch.tensor([-1.0, 0.25, 0.75, 1.25, 127.0, 130.0])
    y = activation(0.5)(x)
    assert torch.allclose(y, torch.tensor([0.0, 0.0, 1.0, 1.0, 127.0, 127.5]), atol=1e-4)


def test_an_unsigned_range_with_a_zero_point_reaches_below_zero() -> None:
    y = activation(0.1, 100)(torch.tensor([-20.0, -3.04, 15.4, 99.0]))
    assert torch.allclose(y, torch.tensor([-10.0, -3.0, 15.4, 15.5]), atol=1e-5)


def test_the_gradient_of_a_step_is_that_of_learned_step_size_quantisation() -> None:
    quantizer = activation(0.1)
    x = torch.tensor([-1.0, 0.04, 0.26, 30.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (quantizer(x) * weights).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 3.0, 0.0]))
    # d y / d s: 0 at the low end, round(x/s) - x/s inside, 255 at the high end.
    by_step = 2 * (0 - 0.4) + 3 * (3 - 2.6) + 4 * 255
    share = 1 / math.sqrt(4 * 255)
    assert quantizer.log_scale.grad.item() == pytest.approx(by_step * 0.1 * share, rel=1e-4)


def test_channel_steps_get_the_gradient_of_their_own_channel() -> None:
    quantizer = WeightQuantizer(2, bits=8)
    quantizer.set_scale(torch.tensor([0.1, 0.01]))
    w = torch.tensor([[0.26, 20.0], [0.013, -0.004]], requires_grad=True)
    quantizer(w).sum().backward()
    assert torch.equal(w.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    share = 1 / math.sqrt(2 * 127)
    expected = torch.tensor([(0.4 + 127) * 0.1, (1 - 1.3 + 0 + 0.4) * 0.01]) * share
    assert torch.allclose(quantizer.log_scale.grad, expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_of_a_kernel_are_those_of_the_formula_written_out(
    axis: int, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 6, 3, 3, generator=generator).to(memory_format=layout)
    grad = torch.randn(4, 6, 3, 3, generator=generator)  # in a layout that may be another
    quantizer = WeightQuantizer(w.shape[axis], axis=axis, bits=4)
    others = [d for d in range(4) if d != axis]
    quantizer.set_scale(w.abs().amax(others) / 9)  # the range ends at 7: the largest are clipped
    w.requires_grad_()
    quantizer(w).backward(grad)
    step = quantizer.scale().view([-1 if d == axis else 1 for d in range(4)])
    ratio = w.detach() / step
    inside = ratio.abs() <= 7
    assert torch.equal(w.grad, grad * inside)
    moved = torch.where(inside, ratio.round() - ratio, 7 * ratio.sign()) * step
    share = 1 / math.sqrt(w.numel() / w.shape[axis] * 7)
    expected = (grad * moved).sum(others) * share
    assert torch.allclose(quantizer.log_scale.grad, expected, rtol=1e-4, atol=1e-6)


def test_an_absorbed_relu6_never_lets_the_range_pass_six() -> None:
    quantizer = activation(1.0, relu=True, limit=6.0)
    y = quantizer(torch.tensor([-5.0, 3.0, 100.0]))
    assert y[0] == 0
    assert y[2].item() == pytest.approx(6.0, rel=1e-6)


def test_before_calibration_an_absorbed_relu_still_clips() -> None:
    quantizer = ActivationQuantizer(unsigned=True, relu=True, limit=6.0)
    quantizer.enabled = False
    assert torch.equal(quantizer(torch.tensor([-1.0, 0.123, 9.0])), torch.tensor([0.0, 0.123, 6.0]))


def test_a_copy_that_gets_another_zero_point_uses_it() -> None:
    x = torch.tensor([-2.0, 0.3])
    first, other = activation(0.1, 3), activation(0.1, 100)
    for _ in range(4):
        first.set_range(0.1, 3)
        first(x)
        again = copy.deepcopy(first)
        for _ in range(8):
            again.load_state_dict(other.state_dict())
            assert torch.equal(again(x), other(x))
            again.load_state_dict(first.state_dict())
            assert torch.equal(again(x), first(x))


def test_a_step_that_underflows_float16_is_never_used() -> None:
    quantizer = activation(0.0)
    assert quantizer.scale().item() > 0
    assert torch.isfinite(quantizer(torch.tensor([0.0, 1.0]))).all()


def test_a_quantised_layer_keeps_the_keys_of_the_float_one_and_leaves_it_alone() -> None:
    layer = nn.Conv2d(3, 4, 3)
    quantised = with_quantised_weight(layer, 8)
    assert set(quantised.state_dict()) == {"weight", "bias", "weight_quantizer.log_scale"}
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert quantised.weight is layer.weight


def test_frozen_statistics_do_not_move_in_training() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2)).train()
    freeze_norms(model)
    model(torch.randn(4, 2, 3, 3) + 5)
    assert torch.equal(model[0].running_mean, torch.zeros(2))
