"""The head, the layer that gives the logits: which one it is, and a new one for other classes.

A width does not show it: a hidden layer may have as many outputs as there are classes. So a network
built by name carries the paths of its head, as the library records them or as two networks of
different classes show. Any other module is followed back from its output.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vcompress.bench.errors import UserError, nearest
from vcompress.export.modes import evaluating


def heads(model: nn.Module, classes: int, example: Tensor | None = None) -> tuple[str, ...]:
    """Dotted names of the layers that give the logits; several where their outputs are averaged,
    as in a distilled DeiT.

    Args:
        example: one input `[1, C, H, W]`. A module that carries no record is run on it.

    Raises:
        UserError: it cannot be told which layer it is.
    """
    noted: tuple[str, ...] = getattr(model, "head_paths", ())
    modules = dict(model.named_modules())
    if noted and all(path in modules for path in noted):
        return noted
    found = () if example is None else _before_output(model, example)
    if found and all(_outputs(modules[path]) in (classes, None) for path in found):
        return found
    got = f"The last layers with weights are {', '.join(found)}. " if found else ""
    raise UserError(
        f"The head, the layer that gives the {classes} logits, was not found. {got}"
        f"Name it: --head PATH."
    )


def note_head(model: nn.Module, paths: Iterable[str], classes: int) -> None:
    """Record on `model` which layers give its logits.

    Raises:
        UserError: there is no such layer, or it has another number of outputs.
    """
    modules = dict(model.named_modules())
    paths = tuple(paths)
    for path in paths:
        if not path or path not in modules:
            raise UserError(
                f"the head {path!r} is no layer of the network.{nearest(path, modules)}"
            )
        outputs = _outputs(modules[path])
        if outputs not in (classes, None) or not _has_weights(modules[path]):
            kind = type(modules[path]).__name__
            got = f"{outputs} outputs" if outputs is not None else "no weights of its own"
            raise UserError(
                f"the head {path} is a {kind} with {got}; expected the layer that gives the "
                f"{classes} logits."
            )
    model.head_paths = paths  # type: ignore[assignment]


def carry_head(source: nn.Module, target: nn.Module) -> None:
    """Hand the record on to a network that was made from `source`, where the paths still stand."""
    noted: tuple[str, ...] = getattr(source, "head_paths", ())
    modules = dict(target.named_modules())
    if noted and all(path in modules for path in noted):
        target.head_paths = noted  # type: ignore[assignment]


def of_classes(one: nn.Module, other: nn.Module, classes: int) -> tuple[str, ...]:
    """Layers of `one` whose `classes` outputs follow the number of classes: `other` is the same
    architecture built for another number."""
    shapes = {name: tensor.shape for name, tensor in other.named_parameters()}
    changed = {
        _owner(name)
        for name, tensor in one.named_parameters()
        if name in shapes and tensor.shape != shapes[name]
    }
    modules = dict(one.named_modules())
    return tuple(path for path in modules if path in changed and _outputs(modules[path]) == classes)


def with_outputs(model: nn.Module, paths: Iterable[str], classes: int) -> tuple[str, ...]:
    """Those of `paths` that are layers of `model` with `classes` outputs."""
    modules = dict(model.named_modules())
    return tuple(path for path in paths if path in modules and _outputs(modules[path]) == classes)


def replace_head(
    model: nn.Module, classes: int, new_classes: int, example: Tensor | None = None,
    build: Callable[[int], nn.Module] | None = None,
) -> None:  # fmt: skip
    """Give `model` a fresh last layer for `new_classes`; the rest stays.

    Args:
        build: makes a network of the same architecture for a number of classes. Other layers that
            follow that number, such as auxiliary heads, are fresh too then, and the head of another
            class than a linear layer or a convolution is taken from it.

    Raises:
        UserError: such a head, and nothing that builds it.
    """
    paths = heads(model, classes, example)
    made = None if build is None else build(new_classes)
    beside = () if build is None or made is None else of_classes(build(classes), made, classes)
    for path in dict.fromkeys((*paths, *beside)):
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, _fresh(path, model, new_classes, made))
    model.head_paths = paths  # type: ignore[assignment]


def _fresh(path: str, model: nn.Module, classes: int, made: nn.Module | None) -> nn.Module:
    old = model.get_submodule(path)
    if type(old) is nn.Linear:
        return nn.Linear(old.in_features, classes, bias=old.bias is not None)
    if type(old) is nn.Conv2d:
        side = (old.kernel_size[0], old.kernel_size[1])
        return nn.Conv2d(old.in_channels, classes, side, bias=old.bias is not None)
    found = dict(made.named_modules()).get(path) if made is not None and path else None
    if found is not None and type(found) is type(old):
        before = {name: tensor.shape[1:] for name, tensor in old.state_dict().items()}
        after = {name: tensor.shape[1:] for name, tensor in found.state_dict().items()}
        if before == after:  # else pruning has narrowed what comes in
            return found
    raise UserError(
        f"The head {path} is a {type(old).__name__}; it cannot be replaced. Start from a network "
        f"for {classes} classes: --model module:factory --weights FILE, whose head starts anew."
    )


def _owner(name: str) -> str:
    """The layer of a weight; weight norm and the like keep theirs in modules below it."""
    layer, inside, _ = name.partition(".parametrizations.")
    return layer if inside else name.rpartition(".")[0]


def _has_weights(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or bool(list(module.parameters(recurse=False)))


def _outputs(module: nn.Module) -> int | None:
    found = getattr(module, "out_features", getattr(module, "out_channels", None))
    if found is None and isinstance(weight := getattr(module, "weight", None), Tensor):
        found = weight.shape[0]  # a layer of the user's own
    return found if isinstance(found, int) else None


def _before_output(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The last layers with a matrix of weights on the ways from the input to the output.

    The autograd graph is walked back from the output, along what depends on the input, until a
    step takes in weights.
    """
    weights = {id(p): name for name, p in model.named_parameters() if p.ndim > 1}
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad():
            output = model(example[:1].detach().clone().requires_grad_())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not isinstance(output, Tensor) or output.grad_fn is None:
        return ()
    comes_from_input = _from_input(output.grad_fn)
    found: dict[str, None] = {}
    queue, seen = deque([output.grad_fn]), {output.grad_fn}
    while queue:
        node = queue.popleft()
        before = [n for n, _ in node.next_functions if n is not None]
        beside = [n for n in before if not comes_from_input[n]]
        names = [name for n in beside for name in _weights_below(n, weights)]
        if names:
            found |= dict.fromkeys(map(_owner, names))
            continue
        for n in before:
            if comes_from_input[n] and n not in seen:
                seen.add(n)
                queue.append(n)
    return tuple(found)


def _from_input(end: Any) -> dict[Any, bool]:
    """Whether the input reaches each node of the graph behind `end`."""
    found: dict[Any, bool] = {}
    stack: list[tuple[Any, bool]] = [(end, False)]
    while stack:
        node, after = stack.pop()
        before = [n for n, _ in node.next_functions if n is not None]
        if after:
            leaf = hasattr(node, "variable") and not isinstance(node.variable, nn.Parameter)
            found[node] = any(found[n] for n in before) or leaf
        elif node not in found:
            found[node] = False
            stack.append((node, True))
            stack += [(n, False) for n in before]
    return found


def _weights_below(node: Any, weights: dict[int, str]) -> list[str]:
    """Names of the weights that a node, which the input does not reach, is made from."""
    names: list[str] = []
    stack, seen = [node], {node}
    while stack:
        node = stack.pop()
        if (name := weights.get(id(getattr(node, "variable", None)))) is not None:
            names.append(name)
        for n, _ in node.next_functions:
            if n is not None and n not in seen:
                seen.add(n)
                stack.append(n)
    return names
