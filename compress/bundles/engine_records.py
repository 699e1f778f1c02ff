"""The records of a bundle's engines, `engines/*.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError

from ..reporting.engines import engine_section

FOLDER = "engines"


FORMAT = "vcompress-engine"


SCHEMA_VERSION = 1


def read_engines(bundle: Bundle) -> list[dict[str, Any]]:
    """The records of a bundle's engines, `engines/*.json`; their hashes are checked.

    Raises:
        UserError: one was changed, or is no such record.
    """
    names = [n for n in bundle.files if n.startswith(f"{FOLDER}/") and n.endswith(".json")]
    return [_read(bundle.file(name)) for name in sorted(names)]


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        good = record["format"] == FORMAT and record["schema_version"] == SCHEMA_VERSION
        texts = (record["engine"], record["onnx"], record["build"]["onnx_sha256"])
        good = good and all(isinstance(text, str) for text in texts)
        engine_section([record] if good else [])  # whether it holds what is shown of it
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{file}: not a record of an engine that vcompress wrote.")
    return dict(record)
