"""A result as a terminal table that is read in five seconds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .compare import Comparison
from .result import ModelResult, Result
from .stats import Interval

COLOURS = {"FASTER": "green", "SLOWER": "red", "EQUIVALENT": "cyan", "INCONCLUSIVE": "yellow"}
OUTCOMES = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def figures(value: float) -> str:
    """Four figures, with no exponent."""
    if value == 0:
        return "0"
    digits = max(0, 3 - len(str(int(abs(value)))) + (1 if abs(value) >= 1 else 0))
    if abs(value) < 1:
        digits = 4
    return f"{value:,.{digits}f}"


def span(low: float, high: float) -> str:
    return f"{figures(low)} to {figures(high)}"


def size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"


def percent(share: float) -> str:
    return f"{share:.2%}"


def rows(m: ModelResult) -> dict[str, str]:
    """What the table says of one model, by line."""
    t, out = m.measurement, {}
    out["latency, median"] = f"{figures(t.median_ms)} ms  [dim]{span(*t.interval_ms)}[/]"
    for q, name in ((0.9, "p90"), (0.99, "p99")):
        tail = t.latency(q)
        out[f"latency, {name}"] = f"{figures(tail.value)} ms" if tail else "[dim]too few runs[/]"
    if t.device_ns is not None and len(t.device_ns):
        out["device time, median"] = (
            f"{figures(float(sorted(t.device_ns)[len(t.device_ns) // 2]) / 1e6)} ms"
        )
    if m.throughput:
        p = m.throughput
        out["throughput"] = (
            f"{figures(p.images_per_second)} images/s  [dim]{p.concurrency} in flight[/]"
        )
    if m.open_loop:
        o = m.open_loop
        p99 = o.response_ms.get("p99")
        state = "" if o.kept_up else ", [red]cannot keep up[/]"
        out[f"response at {o.rate_hz:g}/s"] = (
            f"p50 {figures(o.response_ms['p50'] or 0)} ms, p99 "
            f"{figures(p99) + ' ms' if p99 else 'too few'}{state}"
        )
    if m.accuracy:
        a = m.accuracy
        low, high = a.top1_interval
        out["top-1"] = f"{percent(a.top1)}  [dim]{percent(low)} to {percent(high)}[/]"
        if a.top5 is not None:
            out["top-5"] = percent(a.top5)
    out["size"] = f"{size(m.artefact.size_bytes)}"
    if m.artefact.precision:
        out["weights"] = m.artefact.precision
    if m.cold_start:
        c = m.cold_start
        out["cold start"] = (
            f"{figures(c.import_ms + c.load_ms + c.first_run_ms)} ms  "
            f"[dim]load {figures(c.load_ms)}, first run {figures(c.first_run_ms)}[/]"
        )
        out["memory"] = f"{size(c.model_memory_bytes)}  [dim]peak {size(c.peak_memory_bytes)}[/]"
    return out


def verdict_line(c: Comparison, a: str, b: str) -> Text:
    """One sentence on B against A."""
    times = _times(c.ratio)
    saying = {
        "FASTER": f"{b} is {times[0]} times as fast as {a} ({times[1]} to {times[2]})",
        "SLOWER": f"{b} takes {c.ratio.value:.3f} times as long as {a} "
        f"({c.ratio.low:.3f} to {c.ratio.high:.3f})",
        "EQUIVALENT": f"{b} takes {c.ratio.value:.3f} times as long as {a} "
        f"({c.ratio.low:.3f} to {c.ratio.high:.3f}): the same within {c.margin:.0%}",
        "INCONCLUSIVE": f"{b} takes {c.ratio.value:.3f} times as long as {a} "
        f"({c.ratio.low:.3f} to {c.ratio.high:.3f}): not enough to say",
    }[c.verdict]
    return Text.assemble(
        (c.verdict, f"bold {COLOURS[c.verdict]}"), f"  {saying}; A/A noise floor {c.floor:.1%}"
    )


def _times(ratio: Interval) -> tuple[str, str, str]:
    return f"{1 / ratio.value:.3g}", f"{1 / ratio.high:.3g}", f"{1 / ratio.low:.3g}"


def show(result: Result, console: Console) -> None:
    """Print the table, the verdict, the gate and the warnings."""
    first = result.models[0].measurement
    facts = first.facts
    threads = facts.options.get("intra_op_num_threads") or facts.options.get("threads")
    console.print(
        f"{facts.runtime} {facts.version}, {facts.provider}, "
        f"{f'{threads} threads' if threads else 'default threads'}, batch {first.batch}, "
        f"{result.environment.cpu_model}" + "".join(f", {g.name}" for g in result.environment.gpus),
        style="dim", highlight=False,
    )  # fmt: skip
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for m in result.models:
        table.add_column(m.artefact.name)
    by_model = [rows(m) for m in result.models]
    names = list(dict.fromkeys(name for r in by_model for name in r))
    for name in names:
        table.add_row(name, *(r.get(name, "") for r in by_model))
    console.print(table)
    if len(result.sweep) > 1:
        console.print(_sweep(result.sweep))
    for m in result.models:
        if m.profile:
            console.print(_profile(m))
    if result.comparison:
        names = [m.artefact.name for m in result.models]
        console.print(verdict_line(result.comparison, names[0], names[1]))
    if result.change:
        c = result.change
        console.print(
            f"top-1 {c.difference * 100:+.2f} points ({c.difference_interval[0] * 100:+.2f} to "
            f"{c.difference_interval[1] * 100:+.2f}) on {c.n} images, McNemar p = {c.p_value:.2g}; "
            f"negative flips {percent(c.negative_flips)}, agreement {percent(c.agreement)}",
            highlight=False,
        )
        if c.lost:
            lost = ", ".join(f"{n} {a}->{b} of {k}" for n, k, a, b in c.lost[:3])
            console.print(f"classes that lost most: {lost}", highlight=False)
    for check in result.checks:
        console.print(
            Text.assemble((check.outcome.upper(), f"bold {OUTCOMES[check.outcome]}"),
                          f"  {check.name}: {check.message}")
        )  # fmt: skip
    for note in result.notes:
        console.print(f"note: {note}", style="dim", highlight=False)
    for m in result.models:
        prefix = f"{m.artefact.name}: " if len(result.models) > 1 else ""
        for warning in m.warnings:
            console.print(f"warning: {prefix}{warning}", style="yellow", highlight=False)


def _sweep(sweep: tuple[ModelResult, ...]) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for name in ("batch", "latency, median", "per image", "p99"):
        table.add_column(name, justify="right")
    for m in sweep:
        t = m.measurement
        tail = t.latency(0.99)
        table.add_row(
            str(t.batch), f"{figures(t.median_ms)} ms", f"{figures(t.median_ms / t.batch)} ms",
            f"{figures(tail.value)} ms" if tail else "too few runs",
        )  # fmt: skip
    return table


def _profile(m: ModelResult) -> Table:
    table = Table(
        title=f"{m.artefact.name}: the costliest nodes", title_justify="left",
        show_edge=False, pad_edge=False, header_style="bold",
    )  # fmt: skip
    for name in ("node", "operator", "time"):
        table.add_column(name, overflow="fold")
    table.add_column("share", justify="right")
    for node in m.profile[:10]:
        table.add_row(node.name, node.operator, f"{node.time_us:,.1f} us", f"{node.share:.1%}")
    return table
