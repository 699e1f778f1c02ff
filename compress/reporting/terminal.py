"""Tables of the command line: the stages of a bundle, rankings, engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import (
    Entry,
    Metrics,
    Robustness,
    TestScore,
    measured,
)
from vcompress.bench.tasks.metrics import metric
from vcompress.bench.text import printable

from .against_float import float_lines
from .budget import budget_lines
from .integers import integer_lines
from .latency import latency_text
from .speed import speed_lines

if TYPE_CHECKING:
    from ..quantization.sensitivity import LayerSensitivity
    from ..search.cost import Cost
    from ..training.lr_finder import Sweep


def print_history(bundle: Bundle) -> None:
    """Every stage of the bundle: accuracy, parameters, MACs, file size, median latency."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text, not str: names from a bundle or a path are no markup.
    title = Text(printable(str(bundle.path)))
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("stage", "model"):
        table.add_column(column)
    score = f"{score_title(measured(bundle.history))} (95 % interval)"
    for column in (score, "parameters", "MACs", "model.onnx", "median latency"):
        table.add_column(column, justify="right")
    for row in rows(bundle.history):
        table.add_row(*(Text(printable(cell)) for cell in row))
    history = bundle.history
    notes = [
        *speed_lines(history), *budget_lines(history), *integer_lines(history),
        *float_lines(history),
    ]  # fmt: skip
    if notes:
        table.caption, table.caption_justify = Text("\n".join(map(printable, notes))), "left"
    # A pipe or a log has no width of its own; a narrow default would cut the numbers.
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def rows(history: Iterable[Entry]) -> list[tuple[str, ...]]:
    """The cells of `print_history`, as text."""
    return [
        (
            entry.stage, entry.model, score_text(found.test), f"{found.parameters / 1e6:.2f} M",
            f"{found.macs / 1e6:.1f} M", f"{found.onnx_bytes / 1e6:.2f} MB",
            latency_text(found.latency),
        )
        for entry, found in measured(history)
    ]  # fmt: skip


def score_title(entries: Iterable[tuple[Entry, Metrics]]) -> str:
    """What heads a column of the stages' scores: their metric, where it is the same for all."""
    names = {found.test.metric for _, found in entries if found.test is not None}
    if len(names) > 1:
        return "score"
    return metric(names.pop() if names else "top1").title


def print_engines(records: Iterable[Mapping[str, Any]]) -> None:
    """Engines by their records, and how much of each runs in int8."""
    from .engines import HEADS, rows

    lines = [HEADS, *(tuple(map(printable, row)) for row in rows(records))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


def score_text(test: TestScore | None) -> str:
    if test is None:
        return "not measured"
    kind = metric(test.metric)
    if test.interval is None:
        return kind.text(test.value)
    span = kind.span(*test.interval).removesuffix(f" {kind.unit}")
    return f"{kind.text(test.value)} ({span})"


def print_robustness(found: Mapping[Path, Robustness]) -> None:
    """A row for each bundle: its metric as they are, under PGD, and the mean of five severities."""
    shown = metric(next(iter(found.values())).metric)
    scale, digits, head = (100, 1, f"{shown.title}, %") if shown.unit else (1, 3, shown.title)
    kinds = tuple(next(iter(found.values())).corruptions)
    heads = ("clean", "PGD", *kinds, "mean")
    width = max(len(printable(str(path))) for path in found)
    print(f"{head:{width}}" + "".join(f"{head:>12}" for head in heads))
    for path, robust in found.items():
        each = robust.corruptions
        means = [sum(each[kind]) / len(each[kind]) for kind in kinds]
        shares = (robust.clean, robust.pgd, *means, robust.mean_corrupted)
        cells = "".join(f"{scale * share:12.{digits}f}" for share in shares)
        print(f"{printable(str(path)):{width}}{cells}")


def print_sweep(found: Sweep) -> None:
    """Some ten of the rates with their loss, and what to take."""
    print("learning rate  smoothed loss")
    step = max(1, len(found.rates) // 10)
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[::step]:
        print(f"{rate:13.2e}  {loss:13.4f}")
    end = "the loss blew up" if found.stopped else "the highest rate"
    print(f"ended at {found.rates[-1]:.2e}: {end}")
    print(f"loss is least at {found.highest:.2e} and falls most steeply at {found.suggestion:.2e}")
    print(f"suggestion: --lr {found.suggestion:.1e}")


def print_cost(name: str, found: Cost, verdicts: Mapping[str, str]) -> None:
    """What a candidate costs, a line for each quantity, and whether it keeps its budgets."""
    kept = ", measured before" * found.kept + ", unsteady" * (not found.steady)
    print(f"{printable(name)} with random weights, {found.cpu}, {found.threads} thread")
    print(f"  latency     {found.latency_ms:.3g} ms ({found.low_ms:.3g} to {found.high_ms:.3g}) in "
          f"{found.runtime}{kept}")  # fmt: skip
    print(f"  file        {found.size_mb:.2f} MB")
    print(f"  MACs        {found.macs / 1e6:.1f} M")
    print(f"  parameters  {found.params / 1e6:.2f} M")
    for text, said in verdicts.items():
        print(f"  {said:10}  {text}")


def print_ranking(layers: Sequence[LayerSensitivity]) -> None:
    """A table, the most sensitive layer first."""
    width = max(len(layer.layer) for layer in layers)
    print(f"{'layer':{width}}  SQNR, dB  lost accuracy, points")
    for layer in layers:
        print(f"{layer.layer:{width}}  {layer.sqnr_db:8.1f}  {layer.lost_accuracy:+21.2f}")
