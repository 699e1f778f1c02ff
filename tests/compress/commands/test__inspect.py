"""`vcompress inspect`: what it shows, and bundles that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import read
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.errors import UserError
from vcompress.compress.commands._inspect import inspect
from vcompress.compress.reporting.terminal import print_history, rows


def change_history(folder: Path, **changes: Any) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["history"][0] |= changes
    content = json.dumps(manifest).encode()
    file.write_bytes(content)
    (folder / "manifest.sha256").write_bytes(seal_of(content))


def test_it_shows_what_is_in_the_bundle_and_how_it_came_to_be(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(made / "runs" / "net")
    text = capsys.readouterr().out
    bundle = Bundle.open(made / "runs" / "net")
    for part in (
        "classification, 3 classes: blue, green, red", "input [N, 3, 16, 16] float32",
        "16 x 16 RGB", "images, seed 0: train 42, val 6, test 12", "1. finetune tiny_nets:batch",
        "lr 0.02", "batch_size 8", "epochs: 3", "torch ", "files (hashes checked)",
        f"{bundle.files['model.onnx'].bytes:,} bytes  {bundle.files['model.onnx'].sha256[:16]}",
        "top-1 (95 % interval)", "median latency",
    ):  # fmt: skip
        assert part in text, part
    (row,) = rows(bundle.history)
    assert all(cell in text for cell in row)


def test_a_changed_file_is_found(work: Path) -> None:
    with (work / "runs" / "net" / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(UserError, match=r"model\.onnx: changed after it was written"):
        inspect(Path("runs/net"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seconds": "long"}, "history[0].seconds = 'long', expected a number"),
        ({"inputs": [1]}, "history[0].inputs = [1], expected a table of named values"),
        ({"inputs": {"model": 5}}, "history[0].inputs.model = 5, expected a table"),
        ({"config": 5}, "history[0].config = 5, expected a table"),
        ({"details": "x"}, "history[0].details = 'x', expected a table"),
        ({"versions": []}, "history[0].versions = [], expected a table"),
        ({"metrics": {"latency": {}}}, "the key 'history[0].metrics.latency.median_ms' is missing"),
        ({"metrics": {"test": 5}}, "history[0].metrics.test = 5, expected a table"),
        ({"metrics": 7}, "history[0].metrics = 7, expected a table"),
    ],
)
def test_a_history_that_is_not_ours_is_one_message(
    work: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change_history(work / "runs" / "net", **changes)
    with pytest.raises(UserError) as caught:
        inspect(Path("runs/net"))
    assert str(caught.value).startswith("runs/net/manifest.json: ")
    assert message in str(caught.value)
    assert capsys.readouterr().out == ""


def test_names_do_not_steer_the_terminal(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_history(work / "runs" / "net", model="[/red]\x1b[2J", details={"a": "\x1b]0;title\x07"})
    inspect(Path("runs/net"))
    text = capsys.readouterr().out
    assert "[/red]" in text
    assert "\x1b" not in text and "\x07" not in text


def test_a_path_is_no_markup(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = work / "runs" / "a[bold]b"
    (work / "runs" / "net").rename(odd)
    print_history(Bundle.open(odd))
    assert "a[bold]b" in capsys.readouterr().out


def test_a_table_without_accuracy_says_so() -> None:
    metrics = {
        "test": None, "parameters": 1_500_000, "macs": 2_000_000, "onnx_bytes": 6_000_000,
        "latency": {
            "median_ms": 1.2345, "low_ms": 1.2, "high_ms": 1.3, "batch": 1, "threads": 1,
            "steady": False, "provider": "p", "cpu": "c",
        },
    }  # fmt: skip
    history = read([{"stage": "import", "model": "m", "metrics": metrics},
                    {"stage": "x", "model": "m"}])  # fmt: skip
    assert rows(history) == [
        ("import", "m", "not measured", "1.50 M", "2.0 M", "6.00 MB", "1.23 ms (unsteady)")
    ]
