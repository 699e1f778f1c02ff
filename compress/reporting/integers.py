"""How many of the layers that were quantised run in integers, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vcompress.bench.bundle.history import Entry

SHOWN = 5


def integer_text(entry: Entry) -> str | None:
    """Such as "3 of 5 layers run in integers; in floating point: a (Pad stands before it)", from an
    entry of a bundle's history. None where the stage quantised nothing for ONNX Runtime."""
    export = entry.metrics.export if entry.metrics is not None else None
    found = export.get("integers") if isinstance(export, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    return _text(found)


def _text(found: Mapping[str, Any]) -> str | None:
    layers = found.get("float_layers")
    meant, integer = found.get("meant"), found.get("integer")
    counted = isinstance(meant, int) and isinstance(integer, int)
    if not counted or not isinstance(layers, Mapping):
        return None
    text = f"{integer} of {meant} layers run in integers"
    if not layers:
        return text
    named = ", ".join(f"{name} ({why})" for name, why in list(layers.items())[:SHOWN])
    more = f", and {len(layers) - SHOWN} more" if len(layers) > SHOWN else ""
    return f"{text}; in floating point: {named}{more}"


def integer_lines(history: Iterable[Entry]) -> list[str]:
    """A line for each stage that quantised."""
    found = ((entry, integer_text(entry)) for entry in history)
    return [f"{entry.stage}: {text}" for entry, text in found if text]
