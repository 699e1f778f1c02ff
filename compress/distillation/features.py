"""Pairs of feature points of a student and its teacher, found by running both once.

A feature point is a module through whose output everything flows: nothing computed before it is
used after it. That is read from the autograd graph, so it works for networks that cannot be traced
symbolically. Maps `[B, C, H, W]`, channels-last maps `[B, H, W, C]` and tokens `[B, N, D]` (with or
without class tokens) all count and become `[B, C, H, W]`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError, nearest
from vcompress.export.modes import evaluating

from ..models.head import heads

_MOST_PAIRS = 4
_MOST_PREFIX_TOKENS = 5

Layout = Literal["map", "channels-last", "tokens"]


@dataclass(frozen=True)
class Point:
    """The output of a module, for one example."""

    name: str
    layout: Layout
    shape: tuple[int, int, int]
    """Channels, height, width."""
    prefix: int = 0
    """Class tokens before the others."""
    raw: tuple[int, ...] = ()
    """The shape that the module gives."""

    def as_map(self, output: Tensor) -> Tensor:
        """The module's output as `[B, C, H, W]`."""
        if self.layout == "map":
            return output
        if self.layout == "channels-last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).reshape(len(output), *self.shape)


@dataclass(frozen=True)
class Pair:
    student: Point
    teacher: Point


def find_pairs(
    student: nn.Module,
    student_example: Tensor,
    teacher: nn.Module,
    teacher_example: Tensor,
    features: Sequence[str] = ("auto",),
) -> list[Pair]:
    """Which points to compare, in order of depth.

    With `auto`, the last points before the spatial size changes: those with the same size in both
    networks, or those at the same depth counted from the end where no sizes are equal. A network
    with one size throughout (a ViT) gives points at equal distances. Else `STUDENT=TEACHER` names.

    Args:
        student_example, teacher_example: one input each, `[1, C, H, W]`.

    Raises:
        UserError: a name that is not there, or outputs that are no feature maps (both shapes are
            named), or nothing to compare.
    """
    if list(features) == ["auto"]:
        ours = feature_points(student, student_example)
        theirs = feature_points(teacher, teacher_example)
        if not ours or not theirs:
            raise UserError(
                f"No feature maps were found in the {'student' if not ours else 'teacher'}, so "
                f"features cannot be compared. Name modules with --features STUDENT=TEACHER, or "
                f"choose a method on the outputs, such as kd."
            )
        return _paired(ours, theirs)
    wanted = [_names(text) for text in features]
    seen = (
        outputs_of(student, student_example, [a for a, _ in wanted], "student"),
        outputs_of(teacher, teacher_example, [b for _, b in wanted], "teacher"),
    )
    sizes = _size(student_example), _size(teacher_example)
    prefixes = _prefix(student), _prefix(teacher)
    pairs = []
    for a, b in wanted:
        points = [
            _point(name, found[name], size, prefix)
            for name, found, size, prefix in zip((a, b), seen, sizes, prefixes, strict=True)
        ]
        if points[0] is None or points[1] is None:
            raise UserError(
                f"--features {a}={b}: the student's {a} gives {_shape(seen[0][a])} and the "
                f"teacher's {b} gives {_shape(seen[1][b])}; each must be a map [B, C, H, W] or "
                f"tokens [B, N, D] that fill a grid."
            )
        pairs.append(Pair(points[0], points[1]))
    return pairs


def feature_points(model: nn.Module, example: Tensor) -> list[Point]:
    """The last point of every spatial size, from the input on; points at equal distances where the
    network has one size throughout. At most four, the deepest ones."""
    runs: list[list[Point]] = []
    for point in _cuts(model, example):
        if runs and runs[-1][-1].shape[1:] == point.shape[1:]:
            runs[-1].append(point)
        elif runs and point.shape[1] > runs[-1][-1].shape[1]:
            break  # a pooling to a fixed size that enlarges small maps
        else:
            runs.append([point])
    # A global pooling ends a network: it says no more than what it pools.
    while len(runs) > 1 and all(p.shape == (runs[-2][-1].shape[0], 1, 1) for p in runs[-1]):
        runs.pop()
    longest = max(runs, key=len, default=[])
    if len(runs) <= 2 and len(longest) >= _MOST_PAIRS:  # patches, then layers of one size
        return [
            longest[math.ceil(len(longest) * n / _MOST_PAIRS) - 1]
            for n in range(1, _MOST_PAIRS + 1)
        ]
    return [_outermost(run) for run in runs][-_MOST_PAIRS:]


def _outermost(run: list[Point]) -> Point:
    """The last point of the least depth in its part of the network: a stage's end, not the first
    layer of the next block."""
    part = run[-1].name.partition(".")[0]
    names = [point for point in run if point.name.partition(".")[0] == part]
    depth = min(point.name.count(".") for point in names)
    return [point for point in names if point.name.count(".") == depth][-1]


def align(student: Tensor, size: tuple[int, int]) -> Tensor:
    """The map `[B, C, H, W]` at the height and width `size`: averaged to a smaller one,
    interpolated to a larger one."""
    height, width = student.shape[2:]
    if (height, width) == size:
        return student
    if size[0] <= height and size[1] <= width:
        return F.adaptive_avg_pool2d(student, size)
    return F.interpolate(student, size=size, mode="bilinear", align_corners=False)


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Fills a dict with the outputs of the named modules on every run of `model`, wrapped for
    several processes or not. A copy of it (an average of its weights) does not write there."""
    found: dict[str, Tensor] = {}
    modules = {name: model.get_submodule(name) for name in names}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            if module is modules[name]:
                found[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def outputs_of(
    model: nn.Module, example: Tensor, names: Sequence[str], role: str
) -> dict[str, Any]:
    """What the named modules give for `example`.

    Raises:
        UserError: a name that the network has not, or a module that did not run.
    """
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            raise UserError(
                f"--features: the {role} has no module {name!r}.{nearest(name, known)} "
                f"It has {', '.join(n for n, _ in model.named_children())}."
            )
    with evaluating(model), captured(model, names) as found, torch.no_grad():
        model(example)
    for name in names:
        if name not in found:
            raise UserError(f"--features: the {role}'s {name} did not run for one image.")
    return dict(found)


def _paired(ours: list[Point], theirs: list[Point]) -> list[Pair]:
    """Points of equal size, else the deepest of both in order."""
    by_size = {point.shape[1:]: point for point in theirs}
    equal = [Pair(p, by_size[p.shape[1:]]) for p in ours if p.shape[1:] in by_size]
    one_size = [len({p.shape[1:] for p in points}) == 1 < len(points) for points in (ours, theirs)]
    if equal and not any(one_size):
        return equal
    count = min(len(ours), len(theirs))
    return [Pair(a, b) for a, b in zip(ours[-count:], theirs[-count:], strict=True)]


def _cuts(model: nn.Module, example: Tensor) -> list[Point]:
    """Every point of `model` in order of depth, the outermost module of those with one output."""
    calls: list[tuple[str, Tensor, Any]] = []

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.grad_fn is not None:
                # In-place layers change the tensor's node later on; now it is this module's.
                calls.append((name, output.detach(), output.grad_fn))

        return hook

    handles = [m.register_forward_hook(keep(n)) for n, m in model.named_modules() if n]
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(example.detach().clone().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.grad_fn is None:
        return []
    names = [name for name, _, _ in calls]
    last = _heads(model, int(logits.shape[-1]), example)
    # A head of 1x1 convolutions gives maps too, of classes.
    calls = calls[: min((names.index(path) for path in last if path in names), default=None)]
    order = {id(node): place for place, node in enumerate(_narrow_nodes(logits.grad_fn))}
    size, prefix = _size(example), _prefix(model)
    found: dict[int, Point] = {}
    for name, output, node in calls:
        place = order.get(id(node))
        point = _point(name, output, size, prefix)
        if place is None or point is None:
            continue
        # Of modules with the same output the outermost; what hands it on (dropout) comes later.
        if place not in found or name.count(".") < found[place].name.count("."):
            found[place] = point
    return [found[place] for place in sorted(found)]


def _heads(model: nn.Module, classes: int, example: Tensor) -> tuple[str, ...]:
    """The layers that give the logits; none where that cannot be told."""
    try:
        return heads(model, classes, example)
    except UserError:
        return ()


def _narrow_nodes(end: Any) -> list[Any]:
    """Nodes of the autograd graph that every way from the input to `end` passes, in order.

    Weights are leaves beside the way and do not count.
    """
    ways: dict[int, bool] = {}  # whether a node comes from the input
    nodes: dict[int, Any] = {}
    order: list[int] = []
    stack: list[tuple[Any, bool]] = [(end, False)]
    while stack:
        node, after = stack.pop()
        if after:
            earlier = [n for n, _ in node.next_functions if n is not None]
            # The input is the one leaf that has no module: weights are marked below.
            ways[id(node)] = any(ways[id(n)] for n in earlier) if earlier else _is_input(node)
            order.append(id(node))
        elif id(node) not in nodes:
            nodes[id(node)] = node
            stack.append((node, True))
            stack += [(n, False) for n, _ in node.next_functions if n is not None]
    line = [number for number in order if ways[number]]
    place = {number: n for n, number in enumerate(line)}
    last_use = list(range(len(line)))
    for number in line:
        for earlier, _ in nodes[number].next_functions:
            if earlier is not None and id(earlier) in place:
                before = place[id(earlier)]
                last_use[before] = max(last_use[before], place[number])
    found, reach = [], 0
    for n, number in enumerate(line):
        if reach <= n:
            found.append(nodes[number])
        reach = max(reach, last_use[n])
    return found


def _is_input(node: Any) -> bool:
    return hasattr(node, "variable") and not isinstance(node.variable, nn.Parameter)


def _point(name: str, output: Any, size: tuple[int, int], prefix: int | None) -> Point | None:
    """How `output` is a feature map; None where it is not one."""
    if not isinstance(output, Tensor):
        return None
    raw = tuple(output.shape)
    if output.ndim == 4:
        _, a, b, c = raw
        if _like(b, c, size) or not _like(a, b, size):
            return Point(name, "map", (a, b, c), raw=raw)
        return Point(name, "channels-last", (c, a, b), raw=raw)
    if output.ndim == 3:
        _, tokens, channels = raw
        for skip in range(_MOST_PREFIX_TOKENS + 1) if prefix is None else (prefix,):
            grid = _grid(tokens - skip, size)
            if grid is not None:
                return Point(name, "tokens", (channels, *grid), skip, raw)
    return None


def _like(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether a grid has the image's shape, but for rounding."""
    return abs(height * size[1] - width * size[0]) < max(size) and height <= size[0]


def _grid(tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Height and width of so many tokens over an image of `size`."""
    if tokens < 1:
        return None
    height = round(math.sqrt(tokens * size[0] / size[1]))
    for rows in (height, height - 1, height + 1):
        if rows > 0 and tokens % rows == 0 and _like(rows, tokens // rows, size):
            return rows, tokens // rows
    return None


def _prefix(model: nn.Module) -> int | None:
    """Class tokens, where the network says how many (timm does)."""
    count = getattr(model, "num_prefix_tokens", None)
    return count if isinstance(count, int) else None


def _size(example: Tensor) -> tuple[int, int]:
    return int(example.shape[2]), int(example.shape[3])


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _names(text: str) -> tuple[str, str]:
    student, sign, teacher = text.partition("=")
    if not sign or not student or not teacher:
        raise UserError(
            f"--features {text!r}: expected auto, or STUDENT=TEACHER with a module's name on each "
            f"side, such as layer3=features.13."
        )
    return student, teacher
