from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vcompress.bench import onnx_file
from vcompress.bench.errors import UserError


def test_the_file_is_read_as_the_onnx_package_reads_it(models: Path) -> None:
    found = onnx_file.read(models / "classifier.onnx")
    truth = onnx.load(str(models / "classifier.onnx"))
    assert found.opsets == {"ai.onnx": 17}
    assert found.ir_version == truth.ir_version
    assert sum(found.operators.values()) == len(truth.graph.node) == 5
    assert found.weight_bytes == {"float32": 4 * (8 * 3 * 3 * 3 + 8 * 10)}
    assert found.precision == "float32"
    assert onnx_file.read(models / "half.onnx").precision == "float16"


@pytest.mark.parametrize("make", [onnx_file.identity_model, onnx_file.chain_model])
def test_the_models_written_here_pass_the_onnx_checker(make: object) -> None:
    assert callable(make)
    model = onnx.load_from_string(make())
    onnx.checker.check_model(model, full_check=True)


def test_a_precision_counts_elements_and_not_bytes(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", 1, [30])],
        [numpy_helper.from_array(np.ones(30, np.float32), "a"),
         numpy_helper.from_array(np.ones(100, np.int8), "b")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), str(tmp_path / "m.onnx"))
    found = onnx_file.read(tmp_path / "m.onnx")
    assert found.weight_bytes == {"float32": 120, "int8": 100}
    assert found.precision == "int8"


def external(folder: Path, location: str) -> Path:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["secret"], ["y"])], "g", [],
        [helper.make_tensor_value_info("y", 1, [4])], [tensor],
    )  # fmt: skip
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", ""])
def test_external_data_outside_the_models_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = external(folder, location)
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(path, onnx_file.read(path))


def test_external_data_behind_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    path = external(folder, "weights.bin")
    with pytest.raises(UserError, match="outside the model's folder"):
        onnx_file.check_external(path, onnx_file.read(path))


def test_external_data_that_is_missing_is_named(tmp_path: Path) -> None:
    path = external(tmp_path, "weights.bin")
    with pytest.raises(UserError, match=r"'weights.bin', which is missing"):
        onnx_file.check_external(path, onnx_file.read(path))
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    assert onnx_file.check_external(path, onnx_file.read(path)) == (tmp_path / "weights.bin",)


def test_six_hundred_mutated_files_are_read_or_refused_with_one_error(models: Path) -> None:
    data = (models / "classifier.onnx").read_bytes()
    rng = np.random.default_rng(0)
    target = models / "mutated.onnx"
    refused = 0
    for _ in range(600):
        changed = bytearray(data[: int(rng.integers(1, len(data) + 1))])
        for at in rng.integers(0, len(changed), size=4):
            changed[at] = int(rng.integers(0, 256))
        target.write_bytes(changed)
        try:
            onnx_file.read(target)
        except UserError:
            refused += 1
    assert refused > 300
    target.unlink()
