"""A bundle written again: its files, its history, and what its report says of the last stage."""

from __future__ import annotations

from pathlib import Path

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create
from vcompress.bench.bundle.history import Entry
from vcompress.compress.bundles.rewrite import REPORT, SECTION, report_section, rewritten

PART = "<h2>Where they disagree</h2><div>é</div>"


def write(path: Path, **texts: str) -> Bundle:
    with create(
        path, input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)), labels=("a",),
        data=None, history=(Entry("s", "m"),), task="odd",
    ) as folder:  # fmt: skip
        for name, text in {"model.onnx": "model", **texts}.items():
            (folder / name).write_text(text, encoding="utf-8")
    return Bundle.open(path)


def again(found: Bundle) -> Bundle:
    names = [name for name in found.files if name != REPORT]
    with rewritten(found, names, (*found.history, Entry("t", "m"))) as (folder, section):
        (folder / REPORT).write_text(f"new {section}", encoding="utf-8")
    return Bundle.open(found.path)


def test_files_and_task_stay_and_the_history_is_the_one_given(tmp_path: Path) -> None:
    made = again(write(tmp_path / "b"))
    assert set(made.files) == {"model.onnx", REPORT}
    assert (made.task, made.history) == ("odd", (Entry("s", "m"), Entry("t", "m")))
    assert made.file(REPORT).read_text() == "new "


def test_the_part_of_the_last_stage_is_a_file_that_stays(tmp_path: Path) -> None:
    found = write(tmp_path / "b", **{REPORT: "old", SECTION: PART})
    for _ in range(2):
        found = again(found)
        assert found.file(SECTION).read_text(encoding="utf-8") == PART
        assert found.file(REPORT).read_text(encoding="utf-8") == f"new {PART}"


def test_an_older_bundle_holds_the_part_in_its_report_and_gets_the_file(tmp_path: Path) -> None:
    page = f"<p>head<!-- of the last stage alone -->{PART}<!-- up to here --><h2>Stages</h2>"
    found = write(tmp_path / "b", **{REPORT: page})
    assert report_section(found) == PART
    made = again(found)
    assert made.file(SECTION).read_text(encoding="utf-8") == report_section(made) == PART


def test_a_script_in_the_part_of_a_bundle_is_not_carried_over(
    tmp_path: Path,
) -> None:
    hostile = PART + "<script>alert(1)</script><img src=x onerror=alert(2)>"
    made = again(write(tmp_path / "b", **{REPORT: "old", SECTION: hostile}))
    for name in (SECTION, REPORT):
        text = made.file(name).read_text(encoding="utf-8")
        assert PART in text and "<script" not in text and "onerror" not in text


def test_a_report_without_the_part_and_no_report_have_none(tmp_path: Path) -> None:
    assert report_section(write(tmp_path / "b", **{REPORT: "<p>page"})) == ""
    assert report_section(write(tmp_path / "c")) == ""
