"""A range in the type of a field is held by one check, with one message."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import Range, above, at_least, between, check_ranges, share


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "said"),
    [
        (at_least(1), (1, 7.5, math.inf), (0.999, -math.inf), "1 or more"),
        (above(0), (5e-324, math.inf), (0, -1), "above 0"),
        (between(2, 8), (2, 8), (1.999, 8.001), "from 2 to 8"),
        (share(), (0, 1), (-0.001, 1.001), "from 0 to 1"),
        (share(one=False), (0, 0.999), (-0.001, 1), "at least 0 and below 1"),
        (share(zero=False), (0.001, 1), (0, 1.001), "above 0, at most 1"),
        (share(zero=False, one=False), (0.001, 0.999), (0, 1), "between 0 and 1"),
    ],
)
def test_a_range_knows_its_ends_and_says_them(
    allowed: Range, inside: tuple[float, ...], outside: tuple[float, ...], said: str
) -> None:
    assert [value for value in inside if value not in allowed] == []
    assert [value for value in (*outside, math.nan) if value in allowed] == []
    assert str(allowed) == said


@dataclass(frozen=True, kw_only=True)
class Base:
    epochs: Annotated[int, at_least(0)] = 20
    rate: float = -1.0

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    epochs: int = 8  # another default, the same range
    threads: Annotated[int | None, at_least(1)] = None
    sides: Annotated[tuple[int, ...], between(1, 9)] = ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs = -1: it must be 0 or more."),
        ({"threads": 0}, "threads = 0: it must be 1 or more."),
        ({"sides": (3, 10)}, "sides = (3, 10): it must be from 1 to 9."),
    ],
)
def test_a_value_outside_is_named_with_its_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Derived(**options)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_values_inside_none_and_fields_without_a_range_pass() -> None:
    made = Derived(epochs=0, threads=None, sides=(1, 9), rate=-5.0)
    assert (made.epochs, made.threads, made.sides, made.rate) == (0, None, (1, 9), -5.0)
