"""Accuracy under an attack and under corruptions, as a part of the report."""

from __future__ import annotations

from collections.abc import Sequence

from vcompress.bench.bundle.history import Entry, Robustness, measured
from vcompress.bench.tasks.metrics import Metric, metric
from vcompress.bench.text import escape

from .latency import title


def robustness_section(history: Sequence[Entry]) -> list[str]:
    """A row for each stage whose robustness was measured; nothing where none was."""
    found = [
        (number, entry, metrics.robustness)
        for number, (entry, metrics) in enumerate(measured(history), 1)
        if metrics.robustness is not None
    ]
    if not found:
        return []
    kinds = tuple(found[-1][2].corruptions)
    heads = "".join(
        f'<th class="left">{h}</th>' if h in ("", "stage") else f"<th>{escape(h)}</th>"
        for h in ("", "stage", "clean", "PGD", *kinds, "mean")
    )
    rows = "".join(
        f'<tr><td class="left">{number}</td><td class="left">{escape(entry.stage)}'
        f"<small>{escape(entry.model)}</small></td>{_cells(robustness)}</tr>"
        for number, entry, robustness in found
    )
    _, _, last = found[-1]
    name = metric(last.metric).title
    note = (
        f"{name[0].upper()}{name[1:]} on {last.n} test images. PGD: {last.steps} steps within "
        f"{last.epsilon:g} of a pixel (0 to 1), in torch. Corruptions: mean of five severities, "
        "and below from the mildest to the worst (arXiv:1903.12261), in "
        f"{title(last.runtime)}."
    )
    return [
        "<h2>Robustness</h2>",
        f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>',
        f'<p class="soft"><small>{escape(note)}</small></p>',
    ]


def _cells(robustness: Robustness) -> str:
    shown = metric(robustness.metric)
    cells = [f"<td>{_short(shown, value)}</td>" for value in (robustness.clean, robustness.pgd)]
    for values in robustness.corruptions.values():
        each = " ".join(f"{100 * x:.0f}" if shown.unit else f"{x:.3g}" for x in values)
        mean = _short(shown, sum(values) / len(values))
        cells.append(f"<td>{mean}<small>{each}</small></td>")
    cells.append(f"<td>{_short(shown, robustness.mean_corrupted)}</td>")
    return "".join(cells)


def _short(shown: Metric, value: float) -> str:
    """With one digit: there are many in a row."""
    return f"{100 * value:.1f} %" if shown.unit else f"{value:.3g}"
