"""Distributes a budget over the widths of the groups. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vcompress.bench.errors import UserError

from .structure import Group


@dataclass(frozen=True)
class Ladder:
    """The unit counts that a group may keep, ascending; the last is all of them."""

    group: str
    counts: tuple[int, ...]

    @property
    def units(self) -> int:
        return self.counts[-1]

    def nearest(self, units: float) -> int:
        return min(self.counts, key=lambda count: (abs(count - units), -count))

    def above(self, count: int) -> int | None:
        return next((other for other in self.counts if other > count), None)

    def below(self, count: int) -> int | None:
        return next((other for other in reversed(self.counts) if other < count), None)


def ladder(group: Group, round_to: int, max_channel_ratio: float) -> Ladder:
    """Widths that are multiples of `round_to` and of the group's own multiple, or the full one.

    At least one step stays, and no more than the share `max_channel_ratio` goes.
    """
    whole = math.lcm(max(1, round_to), group.multiple)
    least = math.ceil(group.units * (1.0 - max_channel_ratio) - 1e-9)
    counts = [
        count
        for count in range(1, group.units)
        if count >= least and (count * group.unit_width) % whole == 0
    ]
    return Ladder(group.name, (*counts, group.units))


def uniform(ladders: Sequence[Ladder]) -> Callable[[float], dict[str, float]]:
    """Every group keeps the same share."""
    return lambda share: {item.group: share * item.units for item in ladders}


def ranked(
    pools: Sequence[Sequence[Group]], scores: Mapping[str, Tensor]
) -> Callable[[float], dict[str, float]]:
    """Within a pool all units are ranked together and the same share of its channels stays.

    Scores are divided by their group's mean first: layers have scales of their own.
    """
    ordered = []
    for pool in pools:
        normal = [scores[g.name] / scores[g.name].mean().clamp_min(1e-30) for g in pool]
        weight = torch.cat([torch.full((g.units,), float(g.unit_width)) for g in pool])
        values = torch.cat(normal)
        order = torch.argsort(values, descending=True)
        ordered.append((pool, normal, values[order], weight[order].cumsum(0) / weight.sum()))

    def ideal(share: float) -> dict[str, float]:
        kept: dict[str, float] = {}
        for pool, normal, values, mass in ordered:
            position = min(int(torch.searchsorted(mass, share)), len(values) - 1)
            threshold = values[position]
            for group, value in zip(pool, normal, strict=True):
                kept[group.name] = float((value >= threshold).sum())
        return kept

    return ideal


def fit_budget(
    ladders: Sequence[Ladder],
    ideal: Callable[[float], dict[str, float]],
    cost: Callable[[Mapping[str, float]], float],
    budget: float,
) -> dict[str, int]:
    """Unit counts by group whose cost is at most `budget` and close to it.

    `ideal(share)` gives the wished unit counts, growing with `share`; `cost` takes the kept share
    of each group. A bisection on the share finds the last rounded choice within the budget, then
    groups that rounding treated worst get their next width back while it fits.
    """

    def rounded(share: float) -> dict[str, int]:
        wished = ideal(share)
        return {item.group: item.nearest(wished[item.group]) for item in ladders}

    units = {item.group: item.units for item in ladders}

    def price(counts: Mapping[str, int]) -> float:
        return cost({name: count / units[name] for name, count in counts.items()})

    smallest = {item.group: item.counts[0] for item in ladders}
    least = price(smallest)
    if least > budget:
        raise BudgetTooLow(least)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if price(rounded(middle)) <= budget else (low, middle)
    counts = rounded(low)
    if price(counts) > budget:
        counts = smallest
    wished = ideal(low)
    counts = _fill(counts, ladders, wished, price, budget)
    # Where one coarse step is worth more than the slack, another layer may go without it.
    for _ in ladders:
        if price(counts) >= budget * (1.0 - _CLOSE):
            break
        tries = [
            _exchange(counts, item, ladders, wished, price, budget)
            for item in ladders
            if item.above(counts[item.group]) is not None
        ]
        found = max((t for t in tries if t is not None), key=price, default=None)
        if found is None or price(found) <= price(counts):
            break
        counts = found
    return counts


_CLOSE = 0.02
"""A budget met to this share is met."""

_Price = Callable[[Mapping[str, int]], float]


def _fill(
    counts: dict[str, int],
    ladders: Sequence[Ladder],
    wished: Mapping[str, float],
    price: _Price,
    budget: float,
) -> dict[str, int]:
    """Give groups their next width back, the furthest below its wish first, while it fits."""
    counts = dict(counts)

    def ahead(item: Ladder) -> float:
        return (counts[item.group] - wished[item.group]) / item.units

    while True:
        for item in sorted(ladders, key=ahead):
            wider = item.above(counts[item.group])
            if wider is not None and price({**counts, item.group: wider}) <= budget:
                counts[item.group] = wider
                break
        else:
            return counts


def _exchange(
    counts: dict[str, int],
    raised: Ladder,
    ladders: Sequence[Ladder],
    wished: Mapping[str, float],
    price: _Price,
    budget: float,
) -> dict[str, int] | None:
    """`raised` one step wider, others narrower until it fits; None where it cannot."""
    counts = {**counts, raised.group: raised.above(counts[raised.group]) or raised.units}
    while price(counts) > budget:
        narrower = {
            item.group: below
            for item in ladders
            if item is not raised and (below := item.below(counts[item.group])) is not None
        }
        if not narrower:
            return None
        units = {item.group: item.units for item in ladders}
        widest = max(narrower, key=lambda name: (counts[name] - wished[name]) / units[name])
        counts[widest] = narrower[widest]
    return _fill(counts, ladders, wished, price, budget)


class BudgetTooLow(UserError):
    """Even the narrowest widths cost more; `least` says how much."""

    def __init__(self, least: float) -> None:
        super().__init__(f"The budget cannot be met: the least possible is {least:.0f}.")
        self.least = least
