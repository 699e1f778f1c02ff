"""Traces an `nn.Module` into a graph that is the same in training and evaluation."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from vcompress.bench.errors import UserError

from ..models.culprit import culprit
from .attention import OtherAttention, keep_masks, open_attention, open_products
from .in_place import Assignable, without_side_effects
from .shaped import ShapedTracer, input_shape


class SameConv2d(nn.Conv2d):
    """A convolution padded to ceil(size / stride), more at the bottom and right, as TensorFlow's
    SAME does. What timm's `Conv2dSame` computes, without its branch on the shape."""

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self._conv_forward(pad_same(input, self), self.weight, self.bias)
        return out


def pad_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`x` [B, C, H, W] with the zeros that a SAME convolution adds."""
    edges: list[int] = []
    for axis in (1, 0):
        size, stride = x.shape[2 + axis], conv.stride[axis]
        reach = (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
        missing = max((-(-size // stride) - 1) * stride + reach - size, 0)
        edges += [missing // 2, missing - missing // 2]
    return nn.functional.pad(x, edges) if any(edges) else x


def _open_same_padding(model: nn.Module) -> None:
    """Let timm's SAME convolutions be layers like others; their keys stay."""
    for module in model.modules():
        if type(module).__name__ == "Conv2dSame" and isinstance(module, nn.Conv2d):
            module.__class__ = SameConv2d


_TAKEN = (
    frozenset(dir(fx.GraphModule)) | frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))
) - frozenset(dir(nn.Module())) | {
    "activation_quantizers", "weight_quantizers", "rounded_gates"
}  # fmt: skip
"""Names that a graph has of its own, and a network may have given to a child."""
_MOVED = "__"


def inside(path: str) -> str:
    """The path in a traced graph of what stands at `path` in the network."""
    first, dot, rest = path.partition(".")
    return f"{first}{_MOVED}{dot}{rest}" if first in _TAKEN else path


def as_written(path: str) -> str:
    """The path in the network of what stands at `path` in its graph; the inverse of `inside`."""
    first, dot, rest = path.partition(".")
    own = first.removesuffix(_MOVED)
    return f"{own}{dot}{rest}" if own in _TAKEN else path


def _free_names(model: nn.Module, graph: fx.Graph) -> None:
    """Rename children, parameters and buffers whose names a graph has of its own (`code`)."""
    for held in (model._modules, model._parameters, model._buffers):
        for name in list(held):
            held[inside(name)] = held.pop(name)  # type: ignore[assignment]
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = inside(str(node.target))


class Untraceable(UserError):
    """The forward pass depends on values."""

    def __init__(self, message: str, stopped: str | None) -> None:
        super().__init__(message)
        self.stopped = stopped
        """Path of the innermost module that stopped the tracer; None for the network itself."""


class _Whole(fx.Tracer):
    """Keeps whole what behaves differently in training, since a trace freezes that."""

    leaves: frozenset[str] = frozenset()
    stopped: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves:
            return True
        if type(m).__name__.endswith(("StochasticDepth", "DropPath", "DropBlock2d")):
            return True
        if isinstance(m, SameConv2d) or _is_norm_act(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.stopped = self.stopped or self.path_of_module(m)
            raise


class _Tracer(_Whole):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Assignable(node, self)


class _WithSizes(_Whole, ShapedTracer):
    pass


def _tracer(shape: tuple[int, ...] | None, leaves: frozenset[str]) -> _Whole:
    tracer = _Tracer() if shape is None else _WithSizes(shape)
    tracer.leaves = leaves
    return tracer


def _is_norm_act(module: nn.Module) -> bool:
    """timm's batch norm that calls a dropout and an activation of its own."""
    return type(module).__name__ == "BatchNormAct2d" and isinstance(module, nn.BatchNorm2d)


def _open_norm_act(graph: fx.GraphModule) -> None:
    """Let it be a batch norm, which is folded, and what it calls nodes after it; the keys stay."""
    found = [n for n in graph.graph.nodes if n.op == "call_module"]
    found = [n for n in found if _is_norm_act(graph.get_submodule(n.target))]
    for node in found:
        with graph.graph.inserting_after(node):
            dropped = graph.graph.call_module(f"{node.target}.drop", (node,))
        with graph.graph.inserting_after(dropped):
            made = graph.graph.call_module(f"{node.target}.act", (dropped,))
        node.replace_all_uses_with(made, delete_user_cb=lambda user, own=dropped: user is not own)
    for node in found:
        graph.get_submodule(str(node.target)).__class__ = nn.BatchNorm2d


def _without_identities(graph: fx.GraphModule) -> None:
    """Take out what does nothing: between a layer and its ReLU (timm's `drop_block`) it would hide
    that they run as one."""
    for node in list(graph.graph.find_nodes(op="call_module")):
        if type(graph.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.graph.erase_node(node)


def _open_padding(graph: fx.GraphModule) -> None:
    """Let a convolution that pads by values of the map (reflect, replicate, circular) be a padding
    and a convolution: what is padded can then be integers."""
    opened: dict[str, tuple[tuple[int, ...], str]] = {}
    for node in list(graph.graph.find_nodes(op="call_module")):
        path = str(node.target)
        conv = graph.get_submodule(path)
        if not isinstance(conv, nn.Conv2d) or type(conv).forward is not nn.Conv2d.forward:
            continue
        if conv.padding_mode != "zeros":
            opened[path] = tuple(conv._reversed_padding_repeated_twice), conv.padding_mode
            conv.padding, conv.padding_mode = (0, 0), "zeros"
            conv._reversed_padding_repeated_twice = [0, 0, 0, 0]
        if path not in opened:
            continue
        pads, mode = opened[path]
        with graph.graph.inserting_before(node):
            padded = graph.graph.call_function(F.pad, (node.args[0], pads), {"mode": mode})
        node.replace_input_with(node.all_input_nodes[0], padded)


def _living_dropout(graph: fx.GraphModule) -> None:
    """Functional dropout was traced in evaluation; give it a module that follows `train()`."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and node.target is nn.functional.dropout:
            share = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
            name = f"{node.name}_module"
            graph.add_submodule(name, nn.Dropout(share))
            with graph.graph.inserting_before(node):
                new = graph.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)


def trace(
    model: nn.Module,
    leaves: frozenset[str] = frozenset(),
    inputs: int = 1,
    sizes: tuple[int, ...] | None = None,
) -> fx.GraphModule:
    """A graph of a deep copy of `model`; names of nodes depend on the architecture alone.

    Args:
        leaves: paths of modules that are not looked into.
        inputs: how many tensors it is called with; its other arguments keep their defaults.
        sizes: those of its one input without the batch, where the forward pass branches on them;
            default: what the network keeps as `input_shape`.

    Raises:
        Untraceable: the forward pass depends on values; names the call that stopped the tracer.
    """
    model = copy.deepcopy(model)
    training = model.training
    model.eval()
    open_attention(model, leaves)
    _open_same_padding(model)
    sizes = sizes or input_shape(model)
    if sizes is not None:
        keep_masks(model)
    tracer = _tracer(sizes, leaves)
    try:
        defaults = _defaults(model, inputs)
        traced = tracer.trace(model, concrete_args=defaults)
        _drop_arguments(traced, defaults)
        _free_names(model, traced)
        graph = fx.GraphModule(model, traced)
    except Exception as error:
        raise Untraceable(
            f"{type(model).__name__} cannot be traced: {culprit(error)} ({error}). {_cure(error)}",
            tracer.stopped,
        ) from error
    _open_norm_act(graph)
    without_side_effects(graph)
    _open_padding(graph)
    _living_dropout(graph)
    _without_identities(graph)
    open_products(graph)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    graph.train(training)
    return graph


def is_traceable(model: nn.Module) -> bool:
    """Whether a network of one input becomes one graph."""
    try:
        trace(model)
    except Untraceable:
        return False
    return True


@contextmanager
def known_size(model: nn.Module, example: Tensor) -> Iterator[None]:
    """Let traces know the size of the one input, like `example` [1, C, H, W], where the network
    does not go through without."""
    if hasattr(model, "input_shape") or is_traceable(model):
        yield
        return
    vars(model)["input_shape"] = tuple(example.shape[1:])
    try:
        if not is_traceable(model):
            del vars(model)["input_shape"]
        yield
    finally:
        vars(model).pop("input_shape", None)


def _defaults(model: nn.Module, inputs: int) -> dict[str, Any]:
    """The arguments of the forward pass that nobody gives."""
    arguments = list(inspect.signature(model.forward).parameters.values())[inputs:]
    plain = (type(None), bool, int, float, str)
    return {a.name: a.default for a in arguments if isinstance(a.default, plain)}


def _drop_arguments(graph: fx.Graph, defaults: dict[str, Any]) -> None:
    """Erase the placeholders of arguments that have their defaults, and the checks on them."""
    for place in graph.find_nodes(op="placeholder"):
        if str(place.target).rpartition("_")[0] in defaults:
            checks = [*place.users, *(n for user in place.users for n in user.users)]
            for node in (*reversed(checks), place):
                graph.erase_node(node)


def _cure(error: BaseException) -> str:
    if isinstance(error, OtherAttention):
        return "Only attention of one tensor to itself, without a mask, is quantised inside."
    return (
        "The forward pass branches on a value or a shape; move that into a submodule of its own or "
        "replace it by an operation on tensors."
    )


def record_shapes(graph: fx.GraphModule, *example: Tensor) -> None:
    """Run `example` [1, C, H, W] once; every node's `meta` then has its shape and type."""
    training = graph.training
    graph.eval()
    try:
        with torch.no_grad():
            ShapeProp(graph).propagate(*example)
    finally:
        graph.train(training)


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of the tensor a node makes, where it makes one."""
    found = node.meta.get("tensor_meta")
    return None if found is None or not hasattr(found, "shape") else tuple(found.shape)
