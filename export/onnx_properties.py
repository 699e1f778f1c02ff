"""Properties inside an ONNX file, so that it can travel without its bundle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vcompress.bench.bundle import Preprocess
from vcompress.bench.bundle.history import Entry, Licences


def properties(
    model: str, labels: Sequence[str], preprocess: Preprocess, history: Sequence[Entry]
) -> dict[str, str]:
    """Metadata by key: the model, labels, preprocessing, licences, and the stages behind it.

    Args:
        history: entries of a bundle; of each only what was done, to which model and from which
            weights is told. Settings, dates and metrics stay in the bundle.
    """
    last = history[-1] if history else None
    licences = (last and last.licences) or Licences()
    return {
        "vcompress.model": model,
        "vcompress.labels": json.dumps(list(labels)),
        "vcompress.preprocess": json.dumps(asdict(preprocess)),
        "vcompress.licence.weights": licences.weights,
        "vcompress.licence.data": licences.data,
        "vcompress.provenance": json.dumps([_stage(entry) for entry in history]),
        "vcompress.versions": json.dumps(last.versions if last else {}),
    }


def _stage(entry: Entry) -> dict[str, Any]:
    hashes = {
        role: found.get("weights_sha256") or found.get("sha256")
        for role, found in entry.inputs.items()
    }
    told: dict[str, Any] = {"stage": entry.stage, "model": entry.model}
    if entry.seed is not None:
        told["seed"] = entry.seed
    if entry.inputs:
        told["weights_sha256"] = {role: value for role, value in hashes.items() if value}
    return told
