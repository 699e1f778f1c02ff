"""To the last bit what ONNX Runtime's kernels compute, where torch differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from vcompress.compress.quantization import mlas
from vcompress.export.runtime import run_onnx

avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="sums in the order of AVX-512"
)


def runtime(nodes: list[onnx.NodeProto], x: Tensor, **held: Tensor) -> Tensor:
    """What ONNX Runtime makes of `x`, the tensor x of the nodes, as their tensor y."""
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in (("x", list(x.shape)), ("y", None))
    ]
    constants = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in held.items()]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    (made,) = run_onnx(proto.SerializeToString(), x.numpy(), optimised=False)
    return torch.from_numpy(made)


def noise(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def parameters(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(width, generator=generator) for name in ("g", "b")}


def node(operator: str, *inputs: str, **settings: Any) -> list[onnx.NodeProto]:
    return [helper.make_node(operator, ["x", *inputs], ["y"], **settings)]


@pytest.mark.parametrize(
    ("ours", "plain", "nodes", "shape"),
    [
        (mlas.logistic, torch.sigmoid, node("Sigmoid"), (40, 999)),
        (mlas.hard_sigmoid, nn.functional.hardsigmoid, node("HardSigmoid", alpha=1 / 6), (40, 999)),
        (mlas.erf, torch.erf, node("Erf"), (40, 999)),
        (mlas.gelu, nn.functional.gelu, node("Gelu"), (40, 999)),
        *(
            pytest.param(
                mlas.softmax, lambda x: x.softmax(-1), node("Softmax", axis=-1), (40, 12, size),
                marks=avx512,
            )
            for size in (7, 16, 17, 197)
        ),
    ],
)  # fmt: skip
def test_functions_are_those_of_the_runtime(
    ours: Callable[[Tensor], Tensor],
    plain: Callable[[Tensor], Tensor],
    nodes: list[onnx.NodeProto],
    shape: tuple[int, ...],
) -> None:
    x = noise(*shape)
    theirs = runtime(nodes, x)
    assert torch.equal(ours(x), theirs)
    assert float((plain(x) != theirs).float().mean()) > 0.05
    assert torch.allclose(plain(x), theirs, atol=1e-5)


@pytest.mark.parametrize("width", [8, 96, 768])
def test_layer_norms_are_those_of_the_runtime(width: int) -> None:
    x, held = noise(40, 5, width), parameters(width)
    theirs = runtime(node("LayerNormalization", "g", "b", axis=-1, epsilon=1e-6), x, **held)
    assert torch.equal(mlas.layer_norm(x, held["g"], held["b"], 1e-6), theirs)
    plain = nn.functional.layer_norm(x, (width,), held["g"], held["b"], 1e-6)
    assert float((plain != theirs).float().mean()) > 0.05
    assert torch.allclose(plain, theirs, atol=1e-5)


def test_the_mean_of_a_layer_norm_is_summed_in_the_runtimes_order() -> None:
    x, held = noise(320, 96), parameters(96)
    generator = torch.Generator().manual_seed(0)
    for row in x:  # two that cancel, and swallow what is added between them
        first, second = torch.randperm(96, generator=generator)[:2]
        row[first], row[second] = 2.0**58, -(2.0**58)
    held["b"].zero_()
    theirs = runtime(node("LayerNormalization", "g", "b", axis=-1), x, **held)
    assert torch.equal(mlas.layer_norm(x, held["g"], held["b"], 1e-5), theirs)
    backwards = mlas.layer_norm(x.flip(-1), held["g"].flip(-1), held["b"], 1e-5).flip(-1)
    assert not torch.equal(backwards, theirs)


def test_the_norm_of_a_sum_is_that_of_the_runtime() -> None:
    x, held = noise(40, 5, 96), parameters(96)
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node(
            "SkipLayerNormalization", ["x", "r", "g", "b"], ["y"], domain="com.microsoft",
            epsilon=1e-6,
        ),
    ]  # fmt: skip
    theirs, total = runtime(nodes, x, **held), x + x.relu()
    assert torch.equal(mlas.sum_layer_norm(total, held["g"], held["b"], 1e-6), theirs)
    assert not torch.equal(mlas.layer_norm(total, held["g"], held["b"], 1e-6), theirs)


@pytest.mark.parametrize("dim", [-1, -2])
def test_vectors_of_length_one_are_those_of_the_runtime(dim: int) -> None:
    x = noise(40, 4, 32, 17)
    x[0, 0] = 0
    nodes = [
        helper.make_node("ReduceL2", ["x", "axes"], ["length"]),
        helper.make_node("Clip", ["length", "least"], ["held"]),
        helper.make_node("Div", ["x", "held"], ["y"]),
    ]
    theirs = runtime(nodes, x, axes=torch.tensor([dim]), least=torch.tensor(1e-12))
    assert torch.equal(mlas.unit(x, dim), theirs)
    if dim == -1:  # along another dimension torch adds in order too
        assert not torch.equal(nn.functional.normalize(x, dim=dim), theirs)


@pytest.mark.parametrize(
    ("rows", "depth"),
    [(17, 64), (197, 64), (50, 192)],
)
def test_long_products_of_matrices_are_torchs(rows: int, depth: int) -> None:
    x = noise(8, rows, depth)
    assert torch.equal(mlas.matmul(x, x.mT), torch.matmul(x, x.mT))
    assert torch.equal(mlas.matmul(x, x.mT), product(x))


@pytest.mark.parametrize(("rows", "depth"), [(2, 64), (5, 64), (50, 197), (64, 256)])
def test_narrow_and_deep_products_of_matrices_are_those_of_the_runtime(
    rows: int, depth: int
) -> None:
    x = noise(8, rows, depth)
    assert torch.equal(mlas.matmul(x, x.mT), product(x))
    assert not torch.equal(torch.matmul(x, x.mT), product(x))


def product(x: Tensor) -> Tensor:
    """Every matrix times its transpose."""
    turned = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1])
    return runtime([turned, *node("MatMul", "t")], x)


def test_a_product_with_one_rounding_is_that_of_the_processor() -> None:
    a, b, c = noise(3, 999)
    assert torch.equal(mlas.fma(a, b, c), (a.double() * b.double() + c.double()).float())
    assert not torch.equal(mlas.fma(a, b, c), a * b + c)
