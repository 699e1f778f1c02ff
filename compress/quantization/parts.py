"""Quantises networks in parts that cannot be traced whole.

A module that stops the tracer is left whole, and the graph goes around it. Where the network's own
forward pass stops the tracer, its children are taken one by one, as large as they can be traced.
Both rules apply inside again: a module that was left whole is itself quantised in parts.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError

from .quantizers import weight_axis
from .shaped import input_shape
from .trace import Untraceable, trace

MOST_LEAVES = 64


@dataclass(frozen=True)
class Traced:
    """A graph, and the modules in it that were left whole, with what stopped the tracer there."""

    graph: fx.GraphModule
    leaves: dict[str, str]
    sizes: tuple[int, ...] | None = None
    """Those of the one input without the batch, where the trace needed them."""


def trace_network(model: nn.Module, inputs: tuple[Tensor, ...], whole: bool) -> Traced:
    """Trace a network of these inputs, around the modules that stop the tracer. Where one does, the
    trace is tried again with the sizes of the input, on which a forward pass may branch.

    Args:
        whole: whether it is the whole network, whose inputs are batches of images.

    Raises:
        Untraceable: the network's own forward pass stops it.
    """
    sizes = input_shape(model)
    stopped: Untraceable | None = None
    found: Traced | None = None
    try:
        found = trace_around(model, len(inputs), sizes)
    except Untraceable as error:
        stopped = error
    if whole and sizes is None and len(inputs) == 1 and (found is None or found.leaves):
        with contextlib.suppress(Untraceable):
            again = trace_around(model, 1, tuple(inputs[0].shape[1:]))
            if found is None or len(again.leaves) < len(found.leaves):
                return again
    if found is None:
        assert stopped is not None
        raise stopped
    return found


def trace_around(model: nn.Module, inputs: int, sizes: tuple[int, ...] | None = None) -> Traced:
    """Trace a network of so many inputs, around the modules that stop the tracer; `trace` explains
    the sizes.

    Raises:
        Untraceable: the network's own forward pass stops it.
    """
    leaves: dict[str, str] = {}
    while True:
        try:
            return Traced(trace(model, frozenset(leaves), inputs, sizes), leaves, sizes)
        except Untraceable as error:
            if error.stopped is None or error.stopped in leaves or len(leaves) >= MOST_LEAVES:
                raise
            leaves[error.stopped] = str(error)


Inputs = dict[str, tuple[Tensor, ...] | str]
"""Path of a module -> the tensors of its first call, or why they are of no use."""


def record_inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> Inputs:
    """Run a network once and note what every module below it is called with."""
    found: Inputs = {}
    handles = []

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path in found:
                return
            good = bool(args) and not kwargs and all(isinstance(a, Tensor) for a in args)
            found[path] = args if good else "it is called with other things than tensors"

        return hook

    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(note(path), with_kwargs=True))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return found


Prepare = Callable[[nn.Module, tuple[Tensor, ...], str], nn.Module | str]
"""Quantises a network given its inputs and its path; or says why it stays in floating point."""


def prepare_children(
    model: nn.Module, inputs: tuple[Tensor, ...], prefix: str, prepare: Prepare
) -> tuple[nn.Module, dict[str, nn.Module], dict[str, str]]:
    """A copy of `model` with its children quantised.

    Returns:
        the copy, path -> what was quantised, and path -> why the rest was not.
    """
    model = copy.deepcopy(model)
    seen = record_inputs(model, inputs)
    parts: dict[str, nn.Module] = {}
    kept: dict[str, str] = {}
    for name, child in list(model.named_children()):
        if not any(weight_axis(m) is not None for m in child.modules()):
            continue
        called = seen.get(name, "it is never called itself, only what is inside of it")
        made = called if isinstance(called, str) else prepare(child, called, f"{prefix}{name}")
        if isinstance(made, str):
            kept[f"{prefix}{name}"] = made
        else:
            put(model, name, made)
            parts[name] = made
    return model, parts, kept


def traceable_form(module: nn.Module) -> nn.Module:
    """A single layer wrapped, so that a graph around it calls it; anything else as it is."""
    return nn.Sequential(module) if weight_axis(module) is not None else module


def put(model: nn.Module, path: str, part: nn.Module) -> None:
    """Set a part in the place of a module; plain attributes that others may read come along."""
    old = submodule(model, path)
    for name, value in vars(old).items():
        plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
        if plain and not name.startswith("_") and name != "training" and not hasattr(part, name):
            setattr(part, name, value)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, part)


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a path that a description names.

    Raises:
        UserError: there is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise UserError(
            f"the placement names the part {path!r}, which the network does not have. Is it the "
            "same architecture?"
        ) from None
