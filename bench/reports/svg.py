"""Plots as SVG text: axes, grids, marks. No script, no network, no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea")
WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    if not 0 < high - low < math.inf:
        return [low] if math.isfinite(low) else []
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step), math.floor(high / step + 1e-6)
    return [n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from 10**low to 10**high: powers of ten, with 2 and 5 times them where the
    span is short."""
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    steps = (1,) if high - low > 2.5 else (1, 2, 5)
    values = [round(m * 10.0**d, 12) for d in decades for m in steps]
    return [v for v in values if low <= math.log10(v) <= high]


def number(value: float) -> str:
    return f"{value:.6g}"


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from the pixel `start` to the pixel `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def upright(
    places: Iterable[tuple[float, str]], top: float, base: float, below: float = 15, css: str = ""
) -> list[str]:
    """Grid lines from `top` to `base`, each with its text `below` the base.

    Args:
        places: the pixel and the text of each line.
        css: class of the texts.
    """
    of = f'class="{css}" ' if css else ""
    return [
        f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{base}"/>'
        f'<text {of}x="{at:.1f}" y="{base + below}" text-anchor="middle">{text}</text>'
        for at, text in places
    ]


def level(
    places: Iterable[tuple[float, str]], left: float, right: float, beside: float = 6, css: str = ""
) -> list[str]:
    """Grid lines from `left` to `right`, each with its text `beside` the left end."""
    of = f'class="{css}" ' if css else ""
    return [
        f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text {of}x="{left - beside}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
        for at, text in places
    ]


class Plot:
    """Axes with a linear scale in both directions."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str,
        title: str, percent_y: bool = False,
    ) -> None:  # fmt: skip
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.y0, self.y1 = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)
        base, end = HEIGHT - BOTTOM, WIDTH - RIGHT
        self.px = Axis(self.x0, self.x1, LEFT, end).at
        self.py = Axis(self.y0, self.y1, base, TOP).at
        self.title = title
        of_y = ((v, f"{v:.0%}" if percent_y else number(v)) for v in ticks(self.y0, self.y1, 4))
        self.parts = [
            *upright(((self.px(v), number(v)) for v in ticks(self.x0, self.x1)), TOP, base),
            *level(((self.py(v), text) for v, text in of_y), LEFT, end),
            f'<text x="{(LEFT + end) / 2}" y="{HEIGHT - 6}" '
            f'text-anchor="middle">{escape(x_label)}</text>'
            f'<text transform="rotate(-90 12 {(TOP + base) / 2})" x="12" '
            f'y="{(TOP + base) / 2}" text-anchor="middle">{escape(y_label)}</text>',
        ]

    def bars(self, edges: NDArray[np.float64], heights: NDArray[np.float64], colour: str) -> None:
        """A filled step line."""
        base = self.py(self.y0)
        points = [f"M{self.px(edges[0]):.1f},{base:.1f}"]
        for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
            y = self.py(height)
            points.append(f"L{self.px(left):.1f},{y:.1f}L{self.px(right):.1f},{y:.1f}")
        points.append(f"L{self.px(edges[-1]):.1f},{base:.1f}Z")
        self.parts.append(
            f'<path d="{"".join(points)}" fill="{colour}" fill-opacity=".35" stroke="{colour}"/>'
        )

    def dots(self, x: NDArray[Any], y: NDArray[Any], colour: str, radius: float = 1.5) -> None:
        """A point for each sample."""
        self.parts.append(
            f'<g fill="{colour}" fill-opacity=".55">'
            + "".join(
                f'<circle cx="{self.px(a):.1f}" cy="{self.py(b):.1f}" r="{radius}"/>'
                for a, b in zip(x, y, strict=True)
            )
            + "</g>"
        )

    def across(self, y: float, colour: str, label: str = "", dashed: bool = True) -> None:
        """A horizontal line."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        at = self.py(y)
        self.parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" '
            f'stroke="{colour}"{dash}/>'
        )
        if label:
            self.parts.append(
                f'<text x="{WIDTH - RIGHT - 4}" y="{at - 4:.1f}" text-anchor="end" '
                f'fill="{colour}">{escape(label)}</text>'
            )

    def down(self, x: float, colour: str) -> None:
        """A vertical line."""
        at = self.px(x)
        self.parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
            f'stroke="{colour}" stroke-width="1.5"/>'
        )

    def band(self, low: float, high: float, colour: str) -> None:
        """A horizontal stripe."""
        top, bottom = self.py(min(high, self.y1)), self.py(max(low, self.y0))
        self.parts.append(
            f'<rect x="{LEFT}" width="{WIDTH - LEFT - RIGHT}" y="{top:.1f}" '
            f'height="{max(bottom - top, 0.5):.1f}" fill="{colour}" fill-opacity=".15"/>'
        )

    def text(self) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}">'
            f"<title>{escape(self.title)}</title>{''.join(self.parts)}</svg>"
        )
