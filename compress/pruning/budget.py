"""Finds the widths for a budget: a model predicts the cost, trial cuts correct it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import Budget

from ..models.cost import count_macs
from .cost import CostModel, channel_cost, mac_cost, parameter_cost
from .structure import Group
from .widths import BudgetTooLow, Ladder, fit_budget

Export = Callable[[nn.Module, Path], object]
"""Writes a network as an ONNX file."""

_MOST_TRIALS = 10
_SLACK = 0.02
"""Share by which a budget may be gone over where a layer's next width costs much; 0 of a size, for
a file that is too large does not fit."""
_BYTES = 4
"""Bytes of a weight: pruning is in float32."""


class CannotMeet(UserError):
    """Even the narrowest widths cost more than the budget."""


@contextmanager
def naming(left_alone: Mapping[str, str]) -> Iterator[None]:
    """Adds to a CannotMeet which layers keep their width, by their reason."""
    try:
        yield
    except CannotMeet as error:
        layers: dict[str, list[str]] = {}
        for layer, why in left_alone.items():
            layers.setdefault(why, []).append(layer)
        said = [f"{_listed(names)} ({why})" for why, names in layers.items()]
        if not said:
            raise
        raise CannotMeet(f"{error} Left at their width: {'; '.join(said)}.") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class Meter:
    """How one kind of cost is predicted, and how it is counted."""

    kind: str
    whole: float
    """Cost of the unpruned network: multiply-accumulates, parameters, channels or bytes."""
    cost: CostModel
    count: Callable[[nn.Module], float] | None
    """None where the prediction is exact."""

    def limit(self, budget: Budget) -> float:
        """The most that may remain, in the unit of `whole`.

        Raises:
            UserError: the unpruned network is within the budget.
        """
        if budget.relative:
            return budget.value * self.whole
        limit = in_whole_units(budget)
        if limit >= self.whole:
            raise within_already(budget, self.whole)
        return limit

    def cannot(self, budget: Budget, least: float) -> CannotMeet:
        """The error where even the narrowest widths cost `least`."""
        asked = f"{budget.name} = {budget.value:.3g}" if budget.relative else budget.text
        absolute = "" if budget.relative else f" ({_amount(budget.kind, least)})"
        return CannotMeet(
            f"{asked} cannot be met: with these options at least {least / self.whole:.3g} of the "
            f"{budget.share_name} remains{absolute}. Ask for that or more, lower "
            "round_to, raise max_channel_ratio or protect less."
        )


@dataclass(frozen=True)
class Choice:
    """The widths that were chosen."""

    counts: dict[str, int]
    """Units that each free group keeps."""
    counted: float | None
    """What the network so cut costs; None where it was only predicted, exactly."""


def in_whole_units(budget: Budget) -> float:
    """An absolute budget in multiply-accumulates, parameters or bytes."""
    return budget.value * 1e6 if budget.kind == "size_mb" else budget.value


def within_already(budget: Budget, whole: float) -> UserError:
    """The error for a budget that leaves nothing to do."""
    return UserError(
        f"{budget.text}: the network has {_amount(budget.kind, whole)} already, so there is "
        "nothing to prune. Ask for less."
    )


def _amount(kind: str, value: float) -> str:
    return f"{value / 1e6:.4g} MB" if kind == "size_mb" else f"{value:.4g} {kind}"


def meter_for(
    kind: str,
    model: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    before: tuple[int, int],
    export: Export,
    size_bytes: float | None = None,
) -> Meter:
    """`before` is the multiply-accumulates and parameters of `model`, `size_bytes` the size of its
    file where that is known; else it is exported."""
    if kind == "macs":
        cost = mac_cost(model, example, groups, before[0])
        return Meter(kind, float(before[0]), cost, lambda trial: count_macs(trial, example))
    if kind == "params":
        return Meter(kind, float(before[1]), parameter_cost(model, groups), None)
    if kind == "channels":
        cost = channel_cost([group for group in groups if group.tied_to is None])
        return Meter(kind, cost.at({}), cost, None)
    whole = file_bytes(model, export) if size_bytes is None else size_bytes
    by_params = parameter_cost(model, groups)
    terms = tuple((_BYTES * amount, sides) for amount, sides in by_params.terms)
    # The graph and what the exporter folds away depend on no width that is known here.
    cost = replace(by_params, terms=terms, fixed=whole - sum(amount for amount, _ in terms))
    return Meter(kind, whole, cost, lambda trial: file_bytes(trial, export))


def file_bytes(model: nn.Module, export: Export) -> float:
    """Size of the ONNX file that `export` writes."""
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        export(model, path)
        return float(path.stat().st_size)


def choose(
    meter: Meter,
    budget: Budget,
    groups: Sequence[Group],
    ladders: Sequence[Ladder],
    ideal: Callable[[float], dict[str, float]],
    trial: Callable[[Mapping[str, int]], nn.Module],
) -> Choice:
    """Unit counts of the free groups; the prediction is corrected by what a cut really costs.

    `ideal(share)` gives the wished units of each group, `trial(counts)` a network that is cut.

    Raises:
        UserError: even the narrowest widths cost more than the budget.
    """
    limit, whole = meter.limit(budget), meter.whole
    slack = 0.0 if budget.kind == "size_mb" else _SLACK
    units = {item.group: item.units for item in ladders}
    tried: dict[tuple[int, ...], float] = {}

    def price(kept: Mapping[str, float]) -> float:
        return meter.cost.at({**kept, **{g.name: kept[g.tied_to] for g in groups if g.tied_to}})

    count = meter.count
    if count is None:
        try:
            return Choice(fit_budget(ladders, ideal, price, limit), None)
        except BudgetTooLow as error:
            raise meter.cannot(budget, error.least) from error

    def real_cost(counts: Mapping[str, int]) -> float:
        key = tuple(counts.values())
        if key not in tried:
            tried[key] = count(trial(counts))
        return tried[key]

    aim, least_tried = limit, False
    # What was aimed for where the cut was within the limit, and what one above it was predicted to
    # cost: to aim lower gives another cut.
    low, high = 0.0, whole
    best: tuple[float, Choice] | None = None
    for _ in range(_MOST_TRIALS):
        try:
            counts = fit_budget(ladders, ideal, price, aim)
        except BudgetTooLow as error:
            if least_tried:
                break
            # The prediction may be too high (padded windows): look at what the least really costs.
            aim, least_tried = error.least * (1 + 1e-9), True
            continue
        real = real_cost(counts)
        predicted = price({name: n / units[name] for name, n in counts.items()})
        over = real / limit - 1.0
        if over <= slack:
            # At most the limit, and as near to it as possible; a little over beats far under.
            rank = 10.0 * over if over > 0 else -over
            if best is None or rank < best[0]:
                best = (rank, Choice(counts, real))
            if 0.0 <= -over <= 0.005:
                break
        low, high = (low, min(high, predicted)) if over > 0 else (max(low, aim), high)
        corrected = limit - (real - predicted)
        # Where the correction leaves the bracket the prediction is far off: halve it instead.
        following = corrected if low < corrected < high else (low + high) / 2
        if best is not None and abs(following - aim) <= 0.002 * limit:
            break
        aim = following
    if best is not None:
        return best[1]
    least = {item.group: item.counts[0] for item in ladders}
    real = real_cost(least)
    if real > limit * (1.0 + slack):
        raise meter.cannot(budget, real)
    return Choice(least, real)
