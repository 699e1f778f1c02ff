"""Fake quantisation with learned step sizes, cheap enough to train with.

Learned step size quantisation (LSQ, Esser et al. 2020) on the logarithm of the step, as in TQT
(Jain et al. 2020): steps stay positive and an optimiser's update changes them by a share,
whatever their size. Rounding divides by the step, as ONNX's QuantizeLinear does.

The passes are written out in element-wise operations: on the CPU of torch 2.14
`torch.fake_quantize_per_tensor_affine` takes 25 times as long (12 ms against 0.5 ms for a million
values). The gradient of an activation's step follows from the saved input and output with two dot
products, and the mask of the clipped values is never stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from .observers import Observer
from .trace import SameConv2d, pad_same

SMALLEST_SCALE = 2.0**-24
"""Below it float16 has no number left; a step is never smaller."""


class _FakeQuantTensor(torch.autograd.Function):
    """One step for the whole tensor; the range is [low, high] in steps from zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, log_scale: Tensor, low: int, high: int) -> Tensor:
        scale = log_scale.exp()
        y = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, y, scale)
        ctx.range = (low, high)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, y, scale = ctx.saved_tensors
        low, high = ctx.range
        grad = grads[0]
        if x.device.type == "cpu":  # one pass, no mask; reading the step costs nothing here
            step = float(scale)
            inside = torch.ops.aten.hardtanh_backward(grad, x, low * step, high * step)
        else:  # the host must not wait for the step
            inside = grad * ((x > scale * low) & (x < scale * high))
        grad_scale = None
        if ctx.needs_input_grad[1]:
            # d y / d log s is y - x inside the range and y outside of it.
            share = 1.0 / math.sqrt(x.numel() * max(high, 1))
            grad_scale = (_dot(grad, y) - _dot(inside, x)) * share
        return inside, grad_scale, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products of two tensors of one shape, whatever their memory format."""
    if a.stride() == b.stride():
        if a.is_contiguous():
            return torch.dot(a.view(-1), b.view(-1))
        if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
            flat = [t.permute(0, 2, 3, 1).reshape(-1) for t in (a, b)]  # views, not copies
            return torch.dot(*flat)
    return (a * b).sum()


class _FakeQuantChannels(torch.autograd.Function):
    """One step for each slice along `axis`; the range is symmetric, [-high, high].

    One tensor is kept for the backward pass: what rounding added, in steps, within a half where
    the value was inside the range, and the clipped value itself, at least 1, where it was not.
    Both gradients follow from it. Fresh memory from the system is what costs time here, more than
    the arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, log_scale: Tensor, high: int, axis: int) -> Tensor:
        shape = [1] * w.dim()
        shape[axis] = -1
        scale = log_scale.exp().view(shape)
        moved = torch.div(w, scale)
        y = torch.round(moved).clamp_(-high, high)
        torch.ops.aten.hardtanh_backward(moved, moved, -high, high, grad_input=moved)
        torch.sub(y, moved, out=moved)
        ctx.save_for_backward(moved, scale)
        ctx.setting = (high, axis)
        return y.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        moved, scale = ctx.saved_tensors
        high, axis = ctx.setting
        grad = grads[0]
        inside = torch.ops.aten.hardtanh_backward(grad, moved, -0.75, 0.75)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            share = 1.0 / math.sqrt(moved.numel() / moved.shape[axis] * high)
            grad_scale = _dot_slices(grad, moved, axis).mul_(scale.view(-1)).mul_(share)
        return inside, grad_scale, None, None


def _dot_slices(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Sum of products of each slice along `axis`, of two tensors of one shape."""
    first, second = a.movedim(axis, 0), b.movedim(axis, 0)
    if second.dim() == 4:  # channels last: in the order of the memory there is nothing to copy
        first, second = first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)
    count = second.shape[0]
    return torch.bmm(first.reshape(count, 1, -1), second.reshape(count, -1, 1)).view(count)


class ActivationQuantizer(nn.Module):
    """Rounds an activation to 8 bits, one step for the tensor.

    With `relu` it also does the work of the ReLU (or ReLU6, with `limit`) that stood before it,
    in the same pass. With `fixed`, a step and a zero point, calibration leaves the range alone.
    """

    lower_network: ClassVar[Callable[[nn.Module], nn.Module]]
    """How a network that holds quantisers is exported; `quantization/__init__` sets it."""

    log_scale: nn.Parameter
    zero_point: Tensor

    def __init__(
        self, *, unsigned: bool, relu: bool = False, limit: float | None = None, bits: int = 8,
        fixed: tuple[float, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.unsigned, self.relu, self.limit, self.bits = unsigned, relu, limit, bits
        self.fixed = fixed
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        self.enabled = True
        self.observer: Observer | None = None
        self._zero: tuple[tuple[int, int], int] | None = None

    @property
    def low(self) -> int:
        """Smallest integer in use."""
        return 0 if self.unsigned or self.relu else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer of the stored type."""
        return (1 << (self.bits if self.unsigned else self.bits - 1)) - 1

    def _zero_point(self) -> int:
        """The zero point on the host; read from the buffer again only when that has changed."""
        state = (id(self.zero_point), self.zero_point._version)  # a copy has versions of its own
        if self._zero is None or self._zero[0] != state:
            self._zero = (state, int(self.zero_point))
        return self._zero[1]

    def effective_log_scale(self) -> Tensor:
        """Logarithm of the step in use: with a `limit` the range never passes it."""
        if self.limit is not None:
            return self.log_scale.clamp(max=math.log(self.limit / self.high))
        return self.log_scale

    def scale(self) -> Tensor:
        """The step in use, [] float32."""
        return self.effective_log_scale().detach().exp()

    def set_range(self, scale: float, zero_point: int) -> None:
        """Take over a calibrated step and zero point, and start to quantise."""
        with torch.no_grad():
            self.log_scale.fill_(math.log(max(scale, SMALLEST_SCALE)))
            self.zero_point.fill_(zero_point)
        self.enabled, self.observer = True, None

    def clip(self, x: Tensor) -> Tensor:
        """What is left of an absorbed ReLU while nothing is rounded."""
        return x.clamp(0, self.limit) if self.relu else x

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            x = self.clip(x)
            self.observer.update(x)
            return x
        if not self.enabled:
            return self.clip(x)
        zero = self._zero_point()
        # Under autocast x may be bfloat16, whose 8 digits are too few to round with.
        y: Tensor = _FakeQuantTensor.apply(
            x.float(), self.effective_log_scale(), self.low - zero, self.high - zero
        )
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        kind = "uint" if self.unsigned else "int"
        return f"{kind}{self.bits}{', relu' if self.relu else ''}"


class WeightQuantizer(nn.Module):
    """Rounds a weight to `bits`, symmetric, one step per slice along `axis`."""

    lower_network: ClassVar[Callable[[nn.Module], nn.Module]]
    """How a network that holds quantisers is exported; `quantization/__init__` sets it."""

    def __init__(self, channels: int, *, axis: int = 0, bits: int = 8) -> None:
        super().__init__()
        self.axis, self.bits = axis, bits
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.enabled = True

    @property
    def high(self) -> int:
        """Largest integer; the smallest is its negative."""
        return (1 << (self.bits - 1)) - 1

    def scale(self) -> Tensor:
        """The steps in use, [channels] float32."""
        return self.log_scale.detach().exp()

    def set_scale(self, scale: Tensor) -> None:
        """Take over steps, [channels]."""
        with torch.no_grad():
            self.log_scale.copy_(scale.clamp_min(SMALLEST_SCALE).log())

    def forward(self, w: Tensor) -> Tensor:
        if not self.enabled:
            return w
        y: Tensor = _FakeQuantChannels.apply(w, self.log_scale, self.high, self.axis)
        return y

    def extra_repr(self) -> str:
        return f"int{self.bits}, axis={self.axis}"


class QuantConv2d(nn.Conv2d):
    """A convolution whose weight is rounded; the keys of the float one stay the same."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.weight_quantizer(self.weight)
        out: Tensor = self._conv_forward(input, weight, self.bias)
        return out


class QuantSameConv2d(SameConv2d):
    """The same with the padding of TensorFlow's SAME."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        weight: Tensor = self.weight_quantizer(self.weight)
        out: Tensor = self._conv_forward(pad_same(input, self), weight, self.bias)
        return out


class QuantConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution whose weight is rounded along its output channels."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise UserError("a quantised transposed convolution takes no output_size.")
        return transposed(self, input, self.weight_quantizer(self.weight), self.bias)


def transposed(layer: nn.ConvTranspose2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed convolution with the options of `layer` and another weight."""
    assert not isinstance(layer.padding, str)
    return nn.functional.conv_transpose2d(
        x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups,
        layer.dilation,
    )  # fmt: skip


class QuantLinear(nn.Linear):
    """A linear layer whose weight is rounded."""

    weight_quantizer: WeightQuantizer

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight_quantizer(self.weight), self.bias)


_QUANTISED: tuple[tuple[type[nn.Module], type[nn.Module], int], ...] = (
    (SameConv2d, QuantSameConv2d, 0),
    (nn.Conv2d, QuantConv2d, 0),
    (nn.ConvTranspose2d, QuantConvTranspose2d, 1),
    (nn.Linear, QuantLinear, 0),
)


def weight_axis(module: nn.Module) -> int | None:
    """Axis of the output channels in the weight, or None where the class has no quantised form."""
    for plain, quantised, axis in _QUANTISED:
        # A subclass with a forward pass of its own computes something else.
        if isinstance(module, plain) and type(module).forward in (plain.forward, quantised.forward):
            return axis
    return None


def with_quantised_weight(module: nn.Module, bits: int) -> nn.Module:
    """The quantised form of a layer. It shares parameters, buffers and hooks with the layer."""
    for plain, quantised, axis in _QUANTISED:
        if isinstance(module, plain):
            new = quantised.__new__(quantised)
            new.__dict__.update(
                {k: copy(v) if isinstance(v, dict) else v for k, v in module.__dict__.items()}
            )
            weight: Tensor = new.weight  # type: ignore[assignment]
            quantizer = WeightQuantizer(weight.shape[axis], axis=axis, bits=bits)
            new.weight_quantizer = quantizer.to(weight.device)
            return new
    raise TypeError(f"no quantised form of {type(module).__name__}")


def weight_of(module: nn.Module) -> tuple[Tensor, WeightQuantizer] | None:
    """The float weight of a quantised layer with its quantiser, or None."""
    quantizer = getattr(module, "weight_quantizer", None)
    if isinstance(quantizer, WeightQuantizer):
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight, quantizer
    return None


def freeze_norms(model: nn.Module) -> None:
    """Stop the batch statistics from moving: for the last part of training.

    Call it after `model.train()`, which wakes them again.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
