"""`bench.measure` and `bench.compare`."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcompress import bench


def test_a_file_is_measured(models: Path) -> None:
    found = bench.measure(models / "classifier.onnx", threads=1, seconds=0.3, batch=2)
    assert found.measurement.shapes == {"x": (2, 3, 32, 32)}
    assert 0 < found.interval_ms[0] <= found.median_ms <= found.interval_ms[1] < 50
    assert found.measurement.facts.provider == "CPUExecutionProvider"
    assert found.artefact.size_bytes == (models / "classifier.onnx").stat().st_size
    assert found.cold_start is None


def test_outputs_that_are_not_finite_are_named(models: Path) -> None:
    found = bench.measure(str(models / "nan.onnx"), threads=1, seconds=0.2)
    assert found.measurement.nonfinite == ("y",)


def test_two_files_are_compared_by_path_or_by_what_has_one(models: Path) -> None:
    class Holder:
        path = models / "classifier.onnx"

    found = bench.compare(models / "classifier.onnx", Holder(), threads=1, seconds=0.3)  # type: ignore[arg-type]
    assert found.comparison is not None
    assert 0.5 < found.comparison.ratio.value < 2
    assert len(found.models) == 2


def test_bad_input_is_one_message(models: Path) -> None:
    with pytest.raises(bench.UserError, match="no such file"):
        bench.measure("nowhere.onnx")
    with pytest.raises(bench.UserError, match=r"no runtime 'onxruntime'.*Did you mean"):
        bench.measure(models / "classifier.onnx", runtime="onxruntime")
