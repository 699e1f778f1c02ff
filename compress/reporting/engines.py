"""The engines of a bundle, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vcompress.bench.text import escape

HEADS = (
    "engine", "library", "precision", "size", "build", "int8 layers", "expanded",
)  # fmt: skip


def rows(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Engine, library, size, seconds, int8 share and expanded weights, as text for a table."""
    found: list[tuple[str, ...]] = []
    for record in records:
        build, layers, proof = record["build"], record["layers"], record["proof"]
        if layers is None:
            share, expanded = "not known", "not known"
        else:
            share = f"{layers['low_precision_layers']} of {layers['compute_layers']}"
            expanded = str(len(layers["expanded_at_run_time"]))
        if proof is not None and proof["quantised_nodes"]:
            share += f" ({proof['low_precision_nodes']}/{proof['quantised_nodes']} quantised)"
        found.append(
            (
                record["engine"], f"{build['library']} {build['version']}", record["precision"],
                f"{build['size_bytes'] / 1e6:.1f} MB", f"{build['seconds']:.1f} s", share, expanded,
            )
        )  # fmt: skip
    return found


def engine_section(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the engines and, for each, its layers; nothing where there are none."""
    if not records:
        return []
    heads = "".join(
        f'<th class="left">{escape(h)}</th>' if h in ("engine", "precision") else f"<th>{h}</th>"
        for h in HEADS
        if h != "library"
    )
    lines = []
    for engine, library, precision, *numbers in rows(records):
        cells = "".join(f"<td>{escape(text)}</td>" for text in numbers)
        lines.append(
            f'<tr><td class="left">{escape(engine)}<small>{escape(library)}</small></td>'
            f'<td class="left">{escape(precision)}</td>{cells}</tr>'
        )
    note = (
        "From the builder's own list of layers: which of them run in int8, and of how many weights "
        "the integers are expanded each time. No engine was run for this table, and its size is no "
        "measure of its precision."
    )
    return [
        "<h2>Engines</h2>",
        f'<div class="wide"><table><tr>{heads}</tr>{"".join(lines)}</table></div>',
        f'<p class="soft"><small>{escape(note)}</small></p>',
        *map(_layers, records),
    ]


def _layers(record: Mapping[str, Any]) -> str:
    layers, proof, build = record["layers"], record["proof"], record["build"]
    if layers is None:
        text = f"no layer report: {build['layers_missing']}"
        return f"<details><summary>{escape(record['engine'])}: {escape(text)}</summary></details>"
    missed = [f"{node}: {what}" for node, what in (proof or {}).get("missed", [])]
    missed += [f"{node}: its weights are expanded" for node in (proof or {}).get("expanded", [])]
    kinds = ", ".join(f"{n} {kind}" for kind, n in layers["by_precision"].items())
    heads = "".join(f'<th class="left">{h}</th>' for h in ("layer", "inputs", "weights", "nodes"))
    body = "".join(_layer(layer) for layer in layers["layers"] if layer["onnx"])
    return (
        f"<details><summary>{escape(record['engine'])}: convolutions and matrix products in "
        f"{escape(kinds)}"
        + (f"; {len(missed)} not as the file asks" if missed else "")
        + "</summary>"
        + "".join(f'<p class="soft">{escape(text)}</p>' for text in missed)
        + f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div></details>'
    )


def _layer(layer: Mapping[str, Any]) -> str:
    cells = (
        layer["kind"], ", ".join(layer["inputs"]),
        ", ".join(dict.fromkeys(layer["constants"])), ", ".join(layer["onnx"]),
    )  # fmt: skip
    return "<tr>" + "".join(f'<td class="left">{escape(c)}</td>' for c in cells) + "</tr>"
