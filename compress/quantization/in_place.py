"""Rewrites a traced graph so that no operation changes a tensor in place.

A tracer notes that `x.clip_(0, 6)` was called, but whoever reads `x` afterwards still reads the
node from before, and a result that nobody reads is removed. Here every change becomes a value of
its own, and all later readers of that memory, by whatever name or view, read the new value. That is
what functorch's functionalisation does, on the graph of modules and not on that of operators.

A change through a view is written into a copy of the whole tensor: the views that lead to the
changed part are taken of the copy again. So what is a view and what a copy (`reshape`,
`contiguous`) is left to torch at run time.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_NAMES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor",
          "lshift", "rshift")  # fmt: skip
_OPERATORS: dict[Any, Callable[..., Any]] = {
    getattr(operator, f"i{name}"): getattr(operator, f"{name}_", None) or getattr(operator, name)
    for name in _NAMES
}
"""`x += y` and its like -> the operator that makes a new value."""
_SAME_MODULES = (nn.Identity, nn.modules.dropout._DropoutNd)
_SAME_FUNCTIONS = frozenset({F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout})
_SAME_METHODS = frozenset({"float", "double", "half", "cpu", "cuda"})
"""What may give back the tensor that it got, in evaluation."""
_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "real", "imag"})
_NUMBERS = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "item", "stride", "get_device"}
)


class Assignable(fx.Proxy):
    """A value of the graph with `x += y` and `x[i] = y`, which change it for all its names."""

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


def _assigning(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    target = getattr(operator, f"i{name}")

    def change(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", target, (self, other), {}, name=name)

    return change


for _name in _NAMES:
    setattr(Assignable, f"__i{_name}__", _assigning(_name))


def written(whole: Tensor, *_: Any) -> Tensor:
    """`whole`, after what the other arguments wrote into it."""
    return whole


CHANGES_INPUT = "changes_input"
"""Key in the `meta` of a graph whose network changes its input in place, which the graph does not:
whoever called the network may read the input again."""


def without_side_effects(graph: fx.GraphModule) -> None:
    """Give every change in place a value of its own, which later readers of the tensor read."""
    rewrite = _Rewrite(graph)
    for node in list(graph.graph.nodes):
        rewrite.take(node)
    for module in rewrite.in_place_modules:
        module.inplace = False  # type: ignore[assignment]
    inputs = graph.graph.find_nodes(op="placeholder")
    graph.meta[CHANGES_INPUT] = any(rewrite.changes.get(node, 0) for node in inputs)


class _Rewrite:
    """What memory each node's value is of, and which node has the value that it holds now."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        self.in_place_modules: list[nn.Module] = []
        self.parent: dict[fx.Node, fx.Node | None] = {}
        """The node whose memory a node shows; None of one with memory of its own."""
        self.exact: set[fx.Node] = set()
        """Nodes that are their parent, not a part of it or another order."""
        self.viewed: dict[fx.Node, fx.Node] = {}
        """The argument that stands for the parent in the node itself."""
        self.changes: dict[fx.Node, int] = {}
        """How often the memory of a node with memory of its own was changed."""
        self.value: dict[fx.Node, tuple[fx.Node, int]] = {}
        """The node that has the value, after how many changes."""
        self.numbers: set[fx.Node] = set()

    def take(self, node: fx.Node) -> None:
        """Let a node read the values of now; then note what it shows or changes."""
        if self._is_number(node):
            self.numbers.add(node)
            node.target = _OPERATORS.get(node.target, node.target)
        changed = None if node in self.numbers else self._changed(node)
        shown = None if node in self.numbers else self._shown(node)
        read = {n: self._now(n, node) for n in node.all_input_nodes}
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), read.__getitem__)
        if changed is None:
            self.parent[node] = shown
            if shown is not None:
                self.viewed[node] = read[shown]
                if self._is_same(node):
                    self.exact.add(node)
            self._set(node, node)
            return
        self._change(node, changed, read[changed])

    def _change(self, node: fx.Node, changed: fx.Node, now: fx.Node) -> None:
        """A node that changes what `changed` shows, whose value is that of `now`."""
        root, chain = self._chain(changed)
        plain = self._made_plain(node)
        self.parent[node] = changed
        self.exact.add(node)
        if plain and not chain:
            self.changes[root] += 1
            for owner in (root, changed, node):
                self._set(owner, node)
            return
        edit = self.graph.graph
        with edit.inserting_before(node):
            whole = part = edit.call_method("clone", (self._now(root, node),))
            for view in chain:
                old, new = self.viewed[view], part
                part = edit.node_copy(view, _instead(old, new))
        if plain:
            with edit.inserting_after(node):
                last = edit.call_method("copy_", (part, node))
        else:
            node.replace_input_with(now, part)
            last = node
        with edit.inserting_after(last):
            made = edit.call_function(written, (whole, last))
        self.changes[root] += 1
        self._set(root, made)
        if plain:
            self._set(changed, node)
            self._set(node, node)

    def _set(self, node: fx.Node, value: fx.Node) -> None:
        root = self._chain(node)[0]
        self.changes.setdefault(root, 0)
        self.value[node] = (value, self.changes[root])

    def _chain(self, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
        """Whose memory a node shows, and the views that lead from there to it."""
        chain: list[fx.Node] = []
        while (parent := self.parent[node]) is not None:
            if node not in self.exact:
                chain.insert(0, node)
            node = parent
        return node, chain

    def _now(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """The node that has the value of `node` where `reader` stands; made where there is none."""
        value, changes = self.value.get(node, (node, -1))
        parent = self.parent[node]
        if changes == self.changes[self._chain(node)[0]] or parent is None:
            return value
        made = self._now(parent, reader)
        if node not in self.exact:
            old, new = self.viewed[node], made
            with self.graph.graph.inserting_before(reader):
                made = self.graph.graph.node_copy(node, _instead(old, new))
        self._set(node, made)
        return made

    def _is_number(self, node: fx.Node) -> bool:
        """Whether a node makes a size or another number, which is never changed in place."""
        if node.op == "call_method":
            return str(node.target) in _NUMBERS
        if node.target is getattr:
            return node.args[1] not in _VIEW_ATTRIBUTES | {"data", "grad"}
        of_operator = getattr(node.target, "__module__", "") == "_operator"
        inputs = node.all_input_nodes
        return of_operator and bool(inputs) and all(n in self.numbers for n in inputs)

    def _changed(self, node: fx.Node) -> fx.Node | None:
        """The node whose tensor a node changes in place."""
        found: Any = None
        first = node.args[0] if node.args else node.kwargs.get("input")
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            found = first if getattr(module, "inplace", False) is True else None
        elif node.op == "call_method":
            found = first if _ends_in_place(str(node.target)) else None
        elif node.op == "call_function":
            name = getattr(node.target, "__name__", "")
            if node.target is operator.setitem or node.target in _OPERATORS:
                found = first
            elif isinstance(node.kwargs.get("out"), fx.Node):
                found = node.kwargs["out"]
            elif isinstance(node.target, torch._ops.OpOverload):
                found = _written_argument(node)
            elif _ends_in_place(name) or _in_place_argument(node) is not None:
                found = first
        return found if isinstance(found, fx.Node) else None

    def _made_plain(self, node: fx.Node) -> bool:
        """Turn a node into its form that makes a new tensor, where there is one."""
        if node.op == "call_module":
            self.in_place_modules.append(self.graph.get_submodule(str(node.target)))
        elif node.op == "call_method":
            plain = str(node.target)[:-1]
            if not callable(getattr(Tensor, plain, None)):
                return False
            node.target = plain
        elif node.target in _OPERATORS:
            node.target = _OPERATORS[node.target]
        elif node.target is operator.setitem or isinstance(node.target, torch._ops.OpOverload):
            return False
        elif "out" in node.kwargs:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "out"}
        elif (place := _in_place_argument(node)) is not None:
            if place < len(node.args):
                node.update_arg(place, False)
            else:
                node.update_kwarg("inplace", False)
        else:
            function = _plain_function(node.target)
            if function is None:
                return False
            node.target = function
        return True

    def _shown(self, node: fx.Node) -> fx.Node | None:
        """The node whose memory the value of a node may be."""
        first = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(first, fx.Node) or first in self.numbers:
            return None
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            views = (nn.Flatten, nn.Unflatten)
            return first if self._is_same(node) or isinstance(module, views) else None
        if node.op == "call_method":
            name = str(node.target)
            return first if name in _SAME_METHODS or _is_view(name) else None
        if node.op != "call_function":
            return None
        if node.target is operator.getitem:
            index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            tensors = [n for n in node.all_input_nodes[1:] if n not in self.numbers]
            return None if tensors or any(isinstance(i, list) for i in index) else first
        if node.target is getattr or node.target in _SAME_FUNCTIONS:
            return first
        return first if _is_view(getattr(node.target, "__name__", "")) else None

    def _is_same(self, node: fx.Node) -> bool:
        """Whether a node gives back, in evaluation, the tensor that it got."""
        if node.op == "call_module":
            module = self.graph.get_submodule(str(node.target))
            name = type(module).__name__
            drops = name.endswith(("StochasticDepth", "DropPath", "DropBlock2d"))
            return drops or isinstance(module, _SAME_MODULES)
        return node.target in _SAME_FUNCTIONS or (
            node.target is getattr and node.args[1] not in _VIEW_ATTRIBUTES
        )


def _instead(old: fx.Node, new: fx.Node) -> Callable[[fx.Node], fx.Node]:
    return lambda node: new if node is old else node


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _in_place_argument(node: fx.Node) -> int | None:
    """The place of an argument `inplace` that is given and true."""
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    if "inplace" not in names:
        return None
    place = names.index("inplace")
    given = node.args[place] if place < len(node.args) else node.kwargs.get("inplace")
    return place if given is True else None


def _plain_function(target: Any) -> Callable[..., Any] | None:
    """`relu` for `relu_`, from where the function comes from."""
    plain, own = target.__name__[:-1], inspect.getmodule(target)
    of_torch = own is None or own.__name__.partition(".")[0] in ("torch", "builtins")
    for home in (torch, F, torch._C._nn) if of_torch else (own,):
        found = getattr(home, plain, None)
        if callable(found):
            made: Callable[..., Any] = found
            return made
    return None


def _overloads(name: str) -> list[Any]:
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    return [getattr(packet, found) for found in packet.overloads()] if packet is not None else []


def _is_view(name: str) -> bool:
    """Whether torch says of an operator that its result may share the memory of its input."""
    returns = [r for overload in _overloads(name) for r in overload._schema.returns]
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _written_argument(node: fx.Node) -> Any:
    schema = node.target._schema  # type: ignore[union-attr]
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[place] if place < len(node.args) else None
            return node.kwargs.get(argument.name, given)
    return None
