"""When an engine of a bundle is built again, and when not; the builder itself is a stand-in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, find_bundle, sha256
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.engine import BuildReport, Settings, rebuild
from vcompress.bench.engine.rebuild import Here, engine_for, fits, key
from vcompress.bench.errors import EnvironmentLacks, UserError

L4 = Here("NVIDIA L4", 89, {"tensorrt": "11.4.0", "tensorrt_rtx": "1.7.1"})
NAME = "engines/e.engine"


def record(library: str, version: str, gpu: str, sm: tuple[int, ...]) -> dict[str, Any]:
    flavour = library.replace("_", "-")
    settings = Settings(flavour=flavour, sm=sm, batch=(1, 2, 4))  # type: ignore[arg-type]
    build = {
        "library": library, "version": version, "gpu": gpu, "onnx_sha256": "0",
        "settings": settings.to_json(),
    }  # fmt: skip
    return {"engine": "e.engine", "onnx": "model.onnx", "build": build}


def make(folder: Path, body: dict[str, Any], onnx: bytes = b"a network") -> Bundle:
    preprocess = Preprocess(size=(8, 8))
    with bundles.create(
        folder, input=InputSpec("input", (3, 8, 8)), preprocess=preprocess, labels=("a", "b"),
        data=None, history=(),
    ) as staging:  # fmt: skip
        (staging / "model.onnx").write_bytes(onnx)
        (staging / "engines").mkdir()
        (staging / NAME).write_bytes(b"built elsewhere")
        (staging / "engines/e.json").write_text(json.dumps(body))
    return Bundle.open(folder)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings of each build that was asked for."""
    asked: list[Settings] = []

    def build(onnx: Path, out: Path, settings: Settings) -> BuildReport:
        asked.append(settings)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(f"engine {len(asked)}".encode())
        return BuildReport(
            out, out.stat().st_size, 1.0, sha256(onnx), "tensorrt", "11.4.0", "", settings, None, ""
        )

    monkeypatch.setattr(rebuild, "build_engine", build)
    return asked


def test_an_engine_for_this_very_gpu_and_version_is_taken_as_it_is(
    tmp_path: Path, built: list[Settings]
) -> None:
    bundle = make(tmp_path / "b", record("tensorrt", "11.4.0", "NVIDIA L4, SM 89", ()))
    assert engine_for(bundle, NAME, here=L4, cache=tmp_path / "c") == bundle.path / NAME
    assert built == []


@pytest.mark.parametrize(
    ("library", "version", "gpu", "sm", "good"),
    [
        ("tensorrt", "11.4.0", "NVIDIA L4, SM 89", (), True),
        ("tensorrt", "11.3.0", "NVIDIA L4, SM 89", (), False),
        ("tensorrt", "11.4.0", "NVIDIA GeForce RTX 4090, SM 89", (), False),
        ("tensorrt_rtx", "1.7.1", "", (86, 89), True),
        ("tensorrt_rtx", "1.7.1", "", (86, 120), False),
        ("tensorrt_rtx", "1.7.0", "", (86, 89), False),
    ],
)
def test_a_classic_engine_fits_one_gpu_and_an_rtx_engine_the_ones_it_was_built_for(
    library: str, version: str, gpu: str, sm: tuple[int, ...], good: bool
) -> None:
    assert fits(record(library, version, gpu, sm), L4) is good


def test_another_gpu_builds_once_with_the_recorded_settings_and_keeps_the_engine(
    tmp_path: Path, built: list[Settings]
) -> None:
    bundle = make(tmp_path / "b", record("tensorrt", "11.4.0", "NVIDIA T4, SM 75", ()))
    first = engine_for(bundle, NAME, here=L4, cache=tmp_path / "c")
    again = engine_for(bundle, NAME, here=L4, cache=tmp_path / "c")
    assert first == again
    assert first.parent == tmp_path / "c"
    assert [s.batch for s in built] == [(1, 2, 4)]
    assert built[0].flavour == "tensorrt"


def test_an_rtx_build_names_the_gpu_that_it_is_for(tmp_path: Path, built: list[Settings]) -> None:
    bundle = make(tmp_path / "b", record("tensorrt_rtx", "1.7.1", "", (120,)))
    engine_for(bundle, NAME, here=L4, cache=tmp_path / "c")
    assert (built[0].flavour, built[0].sm) == ("tensorrt-rtx", (89,))


def test_what_changes_the_engine_changes_its_name() -> None:
    settings = Settings(flavour="tensorrt")
    base = key("a", L4, settings)
    assert key("a", L4, replace(settings, timeout_s=1.0)) == base
    others = {
        key("b", L4, settings),
        key("a", replace(L4, gpu="NVIDIA T4"), settings),
        key("a", replace(L4, versions={"tensorrt": "11.5"}), settings),
        key("a", L4, replace(settings, workspace_mib=64)),
        key("a", L4, replace(settings, batch=(1, 1, 1))),
    }
    assert len(others) == 5
    assert base not in others


def test_a_damaged_engine_in_the_cache_is_built_again(
    tmp_path: Path, built: list[Settings]
) -> None:
    bundle = make(tmp_path / "b", record("tensorrt", "10.13.3", "NVIDIA L4, SM 89", ()))
    first = engine_for(bundle, NAME, here=L4, cache=tmp_path / "c")
    first.write_bytes(b"cut")
    assert engine_for(bundle, NAME, here=L4, cache=tmp_path / "c") == first
    assert first.read_bytes() == b"engine 2"


def test_the_library_that_is_here_builds_where_the_recorded_one_is_not(
    tmp_path: Path, built: list[Settings]
) -> None:
    bundle = make(tmp_path / "b", record("tensorrt", "11.4.0", "NVIDIA L4, SM 89", ()))
    here = Here("NVIDIA L4", 89, {"tensorrt_rtx": "1.7.1"})
    engine_for(bundle, NAME, here=here, cache=tmp_path / "c")
    assert built[0].flavour == "tensorrt-rtx"
    with pytest.raises(EnvironmentLacks, match="There is no TensorRT here"):
        engine_for(bundle, NAME, here=replace(here, versions={}), cache=tmp_path / "c")


def test_a_bundle_with_no_engine_is_built_from_its_onnx_file(
    tmp_path: Path, built: list[Settings]
) -> None:
    bundle = make(tmp_path / "b", record("tensorrt", "11.4.0", "NVIDIA L4, SM 89", ()))
    engine_for(bundle, here=L4, cache=tmp_path / "c")
    assert built == [Settings(flavour="tensorrt")]


def test_an_engine_with_no_record_is_refused(tmp_path: Path, built: list[Settings]) -> None:
    bundle = make(tmp_path / "b", {"engine": "e.engine"})
    with pytest.raises(UserError, match="no record that vcompress wrote"):
        engine_for(bundle, NAME, here=L4, cache=tmp_path / "c")
    assert built == []


@pytest.mark.parametrize("shapes", [[1], {"x": 5}, {"x": [1, 2, 3]}])
def test_a_record_with_settings_that_are_none_is_refused(
    tmp_path: Path, built: list[Settings], shapes: Any
) -> None:
    body = record("tensorrt", "10.13.3", "NVIDIA L4, SM 89", ())
    body["build"]["settings"]["shapes"] = shapes
    with pytest.raises(UserError, match="engine settings: shapes"):
        engine_for(make(tmp_path / "b", body), NAME, here=L4, cache=tmp_path / "c")
    assert built == []


def test_an_engine_in_a_bundle_knows_its_bundle(tmp_path: Path) -> None:
    bundle = make(tmp_path / "b", record("tensorrt", "11.4.0", "NVIDIA L4, SM 89", ()))
    found = find_bundle(bundle.path / NAME)
    assert found is not None
    assert found.path.resolve() == bundle.path.resolve()
