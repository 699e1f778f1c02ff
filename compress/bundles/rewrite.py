"""A bundle written again, whole, with other files or another history.

The part of a report that belongs to the last stage alone, such as where a student and its teacher
disagree, is HTML in a file of its own: what it holds stays when the report is drawn again with new
numbers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vcompress.bench.bundle import Bundle, bundle, sha256
from vcompress.bench.bundle.history import Entry
from vcompress.bench.errors import UserError

from ..reporting.section import read_section

REPORT, SECTION = "report.html", "section.html"


@contextmanager
def rewritten(
    found: Bundle, names: Iterable[str], history: Sequence[Entry]
) -> Iterator[tuple[Path, str]]:
    """A folder with the files `names` of `found`, which takes its place when the block ends; with
    it the part of its report that is of its last stage alone, which is kept.

    Raises:
        UserError: the bundle was written again since it was opened.
    """
    with bundle.create(
        found.path, input=found.input, preprocess=found.preprocess, labels=found.labels,
        data=found.data, history=history, task=found.task,
    ) as folder:  # fmt: skip
        if Bundle.open(found.path).manifest != found.manifest:
            raise UserError(
                f"{found.path}: something else was written there meanwhile; it was left as it is. "
                f"Run the command again."
            )
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.plain_file(name), target)
            if sha256(target) != found.files[name].sha256:  # of what was copied, not of its source
                found.file(name)  # says what is wrong
                raise UserError(f"{found.path / name}: changed while it was copied. Try again.")
        section = report_section(found)
        if section:
            (folder / SECTION).write_text(section, encoding="utf-8")
        yield folder, section


def report_section(found: Bundle) -> str:
    """HTML of the last stage alone; empty where it has none."""
    if SECTION in found.files:
        return read_section(found.file(SECTION).read_text(encoding="utf-8", errors="replace"))
    if REPORT not in found.files:
        return ""
    # Older bundles hold it in their report only, between two comments.
    page = found.file(REPORT).read_text(encoding="utf-8", errors="replace")
    part = page.partition("<!-- of the last stage alone -->")[2].partition("<!-- up to here -->")[0]
    return read_section(part)
