"""The time of several files, in turn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

WARM = 5
"""Number of rounds that are not counted."""


def interleaved(
    paths: dict[str, Path], image: Any, rounds: int, seconds: float = 0.0
) -> dict[str, list[float]]:
    """Milliseconds of one image `[1, C, H, W]` in ONNX Runtime, one thread, all files in turn,
    forth and back; at least so many rounds and seconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    opened = {
        name: onnxruntime.InferenceSession(str(p), options, providers=["CPUExecutionProvider"])
        for name, p in paths.items()
    }
    times: dict[str, list[float]] = {name: [] for name in paths}
    turn, end = 0, time.monotonic() + seconds
    while time.monotonic() < end or turn < rounds + WARM:
        for name in list(opened) if turn % 2 else list(opened)[::-1]:
            started = time.perf_counter()
            opened[name].run(None, {"input": image})
            if turn >= WARM:
                times[name].append((time.perf_counter() - started) * 1e3)
        turn += 1
    return times
