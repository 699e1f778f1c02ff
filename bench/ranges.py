"""Ranges in the types of a dataclass's fields, and the one check of all of them.

    @dataclass(frozen=True)
    class Config:
        epochs: Annotated[int, at_least(0)] = 20

        def __post_init__(self) -> None:
            check_ranges(self)

A tuple is checked value by value, and None is always allowed where the type allows it. What
concerns several fields at once stays in `__post_init__`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_type_hints

from .errors import UserError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; an open end is not one of them."""

    least: float
    most: float = math.inf
    open_below: bool = False
    open_above: bool = False

    def __contains__(self, value: float) -> bool:
        """NaN is in no range."""
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        return above and below

    def __str__(self) -> str:
        """As it reads after "it must be"."""
        low, high = f"{self.least:g}", f"{self.most:g}"
        if self.most == math.inf:
            return f"above {low}" if self.open_below else f"{low} or more"
        if self.open_below:
            return (
                f"between {low} and {high}" if self.open_above else f"above {low}, at most {high}"
            )
        return f"at least {low} and below {high}" if self.open_above else f"from {low} to {high}"


def at_least(least: float) -> Range:
    return Range(least)


def above(least: float) -> Range:
    return Range(least, open_below=True)


def between(least: float, most: float) -> Range:
    """Both ends are allowed."""
    return Range(least, most)


def share(*, zero: bool = True, one: bool = True) -> Range:
    """From 0 to 1; `zero` and `one` say whether the ends are allowed."""
    return Range(0, 1, open_below=not zero, open_above=not one)


def check_ranges(config: object) -> None:
    """Hold every field of the dataclass `config` against the range in its type.

    Raises:
        UserError: with the name, the value and the range of the first that is outside.
    """
    for name, allowed in _ranges(type(config)).items():
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        if any(one is not None and one not in allowed for one in values):
            raise UserError(f"{name} = {value}: it must be {allowed}.")


def _ranges(kind: type) -> dict[str, Range]:
    """Name to range, of those fields that have one. A subclass that gives a field another default
    keeps its range."""
    found: dict[str, Range] = {}
    for base in reversed(kind.__mro__):
        for name, hint in get_type_hints(base, include_extras=True).items():
            for note in getattr(hint, "__metadata__", ()):
                if isinstance(note, Range):
                    found[name] = note
    return found
