"""From a network to its `Structure`, along torch-pruning's dependency graph.

The graph (Fang et al., DepGraph, CVPR 2023) knows which layer feeds which and how channels map
through concat, split and flatten. `walk` goes through it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from ..models.culprit import culprit
from ..models.faithful import tensors_of
from .adapters import customized_pruners, prepare, remap
from .channel_statistics import Ones
from .functional import Traceable
from .shadow import run, shadow
from .structure import Structure
from .training_only import set_fullest
from .walk import ROOTS, Walk


def trace(model: nn.Module, example: Tensor, protect: Iterable[str] = ()) -> Structure:
    """The groups of `model` for images like `example` [1, C, H, W].

    `protect` are paths or patterns of modules whose output width stays. The model is not
    changed; the work is done on a copy that shares its weights.
    """
    mirror = shadow(model, lambda tensor: tensor.cpu())
    mirror.eval()
    image = example.detach().cpu()
    called = _check_followed(mirror, image)
    prepare(mirror)
    traced = Traceable(mirror, image, _fully)
    graph, outputs = _dependency_graph(traced, image)
    walk = Walk(graph, mirror, traced.paths(), called)
    for node in list(graph.module2node.values()):
        if isinstance(node.module, ROOTS):
            walk.spread(node)
    return traced.in_tensors(walk.structure(outputs, tuple(protect)))


def _fully(network: nn.Module, images: Tensor) -> Any:
    set_fullest(network, images)  # the library has put it into evaluation
    with Ones():
        return network(images)


def _dependency_graph(traced: Traceable, example: Tensor) -> tuple[Any, set[Any]]:
    import torch_pruning as tp

    finals: list[Any] = []

    def remember(output: Any) -> list[Tensor]:
        tensors = [t for t in tensors_of(output) if t.grad_fn is not None]
        finals.extend(tensor.grad_fn for tensor in tensors)
        return tensors

    graph = tp.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(
                traced,
                example_inputs=example,
                # fresh ones: the library's defaults are shared between calls
                customized_pruners=customized_pruners(traced.network),
                ignored_layers=[],
                ignored_params=[],
                forward_fn=lambda network, image: network(image),
                output_transform=remember,
                verbose=False,
            )
        except (
            AttributeError,
            IndexError,
            TypeError,
            ValueError,
            ZeroDivisionError,
            RuntimeError,
            AssertionError,
            KeyError,
            RecursionError,
        ) as error:
            raise UserError(
                f"The channels of this network could not be traced: {culprit(error)} "
                f"({type(error).__name__}: {str(error)[:200]})."
            ) from error
    remap(graph)
    return graph, set(finals)


def _check_followed(mirror: nn.Module, example: Tensor) -> set[nn.Module]:
    """Raise a UserError where autograd does not follow the network to its outputs, by which the
    channels are traced; else the modules without children that are called."""
    followed: list[str] = []
    called: set[nn.Module] = set()
    paths = {module: path for path, module in mirror.named_modules()}

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        called.add(module)
        if any(tensor.grad_fn is not None for tensor in tensors_of(output)):
            followed.append(paths[module])

    hooks = [m.register_forward_hook(note) for m in paths if not list(m.children())]
    try:
        with torch.enable_grad():
            outputs = run(mirror, example)
    finally:
        for hook in hooks:
            hook.remove()
    if any(tensor.grad_fn is not None for tensor in outputs):
        return called
    after = f"after {followed[-1]}" if followed else "before any layer"
    raise UserError(
        "The channels of this network could not be traced: its outputs do not depend on its "
        f"weights by operations that autograd follows; that ends {after}. Look there for detach(), "
        "no_grad(), numpy or .data in the forward pass."
    )
