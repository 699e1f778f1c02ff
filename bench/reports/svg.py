"""Plots as SVG text: no script, no network, no plotting library."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea")
WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 40


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that span low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw)
    first = np.ceil(low / step) * step
    return [float(v) for v in np.arange(first, high + step * 1e-6, step)]


def number(value: float) -> str:
    return f"{value:.6g}"


class Plot:
    """Axes with a linear scale in both directions."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], x_label: str, y_label: str,
        title: str, percent_y: bool = False,
    ) -> None:  # fmt: skip
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.y0, self.y1 = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)
        self.parts: list[str] = []
        self.title = title
        for value in ticks(self.x0, self.x1):
            at = self.px(value)
            self.parts.append(
                f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" '
                f'y2="{HEIGHT - BOTTOM}"/><text x="{at:.1f}" y="{HEIGHT - BOTTOM + 15}" '
                f'text-anchor="middle">{number(value)}</text>'
            )
        for value in ticks(self.y0, self.y1, 4):
            at = self.py(value)
            text = f"{value:.0%}" if percent_y else number(value)
            self.parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" '
                f'y2="{at:.1f}"/><text x="{LEFT - 6}" y="{at + 4:.1f}" '
                f'text-anchor="end">{text}</text>'
            )
        self.parts.append(
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
            f'text-anchor="middle">{escape(x_label)}</text>'
            f'<text transform="rotate(-90 12 {(TOP + HEIGHT - BOTTOM) / 2})" x="12" '
            f'y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle">{escape(y_label)}</text>'
        )

    def px(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def py(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

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
