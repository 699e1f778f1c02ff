"""Bundles for a device build, and what compiles it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from vcompress.bench.bundle import InputSpec, Preprocess
from vcompress.bench.bundle import bundle as bundles

PREPROCESS = Preprocess((24, 32), resize=40, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))


def convolution_model(outputs: int = 7) -> onnx.ModelProto:
    """A convolution, a pooling and a classifier: [batch, 3, 24, 32] -> [batch, outputs]."""
    rng = np.random.default_rng(0)
    conv = rng.standard_normal((8, 3, 5, 5)).astype(np.float32) / 5
    dense = rng.standard_normal((8, outputs)).astype(np.float32) * 8
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "convolution",
        [helper.make_tensor_value_info("input", 1, ["batch", 3, 24, 32])],
        [helper.make_tensor_value_info("logits", 1, ["batch", outputs])],
        [numpy_helper.from_array(conv, "w"), numpy_helper.from_array(dense, "d")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def maps_model(outputs: int = 7, classes: bool = False) -> onnx.ModelProto:
    """Logits at a stride of 2, [batch, 3, 24, 32] -> [batch, outputs, 12, 16], or their classes."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((outputs, 3, 5, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["logits"], strides=[2, 2], pads=[2, 2, 2, 2])
    ]
    result = helper.make_tensor_value_info("logits", 1, ["batch", outputs, 12, 16])
    if classes:
        nodes.append(helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0))
        result = helper.make_tensor_value_info("best", 7, ["batch", 12, 16])
    graph = helper.make_graph(
        nodes, "maps", [helper.make_tensor_value_info("input", 1, ["batch", 3, 24, 32])], [result],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="session")
def write_bundle() -> Callable[..., Path]:
    def write(path: Path, outputs: int | None = None, maps: str = "", **changes: Any) -> Path:
        told: dict[str, Any] = {
            "input": InputSpec("input", (3, 24, 32)), "preprocess": PREPROCESS,
            "labels": tuple(f"class {n}" for n in range(7)), "data": None, "history": (),
        }  # fmt: skip
        told |= changes
        with bundles.create(path, **told) as folder:
            made = convolution_model(len(told["labels"]) if outputs is None else outputs)
            made = maps_model(classes=maps == "classes") if maps else made
            onnx.save(made, str(folder / "model.onnx"))
        return path

    return write


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """Smooth colours with noise on them, like a photograph."""

    def make(width: int = 93, height: int = 71, seed: int = 0, mode: str = "RGB") -> Image.Image:
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
        noisy = (pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
        return Image.fromarray(noisy).convert(mode)

    return make


@pytest.fixture(scope="session")
def compile_and_link() -> Callable[..., Path]:
    """Compile one C or C++ source with all warnings as errors; skips where no compiler is."""

    def build(source: Path, *options: str) -> Path:
        compiler = shutil.which("gcc" if source.suffix == ".c" else "g++")
        if compiler is None:
            pytest.skip("no C and C++ compiler is installed")
        program = source.with_suffix("")
        done = subprocess.run(
            [compiler, "-Wall", "-Wextra", "-Werror", *options, str(source), "-o", str(program)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return program

    return build
