"""A bundle written again, whole, with other files or another history."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import Bundle, bundle

from ..reporting.page import section_of

REPORT = "report.html"


@contextmanager
def rewritten(
    found: Bundle, names: Iterable[str], history: tuple[Mapping[str, Any], ...]
) -> Iterator[tuple[Path, str]]:
    """A folder with the files `names` of `found`, which takes its place when the block ends; with
    it the part of its report that is of its last stage alone."""
    with bundle.create(
        found.path, input=found.input, preprocess=found.preprocess, labels=found.labels,
        data=found.data, history=history, task=found.task,
    ) as folder:  # fmt: skip
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.file(name), target)
        yield folder, report_section(found)


def report_section(found: Bundle) -> str:
    """HTML of the last stage alone, from the bundle's report."""
    if REPORT not in found.files:
        return ""
    return section_of(found.file(REPORT).read_text(encoding="utf-8"))
