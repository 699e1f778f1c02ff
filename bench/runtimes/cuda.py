"""The few calls of the CUDA runtime that timing an engine needs, through ctypes.

A device has libcudart already; a package of bindings would have to be installed there. The names
and signatures are those of the CUDA runtime API, 12 and 13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes.util import find_library
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EnvironmentLacks

TO_DEVICE, TO_HOST = 1, 2
VERSIONS = (13, 12)


def _candidates() -> list[str]:
    found = [find_library("cudart") or ""]
    found += [f"libcudart.so.{v}" for v in VERSIONS] + [f"cudart64_{v}.dll" for v in VERSIONS]
    spec = find_spec("nvidia")  # where pip puts NVIDIA's libraries
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found += map(str, sorted(Path(folder).glob("**/libcudart.so.*"), reverse=True))
    return [f for f in found if f]


def library() -> Any:
    """Load libcudart. Raises `EnvironmentLacks` where there is none, or no GPU."""
    tried = _candidates()
    for name in tried:
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        found.cudaGetErrorString.restype = ctypes.c_char_p
        return found
    raise EnvironmentLacks(
        f"The CUDA runtime (libcudart) was not found; tried {', '.join(tried)}. Install it: pip "
        "install nvidia-cuda-runtime, or the CUDA toolkit."
    )


def has_driver() -> bool:
    """Whether the driver's library is here: without it nothing that needs CUDA is started."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


class Cuda:
    """The calls, with their error codes turned into `EnvironmentLacks`."""

    def __init__(self, lib: Any | None = None) -> None:
        self.lib = library() if lib is None else lib
        count = ctypes.c_int()
        try:
            self.check("cudaGetDeviceCount", self.lib.cudaGetDeviceCount(ctypes.byref(count)))
        except EnvironmentLacks as error:
            # Without any driver CUDA calls the driver too old.
            raise EnvironmentLacks(
                f"No NVIDIA GPU with a fitting driver was found here: {error} Run it where "
                "nvidia-smi lists a GPU."
            ) from None
        if count.value == 0:
            raise EnvironmentLacks("There is no NVIDIA GPU here (cudaGetDeviceCount gives 0).")

    def check(self, name: str, status: int) -> None:
        if status:
            raw = self.lib.cudaGetErrorString(status)
            text = raw.decode() if isinstance(raw, bytes) else str(raw)
            raise EnvironmentLacks(f"{name} failed: {text} (CUDA error {status}).")

    def call(self, name: str, *arguments: Any) -> None:
        self.check(name, getattr(self.lib, name)(*arguments))

    def _pointer(self, name: str, *arguments: Any) -> int:
        out = ctypes.c_void_p()
        self.call(name, ctypes.byref(out), *arguments)
        return out.value or 0

    def gpu(self) -> tuple[str, int]:
        """Name and compute capability of the first GPU, such as `NVIDIA L4` and 89."""
        numbers = []
        for attribute in (75, 76):  # cudaDevAttrComputeCapabilityMajor, ...Minor
            out = ctypes.c_int()
            self.call("cudaDeviceGetAttribute", ctypes.byref(out), ctypes.c_int(attribute), 0)
            numbers.append(out.value)
        # The name stands first in every version of the struct, which only ever grew.
        properties = ctypes.create_string_buffer(1 << 14)
        self.call("cudaGetDeviceProperties", properties, 0)
        name = properties.raw[:256].split(b"\0", 1)[0].decode(errors="replace")
        return name, 10 * numbers[0] + numbers[1]

    def malloc(self, size: int) -> int:
        """Device memory of at least one byte."""
        return self._pointer("cudaMalloc", ctypes.c_size_t(max(size, 1)))

    def free(self, pointer: int) -> None:
        self.call("cudaFree", ctypes.c_void_p(pointer))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> tuple[NDArray[Any], int]:
        """A page-locked host array, which the device copies from without a detour."""
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        pointer = self._pointer("cudaHostAlloc", ctypes.c_size_t(size), ctypes.c_uint(0))
        buffer = (ctypes.c_char * size).from_address(pointer)
        count = int(np.prod(shape))
        return np.frombuffer(memoryview(buffer), dtype=dtype, count=count).reshape(shape), pointer

    def free_pinned(self, pointer: int) -> None:
        self.call("cudaFreeHost", ctypes.c_void_p(pointer))

    def stream(self) -> int:
        return self._pointer("cudaStreamCreate")

    def event(self) -> int:
        return self._pointer("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        self.call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ms(self, start: int, end: int) -> float:
        out = ctypes.c_float()
        self.call(
            "cudaEventElapsedTime", ctypes.byref(out), ctypes.c_void_p(start), ctypes.c_void_p(end)
        )
        return out.value

    def copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        self.call(
            "cudaMemcpyAsync", ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size),
            ctypes.c_int(kind), ctypes.c_void_p(stream),
        )  # fmt: skip

    def wait(self, stream: int) -> None:
        self.call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def capture(self, work: Callable[[], None], stream: int) -> int:
        """Record what `work` puts on the stream as a graph that can be launched."""
        # 2: relaxed, since the runtime may allocate in other threads meanwhile.
        self.call("cudaStreamBeginCapture", ctypes.c_void_p(stream), ctypes.c_int(2))
        try:
            work()
        finally:
            graph = self._pointer_last("cudaStreamEndCapture", ctypes.c_void_p(stream))
        out = ctypes.c_void_p()
        self.call(
            "cudaGraphInstantiateWithFlags", ctypes.byref(out), ctypes.c_void_p(graph),
            ctypes.c_ulonglong(0),
        )  # fmt: skip
        return out.value or 0

    def _pointer_last(self, name: str, *arguments: Any) -> int:
        out = ctypes.c_void_p()
        self.call(name, *arguments, ctypes.byref(out))
        return out.value or 0

    def launch(self, graph: int, stream: int) -> None:
        self.call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))
