"""2:4 sparsity: two of four neighbouring weights are zero, and sparse tensor cores skip them.

Neighbours lie along the input channels, as TensorRT wants them. Mishra et al., Accelerating
Sparse Deep Neural Networks, 2021, arXiv:2104.08378.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from ..models.patterns import check_patterns, matches

log = logging.getLogger(__name__)


_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def mask_2_4(weight: Tensor) -> Tensor:
    """Bool mask like `weight` [O, I, ...] of the two largest of each four along I.

    Raises UserError where I is no multiple of 4.
    """
    inputs = weight.shape[1]
    if inputs % 4:
        raise UserError(f"2:4 sparsity needs input channels in fours; got {inputs}.")
    last = weight.detach().abs().movedim(1, -1)
    fours = last.reshape(-1, 4)
    keep = torch.zeros_like(fours, dtype=torch.bool)
    keep.scatter_(1, fours.topk(2, dim=1).indices, True)
    return keep.view(last.shape).movedim(-1, 1).contiguous()


def is_2_4(weight: Tensor) -> bool:
    """Whether each four neighbours along dimension 1 of `weight` [O, I, ...] have two zeros."""
    if weight.dim() < 2 or weight.shape[1] % 4:
        return False
    fours = (weight.detach() != 0).movedim(1, -1).reshape(-1, 4)
    return bool((fours.sum(1) <= 2).all()) and bool(fours.any())


def sparse_layers(model: nn.Module) -> list[str]:
    """Paths of the layers whose weights are 2:4 sparse."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and is_2_4(module.weight)
    ]


def sparsify(model: nn.Module, protect: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Zero two of four weights of every layer that can be, in place.

    Returns the paths of those layers, and the others with the reason. Layers at or inside a path
    or pattern of `protect` are left alone. Raises UserError where no layer is left.
    """
    check_patterns("protect", protect, dict(model.named_modules()))
    done: list[str] = []
    left_alone: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, _LAYERS):
            continue
        if matches(path, protect):
            left_alone[path] = "protected"
        elif module.weight.shape[1] % 4:
            left_alone[path] = f"{module.weight.shape[1]} input channels are not in fours"
        else:
            with torch.no_grad():
                module.weight.mul_(mask_2_4(module.weight))
            done.append(path)
    if not done:
        raise UserError(
            "No layer of this network has input channels in fours: none was sparsified."
        )
    return done, left_alone


@contextmanager
def held_sparse(model: nn.Module) -> Iterator[list[str]]:
    """While this is open, training leaves the zeros of 2:4 sparse weights at zero.

    Their gradients are masked, so an optimiser with fresh state does not move them, weight decay
    leaves zeros alone, and averages of them are zero. The mask is read from the weights: it holds
    for networks from a bundle and for quantised ones, whose quantisers keep zero at zero.
    """
    paths = sparse_layers(model)
    hooks = []
    for path in paths:
        weight = model.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        if weight.requires_grad:
            alive = weight.detach() != 0
            hook = weight.register_hook(  # type: ignore[no-untyped-call]
                lambda grad, alive=alive: grad * alive.to(grad.device)
            )
            hooks.append(hook)
    try:
        yield paths
    finally:
        for hook in hooks:
            hook.remove()


def sparsity_of(model: nn.Module, file: Path) -> dict[str, int] | None:
    """How many layers of a network and weights of its ONNX file are 2:4 sparse; None for a dense
    one.

    Fewer in the file are a warning: the exporter may have changed a weight's layout, and sparse
    tensor cores would not skip its zeros.
    """
    layers = sparse_layers(model)
    if not layers:
        return None
    weights = sum(sparse_in_file(file).values())
    if weights < len(layers):
        log.warning("%d layers are 2:4 sparse, and %d weights of the file", len(layers), weights)
    return {"layers": len(layers), "in_file": weights}


def sparse_in_file(path: Path) -> dict[str, bool]:
    """Whether each weight of the Conv, Gemm and MatMul nodes in an ONNX file is 2:4 sparse.

    Looks through DequantizeLinear to int8 weights. The names are those of the stored tensors.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    source = {
        output: node.input[0]
        for node in graph.node
        if node.op_type in ("DequantizeLinear", "Transpose", "Cast", "Identity")
        for output in node.output
    }
    flips = {o for node in graph.node if node.op_type == "Transpose" for o in node.output}
    result: dict[str, bool] = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2:
            continue
        name = node.input[1]
        inputs_first = node.op_type == "MatMul" or (
            node.op_type == "Gemm"
            and not any(item.name == "transB" and item.i for item in node.attribute)
        )
        while name not in stored and name in source:
            inputs_first ^= name in flips
            name = source[name]
        if name not in stored:
            continue  # a product of two activations
        weight = np.array(numpy_helper.to_array(stored[name]), dtype=np.float32)
        tensor = torch.from_numpy(weight)
        if inputs_first and tensor.dim() == 2:
            tensor = tensor.t()
        result[name] = is_2_4(tensor)
    return result
