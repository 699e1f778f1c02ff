"""Axes and grids are where the numbers say."""

from __future__ import annotations

import math

import pytest

from vcompress.bench.reports import svg


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 10.0, 5, [0, 2, 4, 6, 8, 10]),
        (0.0, 0.5, 5, [0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (97.3, 99.9, 7, [97.5, 98, 98.5, 99, 99.5]),
        (-0.5, 1.5, 5, [-0.5, 0, 0.5, 1, 1.5]),
        (3.0, 3.0, 5, [3.0]),
        (0.0, math.inf, 5, [0.0]),
        (-math.inf, 1.0, 5, []),
    ],
)
def test_ticks_are_round_numbers_within_the_span(
    low: float, high: float, count: int, expected: list[float]
) -> None:
    assert svg.ticks(low, high, count) == pytest.approx(expected)


def test_ticks_of_a_logarithm_are_powers_of_ten_and_where_it_is_short_more() -> None:
    assert svg.log_ticks(-0.2, 1.1) == [1, 2, 5, 10]
    assert svg.log_ticks(-2.0, 1.0) == [0.01, 0.1, 1, 10]


def test_an_axis_may_run_either_way() -> None:
    assert svg.Axis(0, 10, 50, 150).at(2.5) == 75
    assert svg.Axis(0, 10, 200, 0).at(2.5) == 150


def test_a_grid_has_a_line_and_a_text_for_each_place() -> None:
    (line,) = svg.upright([(12.34, "7")], 10, 90, 5, "soft")
    assert 'x1="12.3" x2="12.3" y1="10" y2="90"' in line
    assert '<text class="soft" x="12.3" y="95" text-anchor="middle">7</text>' in line
    (line,) = svg.level([(40.0, "3")], 58, 548)
    assert 'x1="58" x2="548" y1="40.0" y2="40.0"' in line
    assert '<text x="52" y="44.0" text-anchor="end">3</text>' in line
