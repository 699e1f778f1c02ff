"""Limits such as `latency_ms<=4`: one object and one parser for gates, pruning and searches."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import UserError, nearest
from ..tasks.metrics import TABLE, Metric, metric

Outcome = Literal["pass", "fail", "inconclusive"]
Form = Literal["count", "share", "unit", "fraction", "ratio", "change"]


@dataclass(frozen=True)
class Kind:
    """A quantity that can be limited."""

    form: Form
    """count: a whole number; share: always a part of the unchanged network; unit: a number in
    `unit`; fraction: of the images, from 0 to 1; ratio: of two latencies; change: of a metric, in
    its own unit."""
    unit: str = ""
    at_least: bool = False
    """Higher is better."""


METRICS: Mapping[str, bool] = {name: of.higher_is_better for name, of in TABLE.items()}
"""Metrics of the tasks by name; whether higher is better."""
CHANGES: Mapping[str, Metric] = {
    f"{name}_{'drop' if of.higher_is_better else 'rise'}": of for name, of in TABLE.items()
}
"""What a metric may lose against another model: `top1_drop`, `mae_rise`."""
KINDS: Mapping[str, Kind] = {
    "macs": Kind("count"),
    "params": Kind("count"),
    "channels": Kind("share"),
    "latency_ms": Kind("unit", "ms"),
    "p99_ms": Kind("unit", "ms"),
    "size_mb": Kind("unit", "MB"),
    "memory_mb": Kind("unit", "MB"),
    **{name: Kind("fraction" if of.unit else "change") for name, of in CHANGES.items()},
    "negative_flips": Kind("fraction"),
    "slowdown": Kind("ratio", "times"),
    "speedup": Kind("ratio", "times", at_least=True),
}
EXAMPLES = "latency_ms<=4, macs<=0.5, size_mb<=3 or top1>=0.97"
_SHAPE = re.compile(r"\s*([\w.@/-]+?)\s*(<=|>=)\s*([^\s%]+)\s*(%?)\s*")


@dataclass(frozen=True)
class Budget:
    """One quantity and the value that it must not go beyond.

    Raises:
        UserError: a value that no quantity of this kind has.
    """

    kind: str
    """One of `KINDS`, or the name of a task's metric."""
    value: float
    """In the unit of `kind`; where `relative`, a share of the unchanged network, below 1."""
    relative: bool = False
    at_least: bool = False
    """Whether `value` is the least allowed; else it is the most."""

    def __post_init__(self) -> None:
        expected = self._expected()
        if expected:
            raise UserError(f"{self.text}: expected {expected}.")

    def _expected(self) -> str:
        """What should have been given; empty where all is well."""
        value, kind = self.value, KINDS.get(self.kind)
        if not math.isfinite(value) or value < 0:
            return "a number of 0 or more"
        if kind is not None and kind.at_least != self.at_least:
            better = "higher" if kind.at_least else "lower"
            sign = ">=" if kind.at_least else "<="
            return f"{self.name}{sign}{_number(value)}, since {self.name} is better {better}"
        if self.relative:
            if kind is None or kind.form in ("fraction", "ratio", "change"):
                return f"a value of its own: {self.kind} is no share of the unchanged network"
            if not 0 < value < 1:
                absolute = f"; for {kind.unit} write {self.kind}<={_number(value)}"
                return "the share of the unchanged network that remains, between 0 and 1" + (
                    absolute if kind.unit and value >= 1 else ""
                )
        elif kind is not None and kind.form == "share":
            return "the share of the unchanged network that remains, between 0 and 1"
        elif kind is not None and kind.form == "count" and not (value > 1 and value == int(value)):
            return "a share below 1, or a whole number above 1"
        fraction = kind.form == "fraction" if kind is not None else bool(metric(self.kind).unit)
        if fraction and value > 1:
            return f"a share from 0 to 1, such as {value / 100:g}"
        return ""

    @property
    def name(self) -> str:
        """The kind, without its unit for a share: `latency_ms<=4`, but `latency<=0.5`."""
        return self.share_name if self.relative else self.kind

    @property
    def share_name(self) -> str:
        """The kind without its unit."""
        return _base(self.kind)

    @property
    def unit(self) -> str:
        """The unit of `value`; empty for shares and counts."""
        return KINDS[self.kind].unit if self.kind in KINDS and not self.relative else ""

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        return f"{self.name}{'>=' if self.at_least else '<='}{_number(self.value)}"

    def outcome(self, low: float, high: float) -> Outcome:
        """Decided on the unfavourable end of a measured interval: `pass` where even that holds,
        `fail` where not even the favourable one does, `inconclusive` between."""
        if self.at_least:
            return "pass" if low >= self.value else "fail" if high < self.value else "inconclusive"
        return "pass" if high <= self.value else "fail" if low > self.value else "inconclusive"

    def bound(self, low: float, high: float) -> float:
        """The end of the interval that must hold."""
        return low if self.at_least else high


def parse(text: str) -> Budget:
    """Read a kind, `<=` or `>=`, and a number.

    - macs and params: a share of the unchanged network below 1, a count above 1 (`macs<=0.5`,
      `macs<=2e6`). channels is always a share.
    - A kind with a unit in its name is in that unit (`latency_ms<=0.5` is half a millisecond);
      without the unit it is a share (`latency<=0.5`).
    - With a per cent sign any cost is a share: `latency<=50%` is `latency<=0.5`.
    - Metrics and the other kinds are values of their own; `top1>=97%` is `top1>=0.97`.

    Raises:
        UserError: another form, an unknown kind, or a value that the kind does not have.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise UserError(f"{text!r}: expected a kind, <= or >=, and a number: {EXAMPLES}.")
    name, sign, number, percent = found.groups()
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        raise UserError(f"{text!r}: {number!r} is no number; write it as in {EXAMPLES}.") from None
    at_least = sign == ">="
    if name in METRICS:
        if at_least != METRICS[name]:
            raise UserError(
                f"{text!r}: {name} is better {'higher' if METRICS[name] else 'lower'}; write "
                f"{name}{'>=' if METRICS[name] else '<='}{number}{percent}."
            )
        return Budget(name, value, at_least=at_least)
    shares = {_base(kind): kind for kind, of in KINDS.items() if of.form == "unit"}
    if name in shares:
        return Budget(shares[name], value, relative=True, at_least=at_least)
    if name not in KINDS:
        known = [*KINDS, *shares, *METRICS]
        hint = nearest(name, known) or f" Known: {', '.join(known)}."
        raise UserError(f"{text!r}: unknown kind {name!r}.{hint}")
    form = KINDS[name].form
    relative = (
        form == "share"
        or (form == "count" and (bool(percent) or value < 1))
        or (form == "unit" and bool(percent))
    )
    return Budget(name, value, relative, at_least)


REDUCIBLE = ("macs", "params", "channels", "latency_ms", "size_mb")
"""Costs that a network can be cut to."""


def to_cut(budget: Budget | str | None = None, **shorthands: float | None) -> Budget | None:
    """The one budget that a network is cut to; None where none was given.

    Args:
        budget: an object, or a text for `parse`.
        shorthands: a share by the kind (`macs=0.5`, `latency=0.5`), or a value by the kind and
            its unit (`latency_ms=4`); None is not given.

    Raises:
        UserError: several budgets, or one that no cut of a network can aim for.
    """
    given: dict[str, float | Budget | str] = {k: v for k, v in shorthands.items() if v is not None}
    if budget is not None:
        given["budget"] = budget
    if len(given) > 1:
        raise UserError(
            f"Give exactly one of {_listed([*shorthands, 'budget'])}; got {', '.join(given)}."
        )
    for name, value in given.items():
        if isinstance(value, float | int):
            return _shorthand(name, value)
        asked = parse(value) if isinstance(value, str) else value
        _check_reducible(asked)
        return asked
    return None


def none_given(*shorthands: str) -> UserError:
    """The error where `to_cut` found nothing and something is needed."""
    return UserError(f"Give exactly one of {_listed([*shorthands, 'budget'])}; got none.")


def _shorthand(name: str, value: float) -> Budget:
    unit = name in KINDS and KINDS[name].form == "unit"
    if unit and not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} = {value}: expected {KINDS[name].unit}, above 0.")
    if not unit and not 0 < value < 1:
        raise UserError(f"{name} = {value}: expected the share that remains, between 0 and 1.")
    return Budget(name, value) if unit else parse(f"{name}<={value!r}")


def _check_reducible(budget: Budget) -> None:
    if budget.kind not in REDUCIBLE:
        costs = _listed([*REDUCIBLE[:3], "latency", *REDUCIBLE[3:]])
        raise UserError(
            f"budget = {budget.text!r}: a network is cut to a cost, and {budget.kind} is a result "
            f"that is measured afterwards. Give a limit on {costs}, and hold this one with "
            f"vbench --require '{budget.text}'."
        )
    if budget.value == 0:
        raise UserError(f"budget = {budget.text!r}: nothing would remain; give more than 0.")


def _base(kind: str) -> str:
    """`latency_ms` without its unit."""
    form = KINDS.get(kind)
    return kind.rpartition("_")[0] if form is not None and form.form == "unit" else kind


def _number(value: float) -> str:
    """The shortest text that reads as the same number."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
