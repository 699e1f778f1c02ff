"""One step of structured pruning, in place: trace, probe, score, choose widths, cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError, nearest
from vcompress.bench.gates.limits import Budget, none_given, to_cut
from vcompress.export.folding import fold

from ..models.cost import count_macs, count_parameters
from ..models.patterns import check_patterns
from .budget import Export, choose, meter_for, naming
from .importance import Importance, Loss, scores
from .isolated import trace_within
from .probe import probe
from .remove import Kept, remove
from .shadow import shadow
from .structure import Group
from .widths import Ladder, ladder, ranked, uniform

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in `typing` from Python 3.11 on

Scope = Literal["local", "kind", "global"]


class PruneOptions(TypedDict, total=False):
    """How channels are chosen, whatever is limited; `analyse` has the defaults."""

    importance: Importance
    """Criterion that ranks channels, see `importance.scores`."""
    round_to: int
    """Number whose multiples the widths are."""
    max_channel_ratio: float
    """Largest share of a group's channels that may go."""
    protect: tuple[str, ...]
    """Paths or patterns of layers that keep their output; all inside is meant."""
    batches: Iterable[tuple[Tensor, Tensor]] | None
    """Images and targets, for criteria on gradients."""
    loss: Loss | None
    """The loss of those criteria."""
    seed: int
    """Random seed of the criterion `random`."""
    limit_s: float
    """Time after which tracing is stopped, seconds."""


@dataclass(frozen=True)
class LayerWidth:
    """Channels of a group, named after its first layer."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class PruneReport:
    asked: Budget
    achieved: dict[str, float]
    """Shares of macs, params and channels that remain; of the size where that was asked for."""
    macs: tuple[int, int]
    """Multiply-accumulates of one image before and after."""
    params: tuple[int, int]
    layers: tuple[LayerWidth, ...]
    left_alone: dict[str, str]
    """Layers that were not pruned, with the reason."""
    size_mb: tuple[float, float] | None = None
    """Size of the ONNX file before and after, where it was measured."""
    latency_ms: tuple[float, float] | None = None
    """Latency of one image before and after, where it was measured."""
    batch_norms: int = 0
    """Number of batch norms whose statistics were estimated again."""
    kept: tuple[Kept, ...] = field(repr=False, default=())
    """What stays of each tensor, for `remap_optimizer`."""
    groups: tuple[Group, ...] = field(repr=False, default=())
    removed: dict[str, Tensor] = field(repr=False, default_factory=dict)
    """Which units of each group went, bool [units]; with `groups` for `probe.difference`."""


def prune(
    model: nn.Module,
    example: Tensor,
    budget: Budget | str | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    scope: Scope = "local",
    export: Export | None = None,
    size_bytes: float | None = None,
    **options: Unpack[PruneOptions],
) -> PruneReport:
    """Remove whole channels of `model`, in place, until its cost is within a budget.

    `budget` is an object or a text such as "macs<=0.5", "params<=2e6" or "size_mb<=3" (of the
    float32 ONNX file that `export` writes, measured on trial cuts). `size_bytes` is the size of
    that file of `model`, where it is known; else it is exported too. `macs=0.25` is short for a
    quarter of the multiply-accumulates of one image like `example` [1, C, H, W]; `params` and
    `channels` likewise. `scope` says how widths are shared out: `local` the same share everywhere,
    `kind` ranked among groups with the same sorts of layers, `global` ranked among all.
    `PruneOptions` has the other options. Neither the network's input nor its outputs change shape.

    Keeps `requires_grad`, training mode and memory format; weight norm and other parametrisations
    are folded. Raises UserError, with the network as
    it was, where the budget cannot be met.
    """
    asked = to_cut(budget, macs=macs, params=params, channels=channels)
    if asked is None:
        raise none_given("macs", "params", "channels")
    if asked.kind == "latency_ms":
        raise UserError(f"{asked.text}: latency has to be measured; call prune_to_latency.")
    if scope not in get_args(Scope):
        raise UserError(
            f"scope = {scope!r}: expected one of {', '.join(get_args(Scope))}."
            f"{nearest(scope, get_args(Scope))}"
        )
    fold(model)
    found = analyse(model, example, **options)
    before = count_macs(model, example), count_parameters(model)
    meter = meter_for(
        asked.kind, model, example, found.groups, before, export or onnx_export(example), size_bytes
    )
    with naming(found.left_alone):
        chosen = choose(
            meter,
            asked,
            found.groups,
            list(found.ladders.values()),
            _ideal(model, found, scope),
            lambda counts: trial_cut(model, found.groups, counts, found.ranking),
        )
    macs_after = int(chosen.counted) if asked.kind == "macs" and chosen.counted else None
    report = carry_out(model, example, found, chosen.counts, asked, before, macs_after)
    if asked.kind != "size_mb" or chosen.counted is None:
        return report
    return replace(
        report,
        achieved={**report.achieved, "size": chosen.counted / meter.whole},
        size_mb=(meter.whole / 1e6, chosen.counted / 1e6),
    )


@dataclass(frozen=True)
class Analysis:
    """All that is known before widths are chosen."""

    groups: tuple[Group, ...]
    left_alone: dict[str, str]
    ladders: dict[str, Ladder]
    """The widths that each group may take; groups that are tied to others have none."""
    ranking: dict[str, Tensor]
    """Scores of each group's units."""


def analyse(
    model: nn.Module,
    example: Tensor,
    *,
    importance: Importance = "bn",
    round_to: int = 8,
    max_channel_ratio: float = 0.95,
    protect: tuple[str, ...] = (),
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    limit_s: float = 120.0,
) -> Analysis:
    """Trace, probe and score; `PruneOptions` explains the options. Nothing is changed."""
    _check_widths(round_to, max_channel_ratio)
    check_patterns("protect", protect, dict(model.named_modules()))
    structure = probe(model, trace_within(model, example, protect, limit_s), example)
    groups = structure.groups
    left_alone = dict(structure.left_alone)
    ladders = {g.name: ladder(g, round_to, max_channel_ratio) for g in groups if g.tied_to is None}
    for group in groups:
        if group.tied_to is None and len(ladders[group.name].counts) == 1:
            left_alone[group.name] = f"{group.width} channels leave no narrower multiple to go to"
    if not any(len(item.counts) > 1 for item in ladders.values()):
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left_alone.items())[:3])
        raise UserError(f"Nothing in this network can be pruned. {reasons}")
    ranking = scores(model, groups, importance, batches, loss, seed)
    return Analysis(groups, left_alone, ladders, ranking)


def carry_out(
    model: nn.Module,
    example: Tensor,
    found: Analysis,
    counts: Mapping[str, int],
    asked: Budget,
    before: tuple[int, int],
    macs_after: int | None = None,
) -> PruneReport:
    """Cut `model` in place to `counts`, the units that each free group keeps.

    `before` is its multiply-accumulates and parameters; `macs_after` those of a trial cut to the
    same widths, where one was counted.
    """
    groups = found.groups
    removed = _masks(groups, counts, found.ranking)
    widths = _widths(groups, counts)
    kept = remove(model, groups, removed)
    if macs_after is None:
        macs_after = count_macs(model, example)
    after = macs_after, count_parameters(model)
    old, new = (sum(widths[g.name][i] for g in groups if g.tied_to is None) for i in (0, 1))
    return PruneReport(
        asked=asked,
        achieved={
            "macs": after[0] / before[0],
            "params": after[1] / before[1],
            "channels": new / old,
        },
        macs=(before[0], after[0]),
        params=(before[1], after[1]),
        layers=tuple(LayerWidth(name, *pair) for name, pair in widths.items()),
        left_alone=found.left_alone,
        kept=tuple(kept),
        groups=groups,
        removed=removed,
    )


def _check_widths(round_to: int, max_channel_ratio: float) -> None:
    if round_to < 1:
        raise UserError(f"round_to = {round_to}: widths are multiples of it; expected 1 or more.")
    if not 0.0 < max_channel_ratio < 1.0:
        raise UserError(
            f"max_channel_ratio = {max_channel_ratio}: the largest share of a layer's "
            "channels that may go; expected more than 0 and less than 1, or the layer "
            "would be left without channels."
        )


def _ideal(model: nn.Module, found: Analysis, scope: Scope) -> Callable[[float], dict[str, float]]:
    """The wished units of each free group, by the share that remains."""
    if scope == "local":
        return uniform(list(found.ladders.values()))
    modules = dict(model.named_modules())
    pools: dict[tuple[str, ...], list[Group]] = {}
    for group in found.groups:
        if group.tied_to is None:
            key = group.kind(modules) if scope == "kind" else ()
            pools.setdefault(key, []).append(group)
    return ranked(list(pools.values()), found.ranking)


def onnx_export(
    example: Tensor,
    metadata: Mapping[str, str] = MappingProxyType({}),
    output: str | None = None,
) -> Export:
    """Writes a network with inputs like `example` [1, C, H, W] as an ONNX file; `output` names the
    one that is written, of several."""
    from vcompress.export.onnx_export import export

    shape = tuple(example.shape[1:])
    return lambda model, path: export(
        model, path, ("input", shape), metadata=metadata, output=output
    )


def trial_cut(
    model: nn.Module,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    ranking: Mapping[str, Tensor],
) -> nn.Module:
    """A cut copy; `model` stays whole and shares the tensors that were not cut."""
    trial: nn.Module = shadow(model, lambda tensor: tensor)
    remove(trial, groups, _masks(groups, counts, ranking))
    return trial


def _widths(groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    widths = {g.name: (g.width, counts[g.name] * g.unit_width) for g in groups if g.tied_to is None}
    widths |= {g.name: (g.width, widths[g.tied_to][1]) for g in groups if g.tied_to is not None}
    return widths


def _best_of_each_layer(group: Group, order: Sequence[int]) -> tuple[int, ...]:
    """The best unit of every layer that has some of the group's units alone, such as one of several
    whose channels are joined before a depthwise convolution: none may lose all of them."""
    parts = {frozenset(cut.units) for cut in group.cuts}
    parts = {part for part in parts if len(part) < group.units}
    return tuple(dict.fromkeys(next(u for u in order if u in part) for part in parts if part))


def _masks(
    groups: Sequence[Group], counts: Mapping[str, int], ranking: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What goes: the lowest scores of each group, bool [units]."""
    widths = _widths(groups, counts)
    removed = {}
    for group in groups:
        keep = (
            group.units
            if widths[group.name][1] == group.width
            else (widths[group.name][1] // group.unit_width)
        )
        order = torch.argsort(ranking[group.name], descending=True, stable=True).tolist()
        best = _best_of_each_layer(group, order)
        mask = torch.ones(group.units, dtype=torch.bool)
        ranked = [*best, *(unit for unit in order if unit not in best)]
        mask[ranked[: max(keep, len(best))]] = False
        removed[group.name] = mask
    return removed
