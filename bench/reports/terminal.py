"""A result as a table for the terminal, readable in five seconds."""

from __future__ import annotations

import re

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..stats import Interval, Verdict
from ..tasks.metrics import metric
from ..tasks.task import ScoreChange
from ..timing import noise
from ..timing.selftest import SelfTest
from .result import ModelResult, Result

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


def bare(text: str) -> str:
    """Without the terminal's markup."""
    return re.sub(r"\[/?[a-z ]*\]", "", text).replace("  ", " ")


def rows(m: ModelResult) -> dict[str, str]:
    """What the table says of one model, by line."""
    t, out = m.measurement, {}
    runs = len(t.samples_ns)
    interval = span(*t.interval_ms) if t.median.carries else f"{runs} run{'s' * (runs > 1)}"
    out["latency, median"] = f"{figures(t.median_ms)} ms  [dim]({interval})[/]"
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
            f"{figures(p.images_per_second)} images/s  [dim]({p.concurrency} in flight)[/]"
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
        for number, (name, found) in enumerate(m.accuracy.values.items()):
            shown = metric(name)
            text = percent if shown.unit else figures
            span_ = f"  [dim]({text(found.low)} to {text(found.high)})[/]"
            out[shown.title] = text(found.value) + (span_ if number == 0 else "")
    out["size"] = f"{size(m.artefact.size_bytes)}"
    if m.artefact.precision:
        out["weights"] = m.artefact.precision
    if m.cold_start:
        c = m.cold_start
        out["cold start"] = (
            f"{figures(c.import_ms + c.load_ms + c.first_run_ms)} ms  "
            f"[dim](load {figures(c.load_ms)}, first run {figures(c.first_run_ms)})[/]"
        )
        out["memory"] = f"{size(c.model_memory_bytes)}  [dim](peak {size(c.peak_memory_bytes)})[/]"
    turns = f"  [dim]({t.ring} in turn)[/]" if t.ring > 1 else ""
    out["inputs"] = f"{escape(t.inputs_from)}{turns}"
    return out


def versus_line(result: Result) -> Text | None:
    """One sentence on B against A, or on the model against the saved one."""
    busy = any(noise.is_busy(m.disturbance) for m in result.models)
    after = "; the machine was busy with other work, measure again on a quiet one" if busy else ""
    if result.comparison:
        a, b = (m.artefact.name for m in result.models)
        c = result.comparison
        floor = f"A/A noise floor {percent(c.floor)}{after}"
        return _sentence(c.verdict, c.ratio, a, b, c.margin, floor)
    if result.against:
        v = result.against
        return _sentence(
            v.verdict, v.ratio, f"the saved {v.name}", result.models[-1].artefact.name, v.floor,
            f"not interleaved: less than {v.floor:.0%} is not told apart{after}",
        )  # fmt: skip
    return None


def _sentence(verdict: Verdict, ratio: Interval, a: str, b: str, margin: float, floor: str) -> Text:
    # Too few runs have no interval.
    between = f" ({ratio.low:.3f} to {ratio.high:.3f})" if ratio.carries else ""
    takes = f"{b} takes {ratio.value:.3f} times as long as {a}{between}"
    saying = {
        "FASTER": f"{b} is {1 / ratio.value:.3g} times as fast as {a} "
        f"({1 / ratio.high:.3g} to {1 / ratio.low:.3g})",
        "SLOWER": takes,
        "EQUIVALENT": f"{takes}: the same within {margin:.0%}",
        "INCONCLUSIVE": f"{takes}: not enough to say",
    }[verdict]
    return Text.assemble((verdict, f"bold {COLOURS[verdict]}"), f"  {saying}; {floor}")


def change_line(c: ScoreChange) -> str:
    """One sentence on the accuracy of B against A."""
    shown, (low, high) = metric(c.metric), c.difference_interval
    span_ = f"{low * 100:+.2f} to {high * 100:+.2f}" if shown.unit else f"{low:+.4g} to {high:+.4g}"
    line = f"{shown.title} {shown.change(c.difference)} ({span_}) on {c.n} images"
    if c.p_value is not None:
        line += f", McNemar p = {c.p_value:.2g}"
    more = {"negative flips": c.negative_flips, "agreement": c.agreement}
    if said := [f"{name} {percent(x)}" for name, x in more.items() if x is not None]:
        line += f"; {', '.join(said)}"
    if c.lost:
        lost = ", ".join(
            f"{name} ({a} to {b} of {n})" if isinstance(a, int)
            else f"{name} ({shown.text(a)} to {shown.text(b)})"
            for name, n, a, b in c.lost[:3]
        )  # fmt: skip
        line += f"; lost most: {lost}"
    return line


def setting(result: Result) -> str:
    """What ran it, and where."""
    first = result.models[0].measurement
    facts = first.facts
    threads = facts.options.get("intra_op_num_threads") or facts.options.get("threads")
    count = f"{threads} thread{'s' if threads != 1 else ''}" if threads else "default threads"
    gpus = "".join(f", {g.name}" for g in result.environment.gpus)
    return (
        f"{facts.runtime} {facts.version}, {facts.provider}, {count}, batch {first.batch}, "
        f"{result.environment.cpu_model}{gpus}"
    )


def show(result: Result, console: Console) -> None:
    """Print the table, the verdict, the gate and the warnings."""
    console.print(setting(result), style="dim", highlight=False)
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for m in result.models:
        table.add_column(escape(m.artefact.name))
    by_model = [rows(m) for m in result.models]
    for name in dict.fromkeys(name for r in by_model for name in r):
        table.add_row(name, *(r.get(name, "") for r in by_model))
    console.print(table)
    if len(result.sweep) > 1:
        console.print(_sweep(result.sweep))
    for m in result.models:
        if m.profile:
            console.print(_profile(m))
    sentence = versus_line(result)
    if sentence is not None:
        console.print(sentence)
    if result.change:
        console.print(change_line(result.change), highlight=False, markup=False)
    for check in result.checks:
        console.print(
            Text.assemble(
                (check.outcome.upper(), f"bold {OUTCOMES[check.outcome]}"),
                f"  {check.name}: {check.message}",
            )
        )
    for note in result.notes:
        console.print(f"note: {note}", style="dim", highlight=False, markup=False)
    for m in result.models:
        prefix = f"{m.artefact.name}: " if len(result.models) > 1 else ""
        for warning in m.warnings:
            console.print(
                f"warning: {prefix}{warning}", style="yellow", highlight=False, markup=False
            )


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
        title=f"{escape(m.artefact.name)}: the costliest nodes", title_justify="left",
        show_edge=False, pad_edge=False, header_style="bold",
    )  # fmt: skip
    for name in ("node", "operator", "time"):
        table.add_column(name, overflow="fold")
    table.add_column("share", justify="right")
    for node in m.profile[:10]:
        table.add_row(
            escape(node.name), escape(node.operator), f"{node.time_us:,.1f} us", f"{node.share:.1%}"
        )
    return table


def show_selftest(found: SelfTest, console: Console) -> None:
    """Print what the self-test found."""
    console.print(
        f"clock {found.clock_ns:.0f} ns, an empty model {found.harness_us:.1f} us, "
        f"the test's model {figures(found.model_ms)} ms",
        highlight=False,
    )
    for name, c in (("A against A", found.same),
                    (f"A against A slowed by {found.planted:.0%}", found.slowed)):  # fmt: skip
        console.print(
            Text.assemble(
                f"{name}: ", (c.verdict, f"bold {COLOURS[c.verdict]}"),
                f"  {c.ratio.value:.4f} ({c.ratio.low:.4f} to {c.ratio.high:.4f}), "
                f"noise floor {c.floor:.1%}",
            )
        )  # fmt: skip
    if not found.sound:
        missed = found.slowed.verdict != "SLOWER"
        what = "a slowdown that was planted was not found" if missed else "a difference was found "
        console.print(f"{what}{'' if missed else 'where none is'}", style="red")
    if not found.quiet:
        console.print(
            f"this machine is too noisy to tell {found.planted:.0%}: close what else runs on it",
            style="yellow",
        )
