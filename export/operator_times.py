"""What takes the time in a file, operator by operator, by ONNX Runtime's own profile."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from vcompress.bench.bundle.atomic import temporary_folder

RUNS = 30
_KIN = {
    "FusedConv": "Conv", "QGemm": "Gemm", "FusedGemm": "Gemm", "FusedMatMul": "MatMul",
    "MatMulIntegerToFloat": "MatMul", "DynamicQuantizeMatMul": "MatMul", "ConvInteger": "Conv",
    "MatMulInteger": "MatMul", "ReorderInput": "layout", "ReorderOutput": "layout",
    "Transpose": "layout",
}  # fmt: skip
"""Kernels of an operator that have names of their own, and those that only move values."""


def family(operator: str) -> str:
    """The operator that a kernel stands for: `QLinearConv` is a Conv."""
    return _KIN.get(operator, operator.removeprefix("QLinear"))


def operator_times(
    file: Path, feed: Mapping[str, Any], *, threads: int = 1, runs: int = RUNS
) -> dict[str, float]:
    """Kernel -> milliseconds of one run on the CPU, summed over its nodes, the medians of `runs`.

    Args:
        feed: arrays by the names of the inputs.
    """
    with temporary_folder() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            nodes[event["name"], event["args"]["op_name"]].append(event["dur"] / 1e3)
    found: dict[str, float] = defaultdict(float)
    for (_, operator), times in nodes.items():
        found[operator] += statistics.median(times)
    return dict(found)


def costs_more(
    base: Path, file: Path, feed: Mapping[str, Any], *, threads: int = 1
) -> dict[str, float]:
    """Operator -> milliseconds by which `file` spends more on it than `base`, the most first."""
    more: dict[str, float] = defaultdict(float)
    for path, sign in ((file, 1.0), (base, -1.0)):
        for operator, ms in operator_times(path, feed, threads=threads).items():
            more[family(operator)] += sign * ms
    found = {name: ms for name, ms in more.items() if ms > 0}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
