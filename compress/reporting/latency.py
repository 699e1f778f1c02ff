"""A latency in words: the number, and the runtime that it was measured in."""

from __future__ import annotations

from vcompress.bench.bundle.history import Latency

_TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}


def title(runtime: str) -> str:
    """A runtime's own name, for its name in `bench/runtimes`."""
    return _TITLES.get(runtime, runtime)


def measured_in(latency: Latency) -> str:
    """Title of the runtime."""
    return title(latency.runtime)


def missed(latency: Latency) -> str | None:
    """Title of the runtime that the network was quantised for, where it was not measured there."""
    ships_in = latency.ships_in
    return title(ships_in) if ships_in and title(ships_in) != measured_in(latency) else None


def remarks(latency: Latency) -> list[str]:
    """What must be known with the number; nothing for a steady one in ONNX Runtime."""
    found = [] if latency.steady else ["unsteady"]
    if other := missed(latency):
        found.append(f"in {measured_in(latency)}, not in {other}")
    elif latency.runtime != "onnxruntime":
        found.append(f"in {measured_in(latency)}")
    return found


def latency_text(latency: Latency | None) -> str:
    """The median with its remarks."""
    if latency is None:
        return "not measured"
    said = ", ".join(remarks(latency))
    return f"{latency.median_ms:.3g} ms" + (f" ({said})" if said else "")


def across(base: Latency, latency: Latency) -> str:
    """Which runtimes two latencies are of; empty where it is one."""
    one, other = measured_in(base), measured_in(latency)
    return "" if one == other else f"{other} against {one}"
