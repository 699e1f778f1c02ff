"""Finds the teacher in a bundle's history."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vcompress.bench.bundle import Bundle, is_bundle
from vcompress.bench.errors import UserError

from .store import WEIGHTS, load_network

log = logging.getLogger(__name__)


NONE = "none"
"""Given as --teacher, it says that no other network teaches."""


def inherited(bundle: Bundle, trusted_factory: str | None) -> tuple[nn.Module, str] | None:
    """The network of `original_teacher` with where it lies; None where there is none to use."""
    found = original_teacher(bundle)
    if found is None:
        return None
    try:
        return load_network(found, trusted_factory).model, str(found.path)
    except UserError as error:  # such as a factory of the user's that is not trusted here
        log.info("the teacher %s of the history is not used: %s", found.path, error)
        return None


def original_teacher(bundle: Bundle) -> Bundle | None:
    """The last teacher in the history that can still be found; None where there is none.

    It must hold the weights that were recorded, know the same classes and take the same images. It
    is looked for where it was, and beside the bundle, since a folder of runs moves as a whole. The
    log says why a recorded teacher is not used.
    """
    for entry in reversed(bundle.history):
        record = entry.inputs.get("teacher")
        if record is None or "path" not in record:
            continue
        found = _same_weights(bundle, record)
        if found is None:
            log.info("the teacher %s of %s is gone or has changed", record["path"], entry.stage)
        elif found.labels != bundle.labels or found.preprocess != bundle.preprocess:
            log.info("the teacher %s knows other classes or takes other images", found.path)
        else:
            return found
    return None


def _same_weights(bundle: Bundle, record: Mapping[str, Any]) -> Bundle | None:
    recorded = Path(str(record["path"]))
    for path in (recorded, bundle.path.resolve().parent / recorded.name):
        if not is_bundle(path):
            continue
        try:
            found = Bundle.open(path)
            if found.files[WEIGHTS].sha256 == record.get("weights_sha256"):
                found.file(WEIGHTS)  # raises where the bytes are not those of the manifest
                return found
        except (UserError, KeyError):
            continue
    return None
