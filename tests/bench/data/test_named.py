"""A record opens what the user has named, or what lies in the working folder; nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.data.named import NotNamed
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset, open_recorded


def recorded(source: str, root: str | None = None, bundle: str = "runs/net") -> Any:
    return open_recorded({"source": source, "root": root}, "classification", None, bundle)


@pytest.fixture
def elsewhere(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Images in a place that nobody has named, and another working folder."""
    folder = image_folder(red=12, green=12)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return folder


@pytest.mark.parametrize("relative", [False, True])
def test_a_record_of_a_stranger_opens_no_folder_of_the_user(
    elsewhere: Path, relative: bool
) -> None:
    source = "../images" if relative else str(elsewhere)
    with pytest.raises(NotNamed, match=f"not named on this machine.* give --data {source}"):
        recorded(source)
    assert len(open_dataset(source).classes) == 2  # from now on it is the user's
    for again in ("../images", str(elsewhere), f"{elsewhere}/../images"):
        assert recorded(again).classes == ("green", "red")


def test_what_lies_in_the_working_folder_or_in_the_bundle_is_opened(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recorded(str(elsewhere), bundle=str(tmp_path)).classes == ("green", "red")
    (tmp_path / "work" / "link").symlink_to(elsewhere)  # which the user has made
    assert recorded("link").classes == ("green", "red")
    with pytest.raises(NotNamed):
        recorded("link/../images")  # beside where the link leads
    monkeypatch.chdir(tmp_path)
    assert recorded("images").classes == ("green", "red")


@pytest.mark.parametrize("source", ["/", "/proc/self", "//evil/share", "..", "a/../../b"])
def test_other_places_are_not_looked_at(
    elsewhere: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("vcompress.bench.tasks.load", looked)
    with pytest.raises(NotNamed):
        recorded(source)


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "\ud800"])
def test_a_name_that_is_none_is_one_message(elsewhere: Path, source: str) -> None:
    with pytest.raises(UserError):
        recorded(source)


@pytest.mark.parametrize("name", ["MNIST", "Caltech101", "INaturalist", "CIFAR10"])
@pytest.mark.parametrize("place", ["made", "../made"])
def test_a_record_makes_no_folder(elsewhere: Path, tmp_path: Path, name: str, place: str) -> None:
    with pytest.raises(UserError):
        recorded(f"torchvision:{name}", place)
    assert not list(tmp_path.rglob("made"))


def test_where_nothing_can_be_remembered_the_data_are_opened_all_the_same(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/self/fdinfo/none")
    assert len(open_dataset(str(elsewhere)).classes) == 2
    with pytest.raises(NotNamed):
        recorded(str(elsewhere))
