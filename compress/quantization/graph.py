"""Reads a graph: what a node does, where its tensor comes from and goes to."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.padding import (
    _CircularPadNd,
    _ConstantPadNd,
    _ReflectionPadNd,
    _ReplicationPadNd,
)

from .trace import as_written, shape

_MODULES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], str], ...] = (
    (nn.Conv2d, "conv"),
    (nn.ConvTranspose2d, "conv_transpose"),
    (nn.Linear, "linear"),
    (nn.modules.batchnorm._BatchNorm, "bn"),
    (nn.ReLU6, "relu6"),
    (nn.ReLU, "relu"),
    (nn.MaxPool2d, "maxpool"),
    (nn.AvgPool2d, "avgpool"),
    (nn.AdaptiveAvgPool2d, "adaptive_avgpool"),
    ((nn.Dropout, nn.Dropout2d, nn.Identity), "identity"),
    ((nn.Flatten, nn.Unflatten, nn.PixelShuffle), "reshape"),
    ((nn.Sigmoid, nn.Hardsigmoid, nn.Softmax), "gate"),
    ((nn.SiLU, nn.Hardswish, nn.GELU, nn.Tanh, nn.LeakyReLU, nn.ELU), "activation"),
    ((nn.LayerNorm, nn.GroupNorm), "norm"),
    (nn.Upsample, "resize"),
    ((_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd, _CircularPadNd), "pad"),
)
_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.conv2d: "conv",
    F.linear: "linear",
    torch.matmul: "matmul",
    torch.bmm: "matmul",
    operator.matmul: "matmul",
    F.relu: "relu",
    torch.relu: "relu",
    F.relu6: "relu6",
    operator.add: "add",
    torch.add: "add",
    operator.mul: "mul",
    torch.mul: "mul",
    torch.cat: "cat",
    torch.concat: "cat",
    F.max_pool2d: "maxpool",
    F.avg_pool2d: "avgpool",
    F.adaptive_avg_pool2d: "adaptive_avgpool",
    torch.mean: "mean",
    torch.flatten: "reshape",
    torch.reshape: "reshape",
    torch.unflatten: "reshape",
    torch.permute: "reshape",
    torch.transpose: "reshape",
    torch.squeeze: "reshape",
    torch.unsqueeze: "reshape",
    torch.chunk: "reshape",
    torch.split: "reshape",
    operator.getitem: "reshape",
    F.pixel_shuffle: "reshape",
    F.interpolate: "resize",
    torch.sigmoid: "gate",
    F.sigmoid: "gate",
    F.hardsigmoid: "gate",
    torch.softmax: "gate",
    F.softmax: "gate",
    F.silu: "activation",
    F.hardswish: "activation",
    F.gelu: "activation",
    torch.tanh: "activation",
    F.leaky_relu: "activation",
    F.layer_norm: "norm",
    F.group_norm: "norm",
    F.dropout: "identity",
    F.pad: "pad",
}
_METHODS: dict[str, str] = {
    "add": "add",
    "mul": "mul",
    "relu": "relu",
    "matmul": "matmul",
    "bmm": "matmul",
    "mean": "mean",
    "sigmoid": "gate",
    "softmax": "gate",
    **dict.fromkeys(
        (
            "flatten",
            "unflatten",
            "view",
            "reshape",
            "permute",
            "transpose",
            "contiguous",
            "squeeze",
            "unsqueeze",
            "chunk",
            "split",
            "expand",
        ),
        "reshape",
    ),
}


_WEIGHTED: dict[str, type[nn.Module]] = {
    "conv": nn.Conv2d,
    "conv_transpose": nn.ConvTranspose2d,
    "linear": nn.Linear,
}


def _computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a subclass kept the forward pass of a layer, or is ours."""
    ours = (type(module).__module__ or "").startswith(__package__ or "vcompress")
    return ours or type(module).forward is kind.forward


def leaf(node: fx.Node) -> nn.Module | None:
    """The module that a node calls."""
    if node.op != "call_module":
        return None
    owner = node.graph.owning_module
    assert owner is not None
    return owner.get_submodule(str(node.target))


def attribute(root: nn.Module, path: str) -> Any:
    """The parameter or buffer that a `get_attr` node reads."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def kind(node: fx.Node) -> str:
    """The sort of operation: `conv`, `linear`, `relu`, `add`, `global_pool`, `reshape`, ..."""
    found = written_as(node)
    if found in ("adaptive_avgpool", "mean"):
        return _pool_kind(node, found)
    return found


_CLIPS = frozenset({
    torch.clamp, torch.clip, torch.clamp_min, F.hardtanh, "clamp", "clip", "clamp_min",
})  # fmt: skip


def _clip_kind(node: fx.Node) -> str:
    """`relu` or `relu6` of what limits values from 0 on, or to 0 and 6."""
    low: Any
    high: Any
    module = leaf(node)
    if module is not None:
        low, high = module.min_val, module.max_val
    else:
        given = dict(zip(("min", "max"), (*node.args[1:3], None, None), strict=False))
        given |= {k.removesuffix("_val"): v for k, v in node.kwargs.items()}
        low, high = given["min"], given["max"]
        if node.target is F.hardtanh:
            low, high = -1.0 if low is None else low, 1.0 if high is None else high
    if isinstance(low, fx.Node) or isinstance(high, fx.Node) or low != 0:
        return "other"
    return "relu" if high is None else "relu6" if high == 6 else "other"


def written_as(node: fx.Node) -> str:
    """The sort of operation by its name alone: what a pooling or a mean is over, is not looked at.

    For graphs whose shapes are not recorded.
    """
    found = "other"
    if node.op in ("placeholder", "output", "get_attr"):
        return "input" if node.op == "placeholder" else node.op
    if node.op == "call_module":
        module = leaf(node)
        if type(module).__name__ in {"StochasticDepth", "DropPath", "DropBlock2d"}:
            return "identity"
        found = next((k for types, k in _MODULES if isinstance(module, types)), "other")
        if found in _WEIGHTED and module is not None and not _computes_as(module, _WEIGHTED[found]):
            return "other"
        found = _clip_kind(node) if isinstance(module, nn.Hardtanh) and found == "other" else found
    elif node.target in _CLIPS:
        found = _clip_kind(node)
    elif node.op == "call_function":
        found = _FUNCTIONS.get(node.target, "other")  # type: ignore[arg-type]
    elif node.op == "call_method":
        found = _METHODS.get(str(node.target), "other")
    return "other" if found == "pad" and padding(node) is None else found


def padding(node: fx.Node) -> tuple[tuple[int, ...], str] | None:
    """Zeros or values of the map itself around it: (left, right, top, bottom), or fewer, and the
    mode of `torch.nn.functional.pad`; None of a node that does something else."""
    module = leaf(node)
    pads: Any = None
    mode: Any = "constant"
    value: Any = None
    if isinstance(module, _ConstantPadNd):
        pads, value = module.padding, module.value
    elif isinstance(module, (_ReflectionPadNd, _ReplicationPadNd, _CircularPadNd)):
        modes = {_ReflectionPadNd: "reflect", _ReplicationPadNd: "replicate"}
        pads = module.padding
        mode = next((m for k, m in modes.items() if isinstance(module, k)), "circular")
    elif node.target is F.pad:
        given = {
            **dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)),
            **node.kwargs,
        }
        pads, mode, value = given["pad"], given.get("mode", "constant"), given.get("value")
    if not isinstance(pads, (list, tuple)) or len(pads) > 4 or value:
        return None
    return (tuple(pads), str(mode)) if all(isinstance(p, int) for p in pads) else None


def before_zeros(node: fx.Node) -> fx.Node:
    """What stands before zeros that only one operation reads: of a convolution they become its own
    padding in the file. Any other node as it is."""
    found = padding(node)
    alone = found is not None and found[1] == "constant" and len(node.users) == 1
    return node.all_input_nodes[0] if alone else node


def called_weight(node: fx.Node) -> fx.Node | None:
    """The node that makes the weight of a convolution or linear layer that is a function call."""
    if node.op != "call_function":
        return None
    found = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
    return found if isinstance(found, fx.Node) else None


def constant(root: nn.Module, node: fx.Node) -> Tensor:
    """The tensor of a node that depends on parameters alone."""
    if node.op == "get_attr":
        found: Tensor = attribute(root, str(node.target))
        return found
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: constant(root, n))
    assert isinstance(root, fx.GraphModule)
    with torch.no_grad():
        found = getattr(fx.Interpreter(root), node.op)(node.target, args, kwargs)
    return found


def _pool_kind(node: fx.Node, found: str) -> str:
    before, after = shape(tensor_inputs(node)[0]), shape(node)
    if before is None or after is None or len(before) != 4:
        return "other"
    if found == "mean":
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        pooled = isinstance(dims, (list, tuple)) and {int(d) % 4 for d in dims} == {2, 3}
        return "global_pool" if pooled else "other"
    if after[2:] == before[2:]:
        return "identity"
    return "global_pool" if after[2:] == (1, 1) else "other"


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node reads, in order, a list of them opened (as for `cat`)."""
    return list(_nodes((*node.args, *node.kwargs.values())))


def _nodes(values: Any) -> Iterator[fx.Node]:
    for value in values:
        if isinstance(value, fx.Node):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _nodes(value)


def activations_of(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that are activations: for a layer the first only."""
    inputs = tensor_inputs(node)
    if kind(node) in ("conv", "linear", "conv_transpose"):
        return inputs[:1]
    return [n for n in inputs if n.op != "get_attr"]


PASSES_ON = frozenset({"reshape", "maxpool", "identity", "pad"})
"""Kinds that move values and never make new ones: the step of their input is theirs."""


def source(node: fx.Node) -> fx.Node:
    """The node that made the values of a tensor, before they were only moved.

    For a module that makes several tensors: the node that takes one of them.
    """
    found = node
    while kind(node) in PASSES_ON and tensor_inputs(node):
        node = tensor_inputs(node)[0]
        if shape(node) is not None:
            found = node
    return found


def bn_after(node: fx.Node, channels: int | None = None) -> fx.Node | None:
    """The batch norm that alone reads what a layer makes, and has the layer's channels.

    Behind a linear layer on tokens [B, N, D] there may be one over the N tokens: not such a one.
    `channels` are those of a layer that is a function call.
    """
    users, layer = list(node.users), leaf(node)
    if layer is not None:
        channels = getattr(layer, "out_features", getattr(layer, "out_channels", None))
    if channels is None or len(users) != 1 or kind(users[0]) != "bn":
        return None
    return users[0] if getattr(leaf(users[0]), "num_features", None) == channels else None


def tail(node: fx.Node) -> fx.Node:
    """The last node of the chain that a target runs as one: the node, its BN, its ReLU."""
    for wanted in (("bn",), ("relu", "relu6")):
        users = list(node.users)
        if len(users) == 1 and kind(users[0]) in wanted and activations_of(users[0])[0] is node:
            node = users[0]
    return node


def head(node: fx.Node) -> fx.Node:
    """The first node of the chain whose last node is given; the inverse of `tail`."""
    for wanted in (("relu", "relu6"), ("bn",)):
        if kind(node) in wanted:
            before = tensor_inputs(node)[0]
            if len(before.users) == 1:
                node = before
    return node


def is_leaf_of_output(node: fx.Node) -> bool:
    """Whether a tensor reaches the network's output and nothing else, moved or resized at most."""
    return all(
        user.op == "output" or (kind(user) in PASSES_ON | {"resize"} and is_leaf_of_output(user))
        for user in node.users
    )


def qualified_name(node: fx.Node) -> str:
    """The path of the module that a node calls; of others the path of the module whose forward
    pass they belong to, and their own name."""
    if node.op == "call_module":
        return as_written(str(node.target))
    around = list(node.meta.get("nn_module_stack", {}).values())
    return f"{around[-1][0]}.{node.name}" if around and around[-1][0] else node.name
