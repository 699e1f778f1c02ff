"""Every kind of input that an ONNX file can have, with values of known results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.inputs import from_file, resolve_shapes, synthetic

FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, [None])


def file(path: Path, node: Any, into: Any, out: Any, opset: int = 21) -> Path:
    graph = helper.make_graph([node], "g", [into], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, str(path))
    return path


def cast(path: Path, kind: int, shape: Any) -> Path:
    into = helper.make_tensor_value_info("x", kind, shape)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    return file(path, helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), into, out)


def test_a_number_goes_in_and_comes_out(tmp_path: Path) -> None:
    with open_session(cast(tmp_path / "m.onnx", TensorProto.INT64, [])) as session:
        feed = synthetic(session.inputs, resolve_shapes(session.inputs))
        assert session.run(feed.ring[0])["y"] == feed.ring[0]["x"]
        session.prepare(feed.ring[1])()


def test_an_unknown_rank_is_told_from_no_dimensions(tmp_path: Path) -> None:
    with open_session(cast(tmp_path / "m.onnx", TensorProto.FLOAT, None)) as session:
        (spec,) = session.inputs
        assert (spec.ranked, str(spec)) == (False, "x [any shape] float32")
        feed = synthetic(session.inputs, resolve_shapes(session.inputs, 1, {"x": (2, 3)}))
        assert np.array_equal(session.run(feed.ring[0])["y"], feed.ring[0]["x"])


def test_a_sequence_takes_an_array_whose_first_axis_numbers_its_elements(tmp_path: Path) -> None:
    into = helper.make_value_info("s", helper.make_sequence_type_proto(FLOATS))
    node = helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])
    with open_session(file(tmp_path / "m.onnx", node, into, out)) as session:
        assert str(session.inputs[0]) == "s [any shape] sequence of float32"
        given = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.savez(tmp_path / "in.npz", s=given)
        feed = from_file(tmp_path / "in.npz", session.inputs)
        assert session.run(feed.ring[0])["y"].tolist() == [0, 1, 2, 3, 4, 5]
        shapes = resolve_shapes(session.inputs, 1, {"s": (2, 3)})
        assert session.run(synthetic(session.inputs, shapes).ring[0])["y"].shape == (6,)


def test_an_optional_input_is_given(tmp_path: Path) -> None:
    into = helper.make_value_info("o", helper.make_optional_type_proto(FLOATS))
    node = helper.make_node("OptionalHasElement", ["o"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.BOOL, [])
    with open_session(file(tmp_path / "m.onnx", node, into, out)) as session:
        shapes = resolve_shapes(session.inputs, 1, {"o": (3,)})
        assert bool(session.run(synthetic(session.inputs, shapes).ring[0])["y"])


def test_texts_are_read_from_a_file(tmp_path: Path) -> None:
    kind = TensorProto.STRING
    into, out = (helper.make_tensor_value_info(n, kind, [2]) for n in "xy")
    path = file(tmp_path / "m.onnx", helper.make_node("Identity", ["x"], ["y"]), into, out)
    with open_session(path) as session:
        np.savez(tmp_path / "in.npz", x=np.array(["cat", "Katze"]))
        feed = from_file(tmp_path / "in.npz", session.inputs)
        assert session.run(feed.ring[0])["y"].tolist() == ["cat", "Katze"]
        with pytest.raises(UserError, match=r"cannot be filled with random values.*--inputs"):
            synthetic(session.inputs, {"x": (2,)})


@pytest.mark.parametrize(
    ("kind", "given", "right"),
    [
        (TensorProto.BFLOAT16, np.array([1, -2.5, 3.140625, 0.1], np.float32),
         [1, -2.5, 3.140625, 0.10009765625]),
        (TensorProto.INT4, np.array([-8, 7, -1], np.int8), [-8, 7, -1]),
        (TensorProto.UINT4, np.array([15, 0, 9], np.uint8), [15, 0, 9]),
        (TensorProto.FLOAT8E4M3FN, np.array([0x38, 0xC0], np.uint8), [1, -2]),
    ],
)  # fmt: skip
def test_types_that_numpy_lacks_are_read_from_a_file(
    tmp_path: Path, kind: int, given: np.ndarray, right: list[float]
) -> None:
    with open_session(cast(tmp_path / "m.onnx", kind, [len(given)])) as session:
        np.savez(tmp_path / "in.npz", x=given)
        feed = from_file(tmp_path / "in.npz", session.inputs)
        assert session.run(feed.ring[0])["y"].tolist() == right
        np.savez(tmp_path / "in.npz", x=np.zeros(len(given), np.int64))
        with pytest.raises(UserError, match="is int64; the model takes x"):
            from_file(tmp_path / "in.npz", session.inputs)


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.INT4])
def test_types_that_numpy_lacks_are_drawn(tmp_path: Path, kind: int) -> None:
    with open_session(cast(tmp_path / "m.onnx", kind, [101])) as session:
        feed = synthetic(session.inputs, resolve_shapes(session.inputs))
        found = np.stack([session.run(arrays)["y"] for arrays in feed.ring])
    if kind == TensorProto.INT4:
        assert set(found.ravel()) == {0, 1}
    else:
        assert abs(found.std() - 1) < 0.05
