"""One trace in the definitions of other tools, so that people can compare.

The samples are vbench's own; only the arithmetic is the other tool's. Where the other tool takes
its samples differently, a note beside the numbers says so.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import UserError, nearest
from .result import ModelResult

TOOLS = ("trtexec10", "trtexec11", "perf_test", "benchmark_app")


def restate(m: ModelResult, tool: str) -> str:
    """The lines that `tool` would print of these samples."""
    if tool not in TOOLS:
        raise UserError(f"--as {tool}: expected one of {', '.join(TOOLS)}.{nearest(tool, TOOLS)}")
    if tool.startswith("trtexec"):
        return _trtexec(m, tool)
    return {"perf_test": _perf_test, "benchmark_app": _benchmark_app}[tool](m)


def wall_seconds(m: ModelResult) -> float:
    """From the first start to the last end, gaps of an interleaved run included."""
    t = m.measurement
    return float(t.starts_ns[-1] + t.samples_ns[-1] - t.starts_ns[0]) / 1e9


def exclusive_percentile(ordered: np.ndarray, percent: float) -> float:
    """trtexec's: the sample that so many per cent lie at or below, no interpolation."""
    n = len(ordered)
    return float(ordered[max(n - 1 - int((1 - percent / 100) * n), 0)])


def _trtexec(m: ModelResult, tool: str) -> str:
    """NVIDIA/TensorRT samples/common/sampleReporting.cpp: findPercentile, findMedian.

    The definitions are the same in 10 and 11; 11 has no precision flags, so its file's types hold.
    """
    t = m.measurement
    wall = wall_seconds(m)

    def line(name: str, ns: np.ndarray) -> str:
        x = np.sort(ns) / 1e6
        return (
            f"{name}: min = {x[0]:.6g} ms, max = {x[-1]:.6g} ms, mean = {x.mean():.6g} ms, "
            f"median = {np.median(x):.6g} ms, "
            + ", ".join(
                f"percentile({p}%) = {exclusive_percentile(x, p):.6g} ms" for p in (90, 95, 99)
            )
        )

    lines = [f"Throughput: {len(t.samples_ns) / wall:.6g} qps", line("Latency", t.samples_ns)]
    if t.device_ns is not None and len(t.device_ns):
        lines.append(line("GPU Compute Time", t.device_ns))
        lines.append(f"Total GPU Compute Time: {t.device_ns.sum() / 1e9:.6g} s")
    lines.append(f"Total Host Walltime: {wall:.6g} s")
    if tool == "trtexec11":
        lines.append(f"(precision in the file: {m.artefact.precision or 'unknown'})")
    lines.append(
        "(trtexec enqueues one inference ahead and adds up H2D, compute and D2H by events; these "
        "are wall-clock times of one inference after another)"
    )
    return "\n".join(lines)


def _perf_test(m: ModelResult) -> str:
    """microsoft/onnxruntime onnxruntime/test/perftest: sorted[n * p], in seconds."""
    t = m.measurement
    x = np.sort(t.samples_ns) / 1e9
    n = len(x)
    lines = [
        f"Session creation time cost: {t.load_ms / 1e3:.6g} s",
        f"First inference time cost: {t.first_run_ms:.0f} ms",
        f"Total inference time cost: {x.sum():.6g} s",
        f"Total inference requests: {n}",
        f"Average inference time cost: {x.mean() * 1e3:.6g} ms",
        f"Total inference run time: {wall_seconds(m):.6g} s",
        f"Number of inferences per second: {n / wall_seconds(m):.6g}",
    ]
    if m.cold_start:
        lines.append(f"Peak working set size: {m.cold_start.peak_memory_bytes} bytes")
    lines += [f"Min Latency: {x[0]:.6g} s", f"Max Latency: {x[-1]:.6g} s"]
    lines += [
        f"{name} Latency: {x[int(n * p)]:.6g} s"
        for name, p in (("P50", 0.5), ("P90", 0.9), ("P95", 0.95), ("P99", 0.99), ("P999", 0.999))
    ]
    return "\n".join(lines)


def _benchmark_app(m: ModelResult) -> str:
    """openvinotoolkit/openvino benchmark_app: percentiles v[ceil(n p / 100) - 1]."""
    t = m.measurement
    x = np.sort(t.samples_ns) / 1e6
    wall = wall_seconds(m)
    return "\n".join(
        [
            f"Count:               {len(x)} iterations",
            f"Duration:            {wall * 1e3:.2f} ms",
            "Latency:",
            f"   Median:           {x[math.ceil(len(x) * 0.5) - 1]:.2f} ms",
            f"   Average:          {x.mean():.2f} ms",
            f"   Min:              {x[0]:.2f} ms",
            f"   Max:              {x[-1]:.2f} ms",
            f"Throughput:          {len(x) * t.batch / wall:.2f} FPS",
            "(as with -api sync -hint none -nireq 1)",
        ]
    )
