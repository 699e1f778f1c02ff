"""Targets: which tensors a runtime wants quantised, and where it runs.

A file in this folder is one target. It ends with `TARGET = Target(...)`, and `TargetName` in
`compress/options.py` has its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pkgutil import iter_modules
from typing import cast

from torch import fx

from vcompress.bench.errors import UserError, nearest

from ..graph import activations_of, head, kind, qualified_name, source
from ..trace import shape


@dataclass
class Plan:
    """Which tensors and weights of a graph are quantised, and why others are not."""

    activations: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Node that makes the tensor -> the node whose quantiser it uses (itself, mostly)."""
    weights: list[fx.Node] = field(default_factory=list)
    gates: dict[fx.Node, str] = field(default_factory=dict)
    """Activations and gates that are computed of integers, see `gates.py`, with their kind."""
    kept: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> (operation, reason) of what stays in floating point."""

    def quantise(self, node: fx.Node) -> None:
        """Quantise the tensor that `node` makes, once."""
        self.activations.setdefault(node, node)

    def share(self, nodes: Sequence[fx.Node]) -> None:
        """One step for the tensors of all `nodes`."""
        for node in nodes:
            self.quantise(node)
        groups = {self.activations[n] for n in nodes}
        leader = self.activations[nodes[0]]
        for node, group in self.activations.items():
            if group in groups:
                self.activations[node] = leader

    def keep(self, node: fx.Node, operation: str, reason: str) -> None:
        """Leave a node in floating point."""
        self.kept[qualified_name(node)] = (operation, reason)


Keep = Callable[[fx.Node], str | None]
"""Why the caller wants a node in floating point; None where it does not."""


def place_inputs(nodes: Sequence[fx.Node], keep: Keep) -> Plan:
    """Quantise the inputs of layers and matrix products, and of a residual addition the shortcut.

    What targets have in common that fuse the next rounding into a layer by themselves. The tensors
    of a concatenation share one step.
    """
    plan = Plan()
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = 1 + max((depth[n] for n in node.all_input_nodes), default=0)
        what = kind(node)
        if what not in ("conv", "conv_transpose", "linear", "matmul", "add"):
            continue
        reason = keep(node)
        if reason is not None:
            plan.keep(node, what, reason)
        elif what == "add":
            _place_shortcut(node, plan, depth)
        else:
            if what != "matmul":
                plan.weights.append(node)
            for made_by in activations_of(node):
                plan.quantise(source(made_by))
    for node in nodes:
        if node in plan.activations and kind(node) == "cat":
            plan.share([node, *(source(n) for n in activations_of(node))])
    return plan


def _place_shortcut(node: fx.Node, plan: Plan, depth: dict[fx.Node, int]) -> None:
    """Quantise the branch that does not end in a layer; the earlier one where both do."""
    inputs = [source(n) for n in activations_of(node)]
    if len(inputs) != 2 or len(shape(node) or ()) != 4:
        return
    convolved = [n for n in inputs if head(n) in plan.weights and kind(n) in ("conv", "bn")]
    if not convolved:
        return
    others = [n for n in inputs if n not in convolved]
    plan.quantise(others[0] if others else min(inputs, key=lambda n: depth[n]))


@dataclass(frozen=True)
class Target:
    """What a network is quantised for: placement rules, the runtime that it ships in, the device.

    What was quantised for a target is measured in its runtime.
    """

    name: str
    """The name of its file."""
    unsigned: bool
    """Activations are uint8 with a zero point; else int8, symmetric."""
    repeat: bool
    """An operation that only moves values runs in int8 only with its own Q/DQ behind it."""
    place: Callable[[Sequence[fx.Node], Keep], Plan]
    """Decides for the nodes of a graph, given in order of execution."""
    runtime: str
    """A name in `bench/runtimes`."""
    device: str
    """A device of that runtime."""
    unmeasured: str = ""
    """Why an ONNX file cannot be measured in that runtime; empty where it can."""
    no_float16: str = ""
    """Why half precision is no alternative to int8 there; empty where it is one."""


def target_names() -> list[str]:
    """The targets that there is a file for."""
    return sorted(module.name for module in iter_modules(__path__))


def load_target(name: str) -> Target:
    """The target of that name.

    Raises:
        UserError: there is no such target.
    """
    if name not in target_names():
        raise UserError(
            f"target {name!r}: expected one of {', '.join(target_names())}."
            + nearest(name, target_names())
        )
    return cast(Target, importlib.import_module(f"{__name__}.{name}").TARGET)
