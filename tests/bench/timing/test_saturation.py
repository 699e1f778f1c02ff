"""Files of int8 weights on x86 machines without VNNI."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vcompress.bench import onnx_file
from vcompress.bench.cli import main
from vcompress.bench.run import apart, job
from vcompress.bench.timing import saturation

OLD = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2 fma avx512f\n"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2", True),
        ("x86_64", "avx2 avx512f avx512bw", True),
        ("x86_64", "avx2 avx512f avx512_vnni", False),
        ("AMD64", "avx2 avx_vnni", False),
        ("x86_64", "avx2 amx_int8", False),
        ("aarch64", "", False),
    ],
)
def test_only_x86_without_vnni_saturates(machine: str, flags: str, expected: bool) -> None:
    assert saturation.saturates(machine, f"processor\t: 0\nflags\t\t: {flags}\n") is expected


def test_nothing_is_claimed_where_the_flags_are_not_known() -> None:
    assert saturation.saturates("x86_64", "model name : something") is False


def quantised_file(path: Path, reach: int, activations: type = np.uint8) -> Path:
    """x -> QuantizeLinear -> DequantizeLinear -> Conv with an int8 weight that goes to `reach`."""
    weight = np.full((4, 3, 1, 1), -reach, np.int8)
    constants = [
        numpy_helper.from_array(np.float32(0.1), "step"),
        numpy_helper.from_array(np.zeros((), activations), "zero"),
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.zeros((), np.int8), "weight_zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weight", "step", "weight_zero"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4, 4, 4])], constants,
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(path),
    )
    return path


def test_a_file_is_exposed_by_its_integers_and_not_by_its_name(tmp_path: Path) -> None:
    def exposed(*options: object) -> bool:
        return saturation.is_exposed(
            onnx_file.read(quantised_file(tmp_path / "m.onnx", *options))  # type: ignore[arg-type]
        )

    assert exposed(127)
    assert exposed(65)
    assert not exposed(63)
    assert not exposed(127, np.int8)
    assert onnx_file.read(tmp_path / "m.onnx").int8_reach == 127


def test_vbench_says_it_once_and_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saturation, "saturates", lambda: True)
    monkeypatch.setattr(apart, "run", job.run)  # in this process, where that is so
    files = [str(quantised_file(tmp_path / f"{n}.onnx", r)) for n, r in (("a", 127), ("b", 60))]
    assert saturation.note(files[1]) is None
    command = [files[0], "--seconds", "0.1", "--no-cold-start"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert " ".join(shown.split()).count("--weight-bits 7") == 1
    monkeypatch.setattr(saturation, "saturates", lambda: False)
    assert main(command) == 0
    assert "--weight-bits" not in capsys.readouterr().out
