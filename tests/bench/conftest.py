"""Tiny ONNX models, made once, and sessions of known behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vcompress.bench.runtimes.session import Facts, Session, TensorSpec

rng = np.random.default_rng(0)


def save(path: Path, nodes: list[Any], inputs: Any, outputs: Any, weights: dict[str, Any]) -> Path:
    graph = helper.make_graph(
        nodes, "tiny", inputs, outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: classifier.onnx [batch, 3, 32, 32] -> [batch, 10], fixed.onnx with a batch of 4,
    two_inputs.onnx (int64 and bool), half.onnx (float16), image.onnx with free height and width,
    nan.onnx whose output is not finite."""
    folder = tmp_path_factory.mktemp("models")
    conv = (rng.standard_normal((8, 3, 3, 3)) / 5).astype(np.float32)
    dense = (rng.standard_normal((8, 10)) / 3).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "d"], ["logits"], name="dense"),
    ]
    weights = {"w": conv, "d": dense}
    for name, batch in (("classifier", "batch"), ("fixed", 4)):
        save(
            folder / f"{name}.onnx", nodes, [value("x", [batch, 3, 32, 32])],
            [value("logits", [batch, 10])], weights,
        )  # fmt: skip
    save(
        folder / "image.onnx", nodes, [value("x", ["batch", 3, "height", "width"])],
        [value("logits", ["batch", 10])], weights,
    )  # fmt: skip
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    save(
        folder / "half.onnx", nodes, [value("x", ["batch", 3, 32, 32], TensorProto.FLOAT16)],
        [value("logits", ["batch", 10], TensorProto.FLOAT16)], half,
    )  # fmt: skip
    save(
        folder / "two_inputs.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "axes"], ["u"]),
            helper.make_node("Mul", ["rows", "u"], ["y"]),
        ],
        [value("ids", ["batch", 6], TensorProto.INT64), value("mask", ["batch", 6], 9)],
        [value("y", ["batch", 6, 4])],
        {"table": dense[:4, :4].copy(), "axes": np.array([2])},
    )
    save(
        folder / "nan.onnx", [helper.make_node("Div", ["x", "zero"], ["y"])],
        [value("x", ["batch", 10])], [value("y", ["batch", 10])],
        {"zero": np.zeros(1, np.float32)},
    )  # fmt: skip
    return folder


class Busy(Session):
    """A model that computes for a known time and gives class scores."""

    def __init__(self, wait_us: float = 100.0, output: Any = None) -> None:
        self.path = Path("busy.onnx")
        self.inputs = (TensorSpec("x", ("batch", 2), "float32"),)
        self.outputs = (TensorSpec("y", ("batch", 3), "float32"),)
        self.facts = Facts("fake", "1", "cpu", "fake")
        self._wait_ns, self._output, self.calls = int(wait_us * 1e3), output, 0

    def prepare(self, inputs: Mapping[str, Any]) -> Callable[[], object]:
        wait, clock = self._wait_ns, perf_counter_ns

        def call() -> None:
            self.calls += 1
            end = clock() + wait
            while clock() < end:
                pass

        return call

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.prepare(inputs)()
        if self._output is not None:
            return {"y": self._output}
        return {"y": np.zeros((len(inputs["x"]), 3), np.float32)}


@pytest.fixture
def busy() -> type[Busy]:
    return Busy


@pytest.fixture
def whole_bundle(models: Path) -> Callable[..., Any]:
    """Writes a small whole bundle, its golden outputs computed by ONNX Runtime."""
    import shutil

    from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create
    from vcompress.bench.bundle.history import Entry
    from vcompress.bench.runtimes import open_session

    def make(path: Path, model: str = "classifier", seed: int = 0) -> Bundle:
        images = np.random.default_rng(seed).standard_normal((4, 3, 32, 32))
        with create(
            path, input=InputSpec("x", (3, 32, 32)), preprocess=Preprocess((32, 32)),
            labels=tuple("abcdefghij"), data=None,
            history=(Entry("import", "tiny", started="2026-01-01T00:00:00"),),
        ) as folder:  # fmt: skip
            shutil.copyfile(models / f"{model}.onnx", folder / "model.onnx")
            with open_session(folder / "model.onnx") as session:
                inputs = images.astype(session.inputs[0].dtype)
                (outputs,) = session.run({"x": inputs}).values()
            np.savez(folder / "golden.npz", input=inputs, **{"output.logits": outputs})
            (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 5)
            (folder / "notes").mkdir()
            (folder / "notes" / "card.txt").write_text(f"a model, seed {seed}\n")
        return Bundle.open(path)

    return make
