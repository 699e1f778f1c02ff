"""The logic around an engine, on a fake GPU; tests/gpu runs it on a real one."""

from __future__ import annotations

import ctypes
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.runtimes import tensorrt
from vcompress.bench.runtimes.cuda import Cuda


class FakeCudart:
    """Device memory is host memory, and every event is 1 ms after the one before."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus, self.held, self.log, self.clock = gpus, {}, [], 0.0
        self.times: dict[int, float] = {}
        self.handles = 1000

    def cudaGetErrorString(self, status: int) -> bytes:
        return b"no such thing"

    def cudaGetDeviceCount(self, out: Any) -> int:
        out._obj.value = self.gpus
        return 0

    def _alloc(self, out: Any, size: Any) -> int:
        buffer = ctypes.create_string_buffer(size.value)
        out._obj.value = ctypes.addressof(buffer)
        self.held[out._obj.value] = buffer
        return 0

    def cudaMalloc(self, out: Any, size: Any) -> int:
        return self._alloc(out, size)

    def cudaHostAlloc(self, out: Any, size: Any, flags: Any) -> int:
        return self._alloc(out, size)

    def cudaFree(self, pointer: Any) -> int:
        return 0 if self.held.pop(pointer.value, None) else 1

    cudaFreeHost = cudaFree

    def _handle(self, out: Any) -> int:
        self.handles += 1
        out._obj.value = self.handles
        return 0

    cudaStreamCreate = cudaEventCreate = _handle

    def cudaEventRecord(self, event: Any, stream: Any) -> int:
        self.clock += 1.0
        self.times[event.value] = self.clock
        self.log.append("event")
        return 0

    def cudaEventElapsedTime(self, out: Any, start: Any, end: Any) -> int:
        out._obj.value = self.times[end.value] - self.times[start.value]
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:
        ctypes.memmove(to.value, source.value, size.value)
        self.log.append("in" if kind.value == 1 else "out")
        return 0

    def cudaStreamSynchronize(self, stream: Any) -> int:
        self.log.append("wait")
        return 0

    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> int:
        self.log.append("begin")
        return 0

    def cudaStreamEndCapture(self, stream: Any, out: Any) -> int:
        self.log.append("end")
        return self._handle(out)

    def cudaGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> int:
        return self._handle(out)

    def cudaGraphLaunch(self, graph: Any, stream: Any) -> int:
        self.log.append("launch")
        return 0


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


class Dtype(Enum):
    FLOAT = 0


class Context:
    """y = 2 x, for batches of 1 to 4."""

    def __init__(self, log: list[str]) -> None:
        self.log, self.shape, self.at = log, (0, 0), {}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return 1 <= shape[0] <= 4

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.at[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        count = self.shape[0] * self.shape[1]
        x = (ctypes.c_float * count).from_address(self.at["x"])
        y = (ctypes.c_float * count).from_address(self.at["y"])
        for i in range(count):
            y[i] = 2 * x[i]
        self.log.append("run")
        if self.profiler:
            self.profiler.report_layer_time("conv", 0.3)
            self.profiler.report_layer_time("dense", 0.1)
        return True


class Engine:
    num_io_tensors = 2

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def get_tensor_name(self, i: int) -> str:
        return "xy"[i]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Dtype:
        return Dtype.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3), (2, 3), (4, 3)]

    def create_execution_context(self) -> Context:
        return Context(self.log)


@pytest.fixture
def fake() -> FakeCudart:
    return FakeCudart()


def session(fake: FakeCudart, graph: bool = False) -> tensorrt.TensorRtSession:
    class IProfiler:
        pass

    trt = SimpleNamespace(
        __name__="tensorrt", __version__="11.4.0", TensorIOMode=Mode, IProfiler=IProfiler
    )
    return tensorrt.TensorRtSession(
        trt, Cuda(fake), Path("m.engine"), object(), Engine(fake.log), graph
    )


def test_an_engine_runs_and_gives_its_outputs_by_name(fake: FakeCudart) -> None:
    with session(fake) as s:
        assert str(s.inputs[0]) == "x [x_0, 3] float32"
        x = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(s.run({"x": x})["y"], 2 * x)
        np.testing.assert_array_equal(s.run({"x": x[:1]})["y"], 2 * x[:1])
        # A larger batch needs more memory; calls that were prepared before still work.
        small = s.prepare({"x": x[:1]})
        np.testing.assert_array_equal(s.run({"x": np.tile(x, (2, 1))})["y"][3], 2 * x[1])
        small()
    assert fake.held == {}


def test_device_time_is_the_compute_alone_and_the_copies_are_told_apart(fake: FakeCudart) -> None:
    s = session(fake)
    call = s.prepare({"x": np.ones((1, 3), np.float32)})
    fake.log.clear()
    call()
    assert fake.log == ["event", "in", "event", "run", "event", "out", "event", "wait"]
    call()
    times = s.device_times_ns()
    assert times is not None
    assert times.tolist() == [1_000_000, 1_000_000]
    assert s.facts.options["copies_median_ms"] == pytest.approx(2.0)
    assert s.device_times_ns() is not None


def test_a_cuda_graph_is_captured_once_and_launched(fake: FakeCudart) -> None:
    s = session(fake, graph=True)
    call = s.prepare({"x": np.ones((1, 3), np.float32)})
    assert fake.log == ["run", "wait", "begin", "run", "end"]
    fake.log.clear()
    call()
    assert "launch" in fake.log
    assert "run" not in fake.log


def test_layers_are_profiled(fake: FakeCudart) -> None:
    nodes = session(fake).profile({"x": np.ones((1, 3), np.float32)}, runs=4)
    assert [(n.name, round(n.time_us), round(n.share, 2)) for n in nodes] == [
        ("conv", 300, 0.75), ("dense", 100, 0.25),
    ]  # fmt: skip


def test_a_shape_outside_the_profile_names_its_limits(fake: FakeCudart) -> None:
    with pytest.raises(UserError, match=r"built for, \[1, 3\] to \[4, 3\]"):
        session(fake).run({"x": np.ones((5, 3), np.float32)})


def test_an_input_that_does_not_fit_is_refused(fake: FakeCudart) -> None:
    with pytest.raises(UserError, match=r"expects x \[x_0, 3\] float32"):
        session(fake).run({"x": np.ones((1, 3), np.float64)})


def test_no_gpu_and_cuda_errors_are_the_environments_fault() -> None:
    with pytest.raises(EnvironmentLacks, match="no NVIDIA GPU"):
        Cuda(FakeCudart(gpus=0))
    cuda = Cuda(FakeCudart())
    with pytest.raises(EnvironmentLacks, match=r"cudaFree failed: no such thing \(CUDA error 1\)"):
        cuda.free(1)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        ("The engine plan file is not compatible with this version of TensorRT", 4),
        ("engine was generated on compute capability 8.9, current is 9.0", 4),
        ("magic number does not match", 2),
        ("", 2),
    ],
)
def test_an_engine_of_another_gpu_or_version_is_told_from_a_damaged_one(
    said: str, status: int
) -> None:
    error = tensorrt.refusal(Path("m.engine"), [said] if said else [], ["tensorrt 11.4"])
    assert error.status == status
