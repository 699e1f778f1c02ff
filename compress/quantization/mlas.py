"""Floating-point functions of ONNX Runtime's CPU kernels (MLAS), to the last bit.

torch's differ in the last bit of 10 to 60 % of values. Read and probed in ONNX Runtime 1.31.1 on
x86 (the coefficients are those of microsoft/onnxruntime, `core/mlas/lib/logistic.cpp`, `erf.cpp`
and `compute.cpp`); the order of the sums is that of AVX-512 for softmax, of AVX2 for layer norms.
Other processors sum in other orders, and differ as torch does.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

AT_ONCE = 192
"""Products that torch's matrix product (MKL) adds up in order, as MLAS does."""
WIDE = 16
"""Rows and columns from which on it does."""
MLAS_AT_ONCE = 256
"""Products that MLAS adds up in order."""


@functools.cache
def _addcmul_is_fused() -> bool:
    """Whether torch's kernel for a + b * c rounds once; where it does not, doubles do."""
    a, b, c = (torch.randn(256, generator=torch.Generator().manual_seed(s)) for s in range(3))
    return torch.equal(torch.addcmul(c, a, b), (a.double() * b.double() + c.double()).float())


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c with one rounding, float32."""
    if a.device.type == "cpu" and _addcmul_is_fused():
        return torch.addcmul(c, a, b)
    return (a.double() * b.double() + c.double()).float()


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's scheme, the highest power first."""
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = fma(total, x, x.new_tensor(coefficient))
    return total


_LOGISTIC_ABOVE = (
    4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05, 8.51377133304701e-03,
    2.48287947061529e-01,
)  # fmt: skip
_LOGISTIC_BELOW = (
    6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06, 1.70198817374094e-03,
    1.16817656904453e-01, 9.93151921023180e-01,
)  # fmt: skip
_SIXTH = float(torch.tensor(1.0) / 6)
_EXP = (
    0.0013780594, 0.0083731245, 0.041669536, 0.16666472, 0.49999985, 1.0, 1.0,
)  # fmt: skip
_EXP_IN_ERF = (
    1.38319808e-3, 8.37550033e-3, 4.16689515e-2, 1.66664466e-1, 4.99999851e-1, 1.0, 1.0,
)  # fmt: skip
_ERF_SMALL = (
    -5.99104969e-4, 4.99339588e-3, -2.67667342e-2, 1.12818025e-1, -3.76124859e-1, 1.28379151e-1,
)  # fmt: skip
_ERF_BIG = (
    1.72948930e-5, -3.83208680e-4, 3.88393435e-3, -2.42545605e-2, 1.06777847e-1, 6.34846687e-1,
    1.28717512e-1,
)  # fmt: skip


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)): a quotient of two polynomials in x^2."""
    x = x.clamp(-18.0, 18.0)
    square = x * x
    above, below = (_polynomial(square, c) for c in (_LOGISTIC_ABOVE, _LOGISTIC_BELOW))
    return above.mul_(x).div_(below).add_(0.5).clamp_(0.0, 1.0)


def silu(x: Tensor) -> Tensor:
    """x * logistic(x)."""
    return logistic(x).mul_(x)


def hard_sigmoid(x: Tensor) -> Tensor:
    """x * (1 / 6) + 1 / 2, clipped; torch divides by 6 after that."""
    return torch.mul(x, _SIXTH).add_(0.5).clamp_(0.0, 1.0)


def hard_swish(x: Tensor) -> Tensor:
    """x * hard_sigmoid(x), into which ONNX Runtime opens it."""
    return hard_sigmoid(x).mul_(x)


def exp(x: Tensor, coefficients: Sequence[float] = _EXP) -> Tensor:
    """exp(x) for x of -88.37 to 0: 2^m * p(x - m * ln 2), with ln 2 in two parts."""
    x = x.clamp_min(-88.3762626647949)
    many = 12582912.0  # 1.5 * 2^23: what is added to it is rounded to an integer
    power = fma(x, x.new_tensor(1.44269504088896341), x.new_tensor(many)) - many
    x = fma(power, x.new_tensor(-6.93145752e-1), x)
    x = fma(power, x.new_tensor(-1.42860677e-6), x)
    return torch.ldexp(_polynomial(x, coefficients), power.to(torch.int32))


def erf(x: Tensor) -> Tensor:
    """The error function: an odd polynomial near zero, 1 - exp of a polynomial elsewhere."""
    size = x.abs().clamp_max(3.925)
    small = fma(_polynomial(size * size, _ERF_SMALL), size, size)
    big = 1 - exp(fma(_polynomial(size, _ERF_BIG), size, size).neg_(), _EXP_IN_ERF)
    return torch.where(size >= 0.921875, big, small).copysign_(x)


def gelu(x: Tensor) -> Tensor:
    """x / 2 * (1 + erf(x / sqrt 2))."""
    return erf(x * 0.5**0.5).add_(1.0).mul_(x * 0.5)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax, summed in sixteen lanes that are then added by pairs; over another dimension than
    the last it is torch's."""
    if dim not in (-1, x.dim() - 1):
        return torch.softmax(x, dim)
    powers = exp(x - x.amax(-1, keepdim=True))
    padded = torch.nn.functional.pad(powers, (0, -powers.shape[-1] % 16))
    total = functools.reduce(torch.add, torch.split(padded, 16, -1))
    total = total[..., :8] + total[..., 8:]
    while total.shape[-1] > 1:
        total = total[..., 0::2] + total[..., 1::2]
    return powers.mul_(total.reciprocal_())


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, a multiple of 8: the mean in four lanes of doubles, the
    squares in eight of floats."""
    size = x.shape[-1]
    total = _halves(functools.reduce(torch.add, torch.split(x.double(), 4, -1)))
    centred = x - (total / size).float()
    lanes = torch.split(centred, 8, -1)
    squares = _halves(functools.reduce(lambda sum_, v: fma(v, v, sum_), lanes, lanes[0] * 0))
    normal = centred.mul_(_root(squares / size + x.new_tensor(eps)).reciprocal_())
    return fma(normal, weight, x.new_zeros(()) if bias is None else bias)


def _halves(x: Tensor) -> Tensor:
    """The sum over the last dimension, a power of two, each half added to the other."""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return x


def sum_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of a sum of two tensors [B, N, D], which ONNX Runtime fuses: Welford's updates of
    mean and variance, one value after the other."""
    mean = x.new_zeros(x.shape[:-1])
    squares = mean.clone()
    for count, value in enumerate(x.unbind(-1), start=1):
        change = value - mean
        mean = mean + change / count
        squares = squares + change * (value - mean)
    variance = squares / x.shape[-1] + x.new_tensor(eps)
    return (x - mean.unsqueeze(-1)).div_(_root(variance).unsqueeze(-1)).mul_(weight).add_(bias)


def _root(x: Tensor) -> Tensor:
    """The square root, rounded; torch's of float32 is not."""
    return x.double().sqrt_().float()


def unit(x: Tensor, dim: int) -> Tensor:
    """Vectors along `dim` of length one; the squares are added up in order."""
    length = _root(functools.reduce(torch.add, (x * x).unbind(dim)))
    return x / length.clamp_min_(1e-12).unsqueeze(dim)


def matmul(a: Tensor, b: Tensor, factor: float | None = None) -> Tensor:
    """Matrix product, times a factor, whose sums of up to `MLAS_AT_ONCE` products run in order.

    [..., M, K] by [..., K, N]. With M or N of one, or more products, it is torch's.
    """
    made = _matmul(a, b)
    return made if factor is None else made.mul_(factor)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    depth, narrow = a.shape[-1], min(a.shape[-2:-1] + b.shape[-1:])
    if a.dim() < 2 or b.dim() < 2 or narrow < 2 or depth > MLAS_AT_ONCE:
        return torch.matmul(a, b)
    start = AT_ONCE if narrow >= WIDE else 0
    total = torch.matmul(a[..., :start], b[..., :start, :])
    for k in range(start, depth):
        total = fma(a[..., k : k + 1], b[..., k : k + 1, :], total)
    return total
