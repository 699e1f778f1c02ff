"""The licences of data and weights: given, inherited, known, or unknown."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess
from vcompress.bench.bundle.history import Licences
from vcompress.bench.errors import UserError
from vcompress.compress.bundles.licences import record, recorded
from vcompress.compress.commands._inspect import inspect
from vcompress.compress.options import Options

DIGITS: Any = SimpleNamespace(source="digits", fingerprint="d")
FOLDER: Any = SimpleNamespace(source="images", fingerprint="f")


def bundle(fingerprint: str, **licences: Any) -> Bundle:
    entry = {"stage": "finetune", "model": "m", "licences": licences}
    return Bundle(
        Path("b"), InputSpec("x", (3, 8, 8)), Preprocess((8, 8)), (), {},
        data={"fingerprint": fingerprint}, manifest={"history": [entry]},
    )  # fmt: skip


def test_what_is_given_counts_most() -> None:
    options = Options(data_licence="MIT", weights_licence="ours alone")
    made = bundle("d", data="CC0-1.0", weights="Apache-2.0")
    assert record(options, DIGITS, made, [made]) == Licences("MIT", "ours alone")


def test_those_of_the_digits_are_known_and_others_are_not() -> None:
    assert record(Options(), DIGITS) == Licences("CC-BY-4.0", "unknown")
    assert record(Options(), FOLDER) == Licences("unknown", "unknown")
    assert record(Options(), None) == Licences("unknown", "unknown")


def test_a_bundle_hands_on_those_of_its_weights_and_of_the_same_images() -> None:
    teacher = bundle("f", data="CC0-1.0", weights="BSD-3-Clause")
    student = bundle("f", data="unknown", weights="Apache-2.0")
    assert record(Options(), FOLDER, student, [teacher, student]) == Licences(
        "CC0-1.0", "Apache-2.0"
    )
    # A new student has weights of its own; other images have another licence.
    assert record(Options(), FOLDER, None, [teacher]).weights == "unknown"
    assert record(Options(), DIGITS, student, [student]).data == "CC-BY-4.0"


@pytest.mark.parametrize("licences", [{}, {"licences": None}, {"licences": {}}])
def test_a_bundle_of_before_says_unknown(licences: Any) -> None:
    assert recorded(with_entry(licences)) == Licences("unknown", "unknown")


@pytest.mark.parametrize(
    ("licences", "place"),
    [(5, ""), ([], ""), ({"data": 5}, ".data"), ({"weights": None}, ".weights")],
)
def test_licences_that_are_no_texts_are_refused(licences: Any, place: str) -> None:
    with pytest.raises(UserError, match=rf"history\[0\]\.licences{place} = .*, expected a t"):
        recorded(with_entry({"licences": licences}))


def with_entry(more: dict[str, Any]) -> Bundle:
    entry = {"stage": "s", "model": "m", **more}
    return Bundle(
        Path("b"), InputSpec("x", (3, 8, 8)), Preprocess((8, 8)), (), {},
        manifest={"history": [entry]},
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 201])
def test_a_licence_is_one_short_line(text: str) -> None:
    for name in ("data_licence", "weights_licence"):
        with pytest.raises(UserError, match="expected an SPDX identifier"):
            Options(**{name: text})


def test_inspect_shows_them(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(made / "runs" / "net")
    assert "licences    data unknown, weights unknown" in capsys.readouterr().out
    entry = Bundle.open(made / "runs" / "net").history[-1]
    assert entry.licences == Licences("unknown", "unknown")
