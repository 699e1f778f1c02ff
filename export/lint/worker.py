"""The process that reads a file for `lint`: `python -m vcompress.export.lint.worker`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vcompress.bench.apart import say, serve
from vcompress.bench.engine.settings import Settings

from .lint import Looked, look


def _work(request: dict[str, Any]) -> dict[str, Any]:
    build = None if request["build"] is None else Settings.from_json(request["build"])
    found = look(Path(request["path"]), request["target"], build, lambda part: say(**_plain(part)))
    return {**_plain(found), "whole": True}


def _plain(found: Looked) -> dict[str, Any]:
    return {"findings": [asdict(f) for f in found.findings], "buildable": found.buildable}


if __name__ == "__main__":
    sys.exit(serve(_work))
