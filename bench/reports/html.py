"""A result as one HTML page that needs no network."""

from __future__ import annotations

import json

import numpy as np

from ..tasks.metrics import Metric
from ..tasks.task import Part
from ..text import document, escape
from ..timing.compare import Comparison
from . import svg, terminal
from .result import ModelResult, Result

STYLE = """
:root{color-scheme:light dark;--ink:#1f2937;--dim:#6b7280;--line:#e5e7eb;--page:#fff;--card:#f9fafb}
@media(prefers-color-scheme:dark){:root{--ink:#e5e7eb;--dim:#9ca3af;--line:#374151;--page:#111827;
--card:#1f2937}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:1180px;
margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .5rem}.dim{color:var(--dim)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem 1.2rem .3rem 0;border-bottom:1px solid var(--line);
vertical-align:top}th{font-weight:600}
.verdict{font-size:1.1rem;padding:.7rem 1rem;border-radius:8px;
background:var(--card);border-left:6px solid var(--mark);margin:1rem 0}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:8px;padding:.6rem}
figcaption{font-weight:600;font-size:.92rem;padding:0 .3rem .3rem}
svg{width:100%;height:auto;display:block}svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
.grid{stroke:var(--line)}.swatch{display:inline-block;width:.8em;height:.8em;border-radius:2px;
margin-right:.4em}ul{padding-left:1.2rem}.bar{height:.85em;border-radius:2px;display:inline-block}
.pass{color:#059669}.fail{color:#dc2626}.inconclusive{color:#b45309}
details{margin-top:1.5rem}pre{white-space:pre-wrap;word-break:break-all;font-size:12px}
"""
MARKS = {
    "FASTER": "#059669", "SLOWER": "#dc2626", "EQUIVALENT": "#0891b2", "INCONCLUSIVE": "#d97706",
}  # fmt: skip


def page(result: Result) -> str:
    """The whole page."""
    names = [m.artefact.name for m in result.models]
    title = " against ".join(reversed(names)) if len(names) == 2 else names[0]
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(terminal.setting(result))}<br>{escape(result.when)}, vbench '
        f"{escape(result.version)}, <code>{escape(' '.join(result.command))}</code></p>",
        _verdict(result), _table(result), _gate(result), _warnings(result),
        f'<h2>Latency</h2><div class="plots">{_latency(result)}</div>',
        _sweep(result), _parts(result), _profile(result), _environment(result),
    ]  # fmt: skip
    return document(f"vbench: {title}", STYLE, "".join(body))


def _verdict(result: Result) -> str:
    sentence = terminal.versus_line(result)
    versus = result.comparison or result.against
    text = ""
    if sentence is not None and versus is not None:
        text = (
            f'<div class="verdict" style="--mark:{MARKS[versus.verdict]}">'
            f"{escape(sentence.plain)}</div>"
        )
    if result.change:
        text += f"<p>{escape(terminal.change_line(result.change))}</p>"
    return text


def _table(result: Result) -> str:
    by_model = [terminal.rows(m) for m in result.models]
    head = "".join(
        f'<th><span class="swatch" style="background:{svg.COLOURS[i]}"></span>'
        f"{escape(m.artefact.name)}</th>"
        for i, m in enumerate(result.models)
    )
    lines = [
        f"<tr><td>{escape(row)}</td>"
        + "".join(f"<td>{escape(terminal.bare(r.get(row, '')))}</td>" for r in by_model)
        + "</tr>"
        for row in dict.fromkeys(name for r in by_model for name in r)
    ]
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _gate(result: Result) -> str:
    if not result.checks:
        return ""
    lines = "".join(
        f'<tr><td>{escape(c.name)}</td><td class="{c.outcome}">{c.outcome}</td>'
        f"<td>{escape(c.message)}</td></tr>"
        for c in result.checks
    )
    return f"<h2>Gate</h2><table>{lines}</table>"


def _warnings(result: Result) -> str:
    lines = [
        f"<li>{escape(m.artefact.name)}: {escape(w)}</li>"
        for m in result.models
        for w in m.warnings
    ] + [f'<li class="dim">{escape(note)}</li>' for note in result.notes]
    return f"<h2>Mind</h2><ul>{''.join(lines)}</ul>" if lines else ""


def _figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _latency(result: Result) -> str:
    figures = []
    both = [m.measurement for m in result.models]
    # Models of much different speed would squeeze each other into one bar.
    together = max(m.median_ms for m in both) < 2 * min(m.median_ms for m in both)
    groups = [list(range(len(both)))] if together else [[i] for i in range(len(both))]
    for group in groups:
        named = ", ".join(result.models[i].artefact.name for i in group)
        figures.append(_figure(f"How often: {named}", _histogram(result, group)))
    for group in groups:
        named = ", ".join(result.models[i].artefact.name for i in group)
        figures.append(_figure(f"In the order they ran: {named}", _series(result, group)))
    if result.comparison:
        figures.append(
            _figure(
                "How far each ABBA quad lies from the ratio, and A/A from 1",
                _ratios(result.comparison),
            )
        )
    return "".join(figures)


def _reach(result: Result, group: list[int]) -> tuple[float, float]:
    """Where the samples lie, the farthest half per cent of the slow ones left out of the view."""
    all_ms = np.concatenate([result.models[i].measurement.samples_ns for i in group]) / 1e6
    high = float(np.quantile(all_ms, 0.995))
    low = float(all_ms.min())
    return low, high + 0.05 * (high - low)


def _histogram(result: Result, group: list[int]) -> str:
    low, high = _reach(result, group)
    edges = np.linspace(low, high, 61)
    shares, beyond = [], 0
    for i in group:
        ms = result.models[i].measurement.samples_ns / 1e6
        shares.append(np.histogram(ms, edges)[0] / len(ms))
        beyond += int((ms > high).sum())
    label = "latency, ms" + (f" ({beyond} runs lie further right)" if beyond else "")
    top = max(float(s.max()) for s in shares)
    plot = svg.Plot((low, high), (0, top * 1.05), label, "share of runs", "histogram", True)
    for i, share in zip(group, shares, strict=True):
        plot.bars(edges, share, svg.COLOURS[i])
        plot.down(result.models[i].measurement.median_ms, svg.COLOURS[i])
    return plot.text()


def _series(result: Result, group: list[int], most: int = 3000) -> str:
    low, high = _reach(result, group)
    ends = [float(result.models[i].measurement.starts_ns[-1]) / 1e9 for i in group]
    plot = svg.Plot((0, max(ends)), (low, high), "time since the first run, s", "ms", "series")
    for i in group:
        m = result.models[i].measurement
        pick = np.linspace(0, len(m.samples_ns) - 1, min(most, len(m.samples_ns))).astype(int)
        ms = m.samples_ns[pick] / 1e6
        inside = ms <= high
        plot.dots(m.starts_ns[pick][inside] / 1e9, ms[inside], svg.COLOURS[i], 1.2)
        plot.across(m.median_ms, svg.COLOURS[i])
    return plot.text()


def _ratios(c: Comparison) -> str:
    """Both kinds of quads as a deviation from what they are expected at, on one scale."""
    pairs = (c.blocks.ratios() / c.ratio.value - 1) * 100
    again = (c.floor_blocks.ratios() - 1) * 100
    low, high = ((edge / c.ratio.value - 1) * 100 for edge in (c.ratio.low, c.ratio.high))
    everything = np.concatenate([pairs, again, [low, high, -c.margin * 100, c.margin * 100]])
    reach = float(np.abs(everything).max()) * 1.08
    plot = svg.Plot(
        (0.5, max(len(pairs), len(again)) + 0.5), (-reach, reach),
        f"quad; orange: B/A about {c.ratio.value:.4g}, grey: A/A about 1", "deviation, %",
        "paired ratios",
    )  # fmt: skip
    plot.band(low, high, svg.COLOURS[1])
    plot.across(0.0, svg.COLOURS[1])
    plot.dots(np.arange(1, len(again) + 1), again, "#6b7280", 3)
    plot.dots(np.arange(1, len(pairs) + 1), pairs, svg.COLOURS[1], 3)
    return plot.text()


def _sweep(result: Result) -> str:
    if len(result.sweep) < 2:
        return ""
    lines = "".join(
        f"<tr><td>{m.measurement.batch}</td><td>{terminal.figures(m.measurement.median_ms)} ms</td>"
        f"<td>{terminal.figures(m.measurement.median_ms / m.measurement.batch)} ms</td></tr>"
        for m in result.sweep
    )
    return (
        "<h2>Batch sizes</h2><table><tr><th>batch</th><th>latency, median</th>"
        f"<th>per image</th></tr>{lines}</table>"
    )


def _parts(result: Result, most: int = 40) -> str:
    """The score of each class, label or output, with a bar."""
    scores = [(m.artefact.name, m.accuracy) for m in result.models if m.accuracy]
    if not scores:
        return ""
    first, last = scores[0][1], scores[-1][1]
    shown = first.metric
    order = [i for i, part in enumerate(first.parts) if part.n]
    if len(order) > most:
        worst = -1 if shown.higher_is_better else 1
        order = sorted(order, key=lambda i: -worst * last.parts[i].value)[:most]
    # Shares have a whole to be drawn against; other numbers have the largest of them.
    largest = max((s.parts[i].value for _, s in scores for i in order), default=0.0)
    scale = 1.0 if shown.unit else largest or 1.0
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in scores)
    lines = []
    for i in order:
        cells = "".join(
            f'<td><span class="bar" style="width:{s.parts[i].value / scale * 120:.0f}px;'
            f'background:{svg.COLOURS[k]}"></span> {_part(shown, s.parts[i])}</td>'
            if s.parts[i].n
            else "<td></td>"  # it is neither there nor named, which is nothing to score
            for k, (_, s) in enumerate(scores)
        )
        lines.append(f"<tr><td>{escape(first.parts[i].name)}</td>{cells}</tr>")
    which = f", the {most} worst" if len(order) == most else ""
    kind, title = shown.parts, shown.of_one or shown.title
    return (
        f"<h2>{escape(title)} by {kind}{which}</h2><table><tr><th>{kind}</th>{head}</tr>"
        f"{''.join(lines)}</table>"
    )


def _part(shown: Metric, part: Part) -> str:
    text = f"{part.value:.1%}" if shown.unit else shown.text(part.value)
    span = ""
    if part.low == part.low:  # NaN where the task has no interval for a part
        low_high = (
            f"{part.low:.0%} to {part.high:.0%}" if shown.unit else shown.span(part.low, part.high)
        )
        span = f"({low_high}), "
    return f'{text} <span class="dim">{span}{escape(part.note)}</span>'


def _profile(result: Result) -> str:
    text = ""
    for m in result.models:
        if m.profile:
            lines = "".join(
                f"<tr><td>{escape(n.name)}</td><td>{escape(n.operator)}</td>"
                f"<td>{n.time_us:,.1f} us</td><td>{n.share:.1%}</td></tr>"
                for n in m.profile[:10]
            )
            text += f"<h2>{escape(m.artefact.name)}: the costliest nodes</h2><table>{lines}</table>"
    return text


def _environment(result: Result) -> str:
    from .json import as_dict

    found = as_dict(result)
    shown = {
        "environment": found["environment"],
        "models": [_facts(m, d) for m, d in zip(result.models, found["models"], strict=True)],
    }
    text = escape(json.dumps(shown, indent=1))
    return f"<details><summary>Everything else</summary><pre>{text}</pre></details>"


def _facts(m: ModelResult, found: dict[str, object]) -> dict[str, object]:
    kept = ("artefact", "runtime", "workload", "warmup", "cold_start", "noise", "latency_ms")
    return {k: found[k] for k in kept} | {"runs": len(m.measurement.samples_ns)}
