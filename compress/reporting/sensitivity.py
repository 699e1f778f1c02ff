"""The ranking of layers as a plot: a row for each layer with its SQNR and lost accuracy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vcompress.bench.bundle.output import write_text
from vcompress.bench.errors import UserError
from vcompress.bench.reports import svg
from vcompress.bench.text import document, escape

if TYPE_CHECKING:
    from ..quantization.sensitivity import LayerSensitivity

ROW, TOP, BOTTOM = 20, 42, 34
PANEL, GAP, RIGHT = 300, 60, 56
PER_LETTER = 7.2
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1c2430}.soft{fill:#5d6878}"
    ".grid{stroke:#dfe4ea}.axis{stroke:#5d6878}.sqnr{fill:#2563eb}.worst{fill:#ea580c}"
    ".lost{fill:#ea580c}.won{fill:#059669}.page{fill:#fff}"
    "@media (prefers-color-scheme: dark){text{fill:#e6e9ee}.soft{fill:#9aa5b4}"
    ".grid{stroke:#323a45}.page{fill:#12161c}}"
)
SUFFIXES = (".html", ".svg", ".json")


def check_suffix(path: Path) -> None:
    """Raise a UserError for a file that `write` does not know how to write."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--out {path}: expected a name that ends in {', '.join(SUFFIXES)}.")


def write(path: Path, layers: Sequence[LayerSensitivity], title: str) -> None:
    """Write the picture, the page with it, or the numbers, as the file's ending says."""
    check_suffix(path)
    text = {".html": _page, ".svg": draw, ".json": _numbers}[path.suffix](layers, title)
    write_text(path, text)


def draw(layers: Sequence[LayerSensitivity], title: str) -> str:
    """SVG, the layers in the order given."""
    names = max([len(layer.layer) for layer in layers], default=0)
    left = math.ceil(names * PER_LETTER) + 20
    base = TOP + ROW * len(layers)
    width, height = left + 2 * PANEL + GAP + RIGHT, base + BOTTOM
    finite = [layer.sqnr_db for layer in layers if math.isfinite(layer.sqnr_db)]
    most_db = max([*finite, 10.0])
    lost = [layer.lost_accuracy for layer in layers]
    low, high = min([*lost, 0.0]), max([*lost, 0.5])
    second = left + PANEL + GAP

    decibels = svg.Axis(0.0, most_db, left, left + PANEL)
    points = svg.Axis(low, high, second, second + PANEL)
    grid = [(decibels.at(v), svg.number(v)) for v in svg.ticks(0, most_db)]
    grid += [(points.at(v), svg.number(v)) for v in svg.ticks(low, high)]
    parts = [
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text x="{left}" y="18" font-weight="600">SQNR of the logits, dB (short is bad)</text>',
        f'<text x="{second}" y="18" font-weight="600">lost accuracy, points</text>',
        *svg.upright(grid, TOP - 8, base, 18, "soft"),
    ]
    zero = points.at(0.0)
    for place, layer in enumerate(layers):
        y = TOP + ROW * place
        end = decibels.at(max(layer.sqnr_db, 0.0) if math.isfinite(layer.sqnr_db) else most_db)
        shown = f"{layer.sqnr_db:.1f}" if math.isfinite(layer.sqnr_db) else "no change"
        kind = "worst" if layer.sqnr_db == min(finite, default=math.nan) else "sqnr"
        here = points.at(layer.lost_accuracy)
        change = "lost" if layer.lost_accuracy > 0 else "won"
        at = max(here, zero)
        parts.append(
            f'<text x="{left - 10}" y="{y + 11}" text-anchor="end">{escape(layer.layer)}</text>'
            f'<rect class="{kind}" x="{left}" y="{y}" width="{end - left:.1f}" height="{ROW - 6}"/>'
            f'<text class="soft" x="{end + 5:.1f}" y="{y + 11}">{shown}</text>'
            f'<rect class="{change}" x="{min(here, zero):.1f}" y="{y}" '
            f'width="{abs(here - zero):.1f}" height="{ROW - 6}"/>'
            f'<text class="soft" x="{at + 5:.1f}" y="{y + 11}">{layer.lost_accuracy:+.2f}</text>'
        )
    parts.append(f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="{TOP - 8}" y2="{base}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
        f"<style>{_STYLE}</style><title>{escape(title)}</title>{''.join(parts)}</svg>\n"
    )


def _page(layers: Sequence[LayerSensitivity], title: str) -> str:
    return document(
        title,
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1100px;padding:0 1rem}"
        "svg{max-width:100%;height:auto}"
        "@media (prefers-color-scheme: dark){body{color:#e6e9ee;background:#12161c}}",
        f"<h1>{escape(title)}</h1>\n"
        "<p>Each layer quantised alone, its weight and its input; the most sensitive first. A low "
        "signal-to-noise ratio of the logits says that the layer suffers, before the accuracy of "
        f"a small set of images does.</p>\n{draw(layers, title)}",
    )


def _numbers(layers: Sequence[LayerSensitivity], title: str) -> str:
    rows = [
        {
            "layer": layer.layer,
            "sqnr_db": layer.sqnr_db if math.isfinite(layer.sqnr_db) else None,
            "lost_accuracy": layer.lost_accuracy,
        }
        for layer in layers
    ]
    return json.dumps({"title": title, "layers": rows}, indent=1, allow_nan=False) + "\n"
