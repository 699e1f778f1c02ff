"""One step of structured pruning, in place: trace, probe, score, choose widths, cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError, nearest

from ..models.cost import count_macs, count_parameters
from ..models.patterns import check_patterns
from .cost import CostModel, channel_cost, mac_cost, parameter_cost
from .importance import Importance, Loss, scores
from .isolated import trace_within
from .probe import probe
from .remove import Kept, remove
from .shadow import shadow
from .structure import Group
from .widths import BudgetTooLow, Ladder, fit_budget, ladder, ranked, uniform

Scope = Literal["local", "kind", "global"]
_MOST_TRIALS = 10


@dataclass(frozen=True)
class LayerWidth:
    """Channels of a group, named after its first layer."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class PruneReport:
    asked: dict[str, float]
    """The one budget, as the share that remains."""
    achieved: dict[str, float]
    """Shares of macs, params and channels that remain."""
    macs: tuple[int, int]
    """Multiply-accumulates of one image before and after."""
    params: tuple[int, int]
    layers: tuple[LayerWidth, ...]
    left_alone: dict[str, str]
    """Layers that were not pruned, with the reason."""
    kept: tuple[Kept, ...] = field(repr=False, default=())
    """What stays of each tensor, for `remap_optimizer`."""
    groups: tuple[Group, ...] = field(repr=False, default=())
    removed: dict[str, Tensor] = field(repr=False, default_factory=dict)
    """Which units of each group went, bool [units]; with `groups` for `probe.difference`."""

    def to_json(self) -> dict[str, Any]:
        return {
            "asked": self.asked,
            "achieved": {name: round(value, 4) for name, value in self.achieved.items()},
            "macs": list(self.macs),
            "params": list(self.params),
            "layers": [[layer.name, layer.before, layer.after] for layer in self.layers],
            "left_alone": self.left_alone,
        }


def prune(
    model: nn.Module,
    example: Tensor,
    *,
    macs: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    importance: Importance = "l2",
    scope: Scope = "local",
    round_to: int = 8,
    max_channel_ratio: float = 0.95,
    protect: tuple[str, ...] = (),
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    limit_s: float = 120.0,
) -> PruneReport:
    """Remove whole channels of `model`, in place, until a share of its cost remains.

    `macs=0.25` leaves a quarter of the multiply-accumulates of one image like `example`
    [1, C, H, W]; `params` and `channels` likewise. `importance` ranks channels
    (`importance.scores`, which also says what `batches` and `loss` are for). `scope` says how
    widths are shared out: `local` the same share everywhere, `kind` ranked among groups with the
    same sorts of layers, `global` ranked among all. Widths are multiples of `round_to`, no group
    loses more than the share `max_channel_ratio`, and layers at or inside a path or pattern of
    `protect` keep their output. Tracing is stopped after `limit_s`. Neither the network's input
    nor its outputs change shape.

    Keeps `requires_grad`, training mode and memory format. Raises UserError, with the network as
    it was, where the budget cannot be met.
    """
    budgets = {"macs": macs, "params": params, "channels": channels}
    asked = {name: value for name, value in budgets.items() if value is not None}
    if len(asked) != 1:
        raise UserError(f"Give exactly one of macs, params and channels; got {len(asked)}.")
    what, share = next(iter(asked.items()))
    check_options(share, what, scope, round_to, max_channel_ratio)

    found = analyse(
        model,
        example,
        importance=importance,
        round_to=round_to,
        max_channel_ratio=max_channel_ratio,
        protect=protect,
        batches=batches,
        loss=loss,
        seed=seed,
        limit_s=limit_s,
    )
    before = count_macs(model, example), count_parameters(model)
    cost, whole = _cost(what, model, example, found.groups, before)
    counts = _choose(model, example, what, share * whole, whole, found, scope, cost)
    return carry_out(model, example, found, counts, asked, before)


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
    importance: Importance,
    round_to: int,
    max_channel_ratio: float,
    protect: tuple[str, ...],
    batches: Iterable[tuple[Tensor, Tensor]] | None,
    loss: Loss | None,
    seed: int,
    limit_s: float,
) -> Analysis:
    """Trace, probe and score; `prune` explains the options. Nothing is changed."""
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
    asked: dict[str, float],
    before: tuple[int, int],
) -> PruneReport:
    """Cut `model` in place to `counts`, the units that each free group keeps.

    `before` is its multiply-accumulates and parameters.
    """
    groups = found.groups
    removed = _masks(groups, counts, found.ranking)
    widths = _widths(groups, counts)
    kept = remove(model, groups, removed)
    after = count_macs(model, example), count_parameters(model)
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


def check_options(
    share: float, what: str, scope: str, round_to: int, max_channel_ratio: float
) -> None:
    if not 0.0 < share < 1.0:
        raise UserError(f"{what} = {share}: expected the share that remains, between 0 and 1.")
    if scope not in get_args(Scope):
        raise UserError(
            f"scope = {scope!r}: expected one of {', '.join(get_args(Scope))}."
            f"{nearest(scope, get_args(Scope))}"
        )
    if round_to < 1:
        raise UserError(f"round_to = {round_to}: widths are multiples of it; expected 1 or more.")
    if not 0.0 < max_channel_ratio < 1.0:
        raise UserError(
            f"max_channel_ratio = {max_channel_ratio}: the largest share of a layer's "
            "channels that may go; expected more than 0 and less than 1, or the layer "
            "would be left without channels."
        )


def _cost(
    what: str, model: nn.Module, example: Tensor, groups: Sequence[Group], before: tuple[int, int]
) -> tuple[CostModel, float]:
    if what == "macs":
        return mac_cost(model, example, groups, before[0]), float(before[0])
    if what == "params":
        return parameter_cost(model, groups), float(before[1])
    cost = channel_cost([group for group in groups if group.tied_to is None])
    return cost, cost.at({})


def _choose(
    model: nn.Module,
    example: Tensor,
    what: str,
    budget: float,
    whole: float,
    found: Analysis,
    scope: Scope,
    cost: CostModel,
) -> dict[str, int]:
    """Unit counts of the free groups; the prediction is corrected by what the cut costs."""
    groups, ladders, ranking = found.groups, found.ladders, found.ranking
    free = [group for group in groups if group.tied_to is None]
    if scope == "local":
        ideal = uniform(list(ladders.values()))
    else:
        modules = dict(model.named_modules())
        pools: dict[tuple[str, ...], list[Group]] = {}
        for group in free:
            key = group.kind(modules) if scope == "kind" else ()
            pools.setdefault(key, []).append(group)
        ideal = ranked(list(pools.values()), ranking)

    def price(kept: Mapping[str, float]) -> float:
        return cost.at({**kept, **{g.name: kept[g.tied_to] for g in groups if g.tied_to}})

    def cannot(least: float) -> UserError:
        return UserError(
            f"{what} = {budget / whole:.3g} cannot be met: with these options at least "
            f"{least / whole:.3g} of the {what} remains. Ask for that or more, lower "
            "round_to, raise max_channel_ratio or protect less."
        )

    aim, least_tried = budget, False
    low, high = 0.0, whole  # what was aimed for when the cut was within the budget, or above it
    best: tuple[float, dict[str, int]] | None = None
    for _ in range(_MOST_TRIALS):
        try:
            counts = fit_budget(list(ladders.values()), ideal, price, aim)
        except BudgetTooLow as error:
            if what != "macs":
                raise cannot(error.least) from error
            if least_tried:
                break
            # The prediction may be too high (padded windows): look at what the least really costs.
            aim, least_tried = error.least * (1 + 1e-9), True
            continue
        if what != "macs":
            return counts
        real = _real_macs(model, example, groups, counts, ranking)
        predicted = price({name: n / ladders[name].units for name, n in counts.items()})
        over = real / budget - 1.0
        if over > 0.02 and least_tried and best is None:
            raise cannot(real)
        # at most the budget, and as near to it as possible; a little over beats far under
        rank = -over if over <= 0 else 10.0 * over
        if best is None or rank < best[0]:
            best = (rank, counts)
        if 0.0 <= -over <= 0.005:
            break
        low, high = (low, min(high, aim)) if over > 0 else (max(low, aim), high)
        corrected = budget - (real - predicted)
        # Where the correction leaves the bracket the prediction is far off: halve it instead.
        following = corrected if low < corrected < high else (low + high) / 2
        if abs(following - aim) <= 0.002 * budget:
            break
        aim = following
    assert best is not None
    return best[1]


def _real_macs(
    model: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    ranking: Mapping[str, Tensor],
) -> int:
    return count_macs(trial_cut(model, groups, counts, ranking), example)


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
        order = torch.argsort(ranking[group.name], descending=True, stable=True)
        mask = torch.ones(group.units, dtype=torch.bool)
        mask[order[:keep]] = False
        removed[group.name] = mask
    return removed
