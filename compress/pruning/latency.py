"""Finds the widths for a latency that lose the least importance.

Latencies of layers are measured at the widths in question (`latency_table`). The sum over layers
is not separable (a layer's time depends on two widths), so the budget comes down in steps, and in
each step widths within reach are chosen exactly, by dynamic programming over a knapsack, with
each layer's other width held (compare HALP, Shen et al., NeurIPS 2022).
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import Budget, none_given, to_cut
from vcompress.export.folding import fold

from ..models.cost import count_macs, count_parameters
from .budget import CannotMeet, Export, naming
from .cost import side_shares
from .latency_table import LatencyTable, LayerCall, layer_calls
from .prune import Analysis, PruneOptions, PruneReport, analyse, carry_out, trial_cut
from .widths import Ladder

if TYPE_CHECKING:
    from typing_extensions import Unpack

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LatencyReport:
    """What pruning to a latency did."""

    prune: PruneReport
    before_ms: float
    predicted_ms: float
    measured_ms: float
    """Latency of the exported pruned network, by the same loop."""


def knapsack(
    losses: Sequence[Floats], costs: Sequence[Floats], budget: float, bins: int = 4000
) -> list[int] | None:
    """One choice for each item with the least sum of losses and a sum of costs within `budget`.

    `losses[i]` and `costs[i]` are [choices of i]. Costs are rounded up to `bins` parts of the
    budget, so the result always fits and is exact up to that rounding. None where nothing fits.
    """
    least = [float(cost.min()) for cost in costs]
    slack = budget - sum(least)
    if slack < 0:
        return None
    unit = max(slack / bins, 1e-12)
    best = np.zeros(bins + 1)
    choices: list[NDArray[np.int64]] = []
    for loss, cost, low in zip(losses, costs, least, strict=True):
        steps = np.ceil((cost - low) / unit - 1e-9).astype(np.int64)
        options = np.full((len(cost), bins + 1), np.inf)
        for index, step in enumerate(steps):
            if step <= bins:
                options[index, step:] = best[: bins + 1 - step] + loss[index]
        choices.append(options.argmin(0))
        best = options.min(0)
    picked: list[int] = []
    room = int(best.argmin())
    for position in range(len(costs) - 1, -1, -1):
        choice = int(choices[position][room])
        picked.append(choice)
        taken = float(costs[position][choice]) - least[position]
        room -= int(np.ceil(taken / unit - 1e-9))
    return picked[::-1]


def losses(ladder: Ladder, ranking: Tensor) -> Floats:
    """Minus the logarithm of the share of importance that each width of a ladder keeps.

    Summed over groups that is the product of the shares: no layer may be emptied for the others.
    """
    ordered = ranking.double().sort(descending=True).values.cumsum(0)
    whole = ordered[-1].clamp_min(1e-30)
    shares = [float((ordered[count - 1] / whole).clamp_min(1e-12)) for count in ladder.counts]
    return np.asarray(-np.log(np.array(shares)), np.float64)


@dataclass(frozen=True)
class _Layers:
    """Predicted latency of a choice of widths: the sum over layers, each at its two widths, times
    what the whole network takes over that sum."""

    calls: Sequence[LayerCall]
    shares: Mapping[tuple[str, str], tuple[tuple[str, float], ...]]
    table: LatencyTable
    units: Mapping[str, int]
    factor: float = 1.0

    def width(self, call: LayerCall, side: str, counts: Mapping[str, int]) -> int:
        full = call.inputs if side == "in" else call.outputs
        parts = self.shares.get((call.path, side), ())
        left = 1.0 - sum(share * (1.0 - counts[name] / self.units[name]) for name, share in parts)
        return max(1, round(full * left))

    def layer_ms(self, call: LayerCall, counts: Mapping[str, int]) -> float:
        outputs = self.width(call, "out", counts)
        same = call.kind == "depthwise" and call.inputs == call.outputs
        inputs = outputs if same else self.width(call, "in", counts)
        return self.factor * self.table.at(call, inputs, outputs)

    def total_ms(self, counts: Mapping[str, int]) -> float:
        return sum(self.layer_ms(call, counts) for call in self.calls)

    def touching(self, group: str) -> list[LayerCall]:
        return [
            call for call in self.calls
            if any(
                name == group
                for side in ("in", "out")
                for name, _ in self.shares.get((call.path, side), ())
            )
        ]  # fmt: skip


def choose(
    layers: _Layers,
    ladders: Sequence[Ladder],
    lost: Mapping[str, Floats],
    budget_ms: float,
    steps: int = 8,
) -> dict[str, int]:
    """Unit counts by group whose predicted latency is at most `budget_ms`, at the least loss."""
    counts = {ladder.group: ladder.units for ladder in ladders}
    start = layers.total_ms(counts)
    best: tuple[float, dict[str, int]] | None = None
    touching = {ladder.group: layers.touching(ladder.group) for ladder in ladders}
    for step in range(1, steps * 3 + 1):
        # Widths are not independent: where the asked for is missed by that, aim lower than it.
        share = step / steps if best is None else min(1.0, step / steps)
        budget = start * (budget_ms / start) ** share if start > budget_ms else budget_ms
        now = layers.total_ms(counts)
        reach, costs, values = [], [], []
        for ladder in ladders:
            near = _reach(ladder, counts[ladder.group])
            without = sum(layers.layer_ms(call, counts) for call in touching[ladder.group])
            costs.append(np.array([
                sum(
                    layers.layer_ms(call, {**counts, ladder.group: ladder.counts[i]})
                    for call in touching[ladder.group]
                ) - without
                for i in near
            ]))  # fmt: skip
            values.append(lost[ladder.group][list(near)])
            reach.append(near)
        picked = knapsack(values, costs, budget - now)
        if picked is None:  # not yet in reach: go down as far as one may
            picked = [int(cost.argmin()) for cost in costs]
        counts = {
            ladder.group: ladder.counts[near[choice]]
            for ladder, near, choice in zip(ladders, reach, picked, strict=True)
        }
        if layers.total_ms(counts) <= budget_ms:
            loss = sum(
                float(lost[item.group][item.counts.index(counts[item.group])]) for item in ladders
            )
            if best is None or loss < best[0]:
                best = loss, counts
    if best is not None:
        return best[1]
    narrowest = {item.group: item.counts[0] for item in ladders}
    least = layers.total_ms(narrowest)
    if least > budget_ms:
        raise CannotMeet(
            f"A latency of {budget_ms:.3g} ms cannot be met: with these options the least is about "
            f"{least:.3g} ms, {least / start:.2f} of {start:.3g}. Ask for that or more, lower "
            "round_to, raise max_channel_ratio or protect less."
        )
    return _widened(layers, ladders, lost, narrowest, budget_ms)


def _widened(
    layers: _Layers,
    ladders: Sequence[Ladder],
    lost: Mapping[str, Floats],
    counts: dict[str, int],
    budget_ms: float,
) -> dict[str, int]:
    """From widths within the budget upwards, each time the step that gains most while it fits.

    For a budget near the least, or times with so much noise that narrower is often slower: there
    `choose` does not find what fits.
    """
    while True:
        steps = []
        for item in ladders:
            wider = item.above(counts[item.group])
            if wider is None:
                continue
            here, there = item.counts.index(counts[item.group]), item.counts.index(wider)
            tried = {**counts, item.group: wider}
            if layers.total_ms(tried) <= budget_ms:
                steps.append((float(lost[item.group][here] - lost[item.group][there]), tried))
        if not steps:
            return counts
        counts = max(steps, key=lambda step: step[0])[1]


def _reach(ladder: Ladder, count: int) -> list[int]:
    """Rungs near the present one: the others' widths are held only in thought."""
    here = ladder.counts.index(count)
    low, high = 0.7 * count, 1.4 * count
    return [
        index for index, other in enumerate(ladder.counts)
        if abs(index - here) <= 1 or low <= other <= high
    ]  # fmt: skip


def thinned(ladder: Ladder, rungs: int = 12) -> Ladder:
    """At most about so many widths, evenly spread: each has to be measured."""
    stride = -(-len(ladder.counts) // rungs)
    return Ladder(ladder.group, ladder.counts[::-1][::stride][::-1])


def prune_to_latency(
    model: nn.Module,
    example: Tensor,
    table: LatencyTable,
    export: Export,
    budget: Budget | str | None = None,
    *,
    latency: float | None = None,
    latency_ms: float | None = None,
    **options: Unpack[PruneOptions],
) -> LatencyReport:
    """Prune `model` in place to a share of its latency, or to so many ms, for one image.

    `budget` is an object or a text such as "latency_ms<=4" or "latency<=0.5"; `latency=0.5` and
    `latency_ms=4` are short for those.
    `export(model, path)` writes the ONNX file that is measured by `table.measure`, as the layers
    are; the pruned network is measured against the unpruned one. What the whole costs beyond the
    sum of its layers is measured on the unpruned network, then corrected by measuring the chosen
    one, twice at most. `PruneOptions` has the other options.
    """
    asked = to_cut(budget, latency=latency, latency_ms=latency_ms)
    if asked is None:
        raise none_given("latency", "latency_ms")
    if asked.kind != "latency_ms":
        raise UserError(f"{asked.text}: this prunes to a latency; call prune for {asked.kind}.")
    fold(model)
    found = analyse(model, example, **options)
    gc.freeze()  # the loop collects before it starts, and networks hold many objects
    try:
        timed = _meet(model, example, found, table, export, asked)
    finally:
        gc.unfreeze()
        table.save()
    counts, before_ms, predicted_ms, measured_ms = timed
    before = count_macs(model, example), count_parameters(model)
    report = carry_out(model, example, found, counts, asked, before)
    return LatencyReport(report, before_ms, predicted_ms, measured_ms)


def _meet(
    model: nn.Module,
    example: Tensor,
    found: Analysis,
    table: LatencyTable,
    export: Export,
    asked: Budget,
) -> tuple[dict[str, int], float, float, float]:
    """Unit counts; ms before, predicted and measured."""
    ladders = [thinned(item) for item in found.ladders.values()]
    layers = _Layers(
        layer_calls(model, example), side_shares(found.groups), table,
        {group.name: group.units for group in found.groups},
    )  # fmt: skip
    lost = {item.group: losses(item, found.ranking[item.group]) for item in ladders}
    before_ms = _measured(model, table, export)
    budget_ms = asked.value * before_ms if asked.relative else asked.value
    if budget_ms >= before_ms:
        raise UserError(
            f"{asked.text}: the network takes {before_ms:.3g} ms already, so there is nothing to "
            "prune. Ask for less."
        )
    full = {item.group: item.units for item in ladders}
    layers = replace(layers, factor=before_ms / max(layers.total_ms(full), 1e-9))
    for attempt in range(3):
        with naming(found.left_alone):
            counts = choose(layers, ladders, lost, budget_ms)
        predicted_ms = layers.total_ms(counts)
        trial = trial_cut(model, found.groups, counts, found.ranking)
        measured_ms = before_ms * _ratio(model, trial, table, export)
        if attempt == 2 or abs(measured_ms / budget_ms - 1.0) <= 0.05:
            break
        layers = replace(layers, factor=layers.factor * measured_ms / predicted_ms)
    return counts, before_ms, predicted_ms, measured_ms


def _measured(model: nn.Module, table: LatencyTable, export: Export) -> float:
    """Latency in ms of the whole network; kept in the table: a resumed run chooses alike."""
    key = f"network {_shapes(model)}"
    if key not in table.entries:
        with temporary_folder() as folder:
            path = folder / "model.onnx"
            export(model, path)
            table.entries[key] = table.measure(path)
    return table.entries[key]


def _ratio(model: nn.Module, trial: nn.Module, table: LatencyTable, export: Export) -> float:
    """Latency of `trial` over that of `model`; kept in the table too."""
    if table.ratio is None:
        return _measured(trial, table, export) / _measured(model, table, export)
    key = f"ratio {_shapes(trial)} to {_shapes(model)}"
    if key not in table.entries:
        with temporary_folder() as folder:
            first, second = folder / "first.onnx", folder / "second.onnx"
            export(model, first)
            export(trial, second)
            table.entries[key] = table.ratio(first, second)
    return table.entries[key]


def _shapes(model: nn.Module) -> str:
    """What the latency of a network depends on, hashed."""
    shapes = str([(name, tuple(t.shape)) for name, t in model.state_dict().items()])
    return hashlib.sha256(shapes.encode()).hexdigest()[:16]
