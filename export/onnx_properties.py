"""What an ONNX file says about itself in its own properties, so that it can travel alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vcompress.bench.bundle import Preprocess

UNKNOWN = "unknown"


def properties(
    model: str, labels: Sequence[str], preprocess: Preprocess, history: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Metadata by key: the model, labels, preprocessing, licences, and the stages behind it.

    Args:
        history: entries of a bundle; of each only what was done, to which model and from which
            weights is told. Settings, dates and metrics stay in the bundle.
    """
    last = history[-1] if history else {}
    licences = last.get("licences")
    known = licences if isinstance(licences, Mapping) else {}
    return {
        "vcompress.model": model,
        "vcompress.labels": json.dumps(list(labels)),
        "vcompress.preprocess": json.dumps(asdict(preprocess)),
        "vcompress.licence.weights": str(known.get("weights", UNKNOWN)),
        "vcompress.licence.data": str(known.get("data", UNKNOWN)),
        "vcompress.provenance": json.dumps([_stage(entry) for entry in history]),
        "vcompress.versions": json.dumps(last.get("versions", {})),
    }


def _stage(entry: Mapping[str, Any]) -> dict[str, Any]:
    told = {key: entry[key] for key in ("stage", "model", "seed") if key in entry}
    inputs = entry.get("inputs")
    if isinstance(inputs, Mapping):
        hashes = {
            role: found.get("weights_sha256") or found.get("sha256")
            for role, found in inputs.items()
            if isinstance(found, Mapping)
        }
        told["weights_sha256"] = {role: value for role, value in hashes.items() if value}
    return told
