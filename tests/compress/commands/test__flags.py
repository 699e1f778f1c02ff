"""A command shows some of a shared dataclass's fields as its flags."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import pytest
import tyro

from vcompress.bench.errors import UserError
from vcompress.compress.commands._flags import only
from vcompress.compress.options import Options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command with two of the shared options."""

    common: Annotated[Options, only(Options, "seed", data="Only here.")]


def parsed(*args: str) -> Options:
    return tyro.cli(Command, args=args).common


def test_the_fields_that_are_named_are_flags_and_the_others_keep_their_defaults() -> None:
    found = parsed("--data", "digits", "--seed", "7")
    assert isinstance(found, Options)
    assert dataclasses.asdict(found) == dataclasses.asdict(Options(data="digits", seed=7))
    with pytest.raises(SystemExit):
        parsed("--erase", "0.5")


def test_a_flag_has_the_help_of_its_field_or_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    text = capsys.readouterr().out
    assert "Random seed for the split" in text
    assert "Only here." in text and "Data set:" not in text
    assert "--erase" not in text


def test_the_checks_of_the_dataclass_hold() -> None:
    with pytest.raises(UserError, match="seed = -1: it must be 0 or more"):
        parsed("--seed", "-1")
    assert [f.type for f in dataclasses.fields(Options) if f.name == "erase"] == [
        "Annotated[float, share()]"
    ]
