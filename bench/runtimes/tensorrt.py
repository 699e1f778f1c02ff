"""Native TensorRT engines: TensorRT 10.13 to 11, and TensorRT-RTX.

Only what these share is used; a test holds the calls against the recorded API of each. Device time
is the compute alone by CUDA events; the copies to and from pinned memory are in the latency and
are reported apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EnvironmentLacks, UserError
from .cuda import TO_DEVICE, TO_HOST, Cuda
from .session import Facts, Node, Session, TensorSpec
from .tensorrt_library import ENGINES, libraries

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = ENGINES
DEVICES = ("cuda",)
DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip


def library() -> Any:
    """The first TensorRT package that can be imported."""
    return libraries()[0]


def open_session(
    path: Path,
    *,
    device: str = "cuda",
    threads: int | None = None,
    cuda_graph: bool = False,
    content: bytes | None = None,
) -> TensorRtSession:
    """Load an engine.

    Raises `EnvironmentLacks` where there is no GPU or the engine was built for another GPU or
    version, `UserError` for a file that is no engine.
    """
    if threads is not None:
        raise UserError("--threads is not for TensorRT: the engine runs on the GPU.")
    packages = libraries()
    cuda = Cuda()
    plan = path.read_bytes() if content is None else content
    if not plan:
        raise UserError(f"{path} is empty. Expected a TensorRT engine.")
    messages: list[str] = []
    for trt in packages:
        runtime = trt.Runtime(_logger(trt, messages))
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            return TensorRtSession(trt, cuda, path, runtime, engine, cuda_graph)
    raise refusal(path, messages, [f"{t.__name__} {t.__version__}" for t in packages])


def refusal(path: Path, messages: list[str], tried: list[str]) -> UserError:
    """Why TensorRT does not take a file: the environment's fault or the file's."""
    said = " ".join(messages)
    text = f"{path}: {', '.join(tried)} does not load it: {said[:400] or 'it says nothing'}."
    words = ("version", "compute capability", "incompatible", "not compatible", "platform", "tag")
    if any(word in said.lower() for word in words):
        return EnvironmentLacks(
            f"{text} An engine runs on the GPU and version that it was built for: build it again "
            "from the ONNX file on this machine."
        )
    return UserError(f"{text} Is it a TensorRT engine, and whole?")


def _logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            # By name: the numbers of the severities are not promised.
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                messages.append(text)

    return Logger()


class TensorRtSession(Session):
    """An engine with one execution context on one stream."""

    thread_safe = False

    def __init__(
        self, trt: Any, cuda: Cuda, path: Path, runtime: Any, engine: Any, cuda_graph: bool
    ) -> None:
        self.path, self._trt, self._cuda, self._engine = path, trt, cuda, engine
        self._runtime = runtime  # must outlive the engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EnvironmentLacks(f"{path}: no execution context; the GPU's memory may be full.")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        specs = {name: self._spec(name) for name in names}
        is_input = {n: engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT for n in names}
        self.inputs = tuple(specs[n] for n in names if is_input[n])
        self.outputs = tuple(specs[n] for n in names if not is_input[n])
        self._stream = cuda.stream()
        self._events = [cuda.event() for _ in range(4)]
        self._device: dict[str, tuple[int, int]] = {}  # pointer and size by tensor
        self._outgrown: list[int] = []
        self._set_for: dict[str, tuple[int, ...]] | None = None
        self._pinned: list[int] = []
        self._graphs = cuda_graph
        self._compute_ns: list[int] = []
        self._copy_ns: list[int] = []
        self.facts = Facts(
            runtime=trt.__name__, version=trt.__version__, device="cuda",
            provider=f"{trt.__name__} engine", options={"cuda_graph": cuda_graph},
            includes="pinned host arrays in, pinned host arrays out",
        )  # fmt: skip

    def _spec(self, name: str) -> TensorSpec:
        kind = self._engine.get_tensor_dtype(name).name
        shape = tuple(
            int(size) if size >= 0 else f"{name}_{axis}"
            for axis, size in enumerate(self._engine.get_tensor_shape(name))
        )
        return TensorSpec(name, shape, DTYPES.get(kind, kind.lower()))

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        call, _ = self._prepared(inputs)
        return call

    def _prepared(
        self, inputs: Mapping[str, NDArray[Any]]
    ) -> tuple[Callable[[], None], dict[str, NDArray[Any]]]:
        """A timed call, and the pinned arrays that it fills."""
        self._check(inputs)
        cuda, stream, context = self._cuda, self._stream, self._context
        shapes = {name: array.shape for name, array in inputs.items()}
        sources, sinks, results = [], [], {}
        for spec in self.inputs:
            array = inputs[spec.name]
            host, pointer = cuda.pinned(array.shape, spec.dtype)
            host[...] = array
            self._pinned.append(pointer)
            self._reserve(spec.name, array.nbytes)
            sources.append((spec.name, pointer, array.nbytes))
        self._shape(shapes)
        for spec in self.outputs:
            shape = tuple(int(s) for s in context.get_tensor_shape(spec.name))
            if min(shape, default=0) < 0:
                raise UserError(
                    f"{self.path}: the shape of {spec} depends on the data; this is not measured."
                )
            host, pointer = cuda.pinned(shape, spec.dtype)
            self._pinned.append(pointer)
            size = prod(shape) * np.dtype(spec.dtype).itemsize
            self._reserve(spec.name, size)
            sinks.append((pointer, spec.name, size))
            results[spec.name] = host
        copied_in, started, ended, copied_out = self._events

        def enqueue() -> None:
            if not context.execute_async_v3(stream):
                raise UserError(f"{self.path}: execute_async_v3 failed.")

        graph = self._capture(enqueue, shapes) if self._graphs else None
        memory = self._device

        def call() -> None:
            self._ready(shapes)
            cuda.record(copied_in, stream)
            for name, source, size in sources:
                cuda.copy(memory[name][0], source, size, TO_DEVICE, stream)
            cuda.record(started, stream)
            if graph is None:
                enqueue()
            else:
                cuda.launch(graph, stream)
            cuda.record(ended, stream)
            for to, name, size in sinks:
                cuda.copy(to, memory[name][0], size, TO_HOST, stream)
            cuda.record(copied_out, stream)
            cuda.wait(stream)
            self._compute_ns.append(int(cuda.elapsed_ms(started, ended) * 1e6))
            total = int(cuda.elapsed_ms(copied_in, copied_out) * 1e6)
            self._copy_ns.append(total - self._compute_ns[-1])

        return call, results

    def _capture(self, enqueue: Callable[[], None], shapes: Mapping[str, tuple[int, ...]]) -> int:
        """A graph of the compute. The first run outside it lets the engine allocate."""
        self._ready(shapes)
        enqueue()
        self._cuda.wait(self._stream)
        return self._cuda.capture(enqueue, self._stream)

    def _ready(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Set shapes and addresses where another call has changed them."""
        if self._set_for == shapes:
            return
        self._shape(shapes)
        for name, (pointer, _) in self._device.items():
            self._context.set_tensor_address(name, pointer)
        self._set_for = dict(shapes)

    def _shape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._set_for = None
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                low, _, high = self._engine.get_tensor_profile_shape(name, 0)
                raise UserError(
                    f"{self.path}: {name} {list(shape)} is outside what the engine was built for, "
                    f"{list(low)} to {list(high)}. Give --shape or --batch within it."
                )

    def _reserve(self, name: str, size: int) -> None:
        """Device memory for a tensor, shared by the calls of the ring."""
        pointer, held = self._device.get(name, (0, -1))
        if held < size:
            if held >= 0:
                self._outgrown.append(pointer)  # a captured graph may still name it
            self._device[name] = (self._cuda.malloc(size), size)
            self._set_for = None

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None or str(array.dtype) != spec.dtype or array.ndim != len(spec.shape):
                fed = ", ".join(f"{n} {list(a.shape)} {a.dtype}" for n, a in inputs.items())
                raise UserError(
                    f"{self.path}: the engine does not run on {fed}; it expects "
                    f"{', '.join(map(str, self.inputs))}."
                )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        kept = len(self._pinned)
        call, results = self._prepared(inputs)
        call()
        self._compute_ns.pop()
        self._copy_ns.pop()
        found = {name: array.copy() for name, array in results.items()}
        while len(self._pinned) > kept:
            self._cuda.free_pinned(self._pinned.pop())
        return found

    def device_times_ns(self) -> NDArray[np.int64] | None:
        found = np.asarray(self._compute_ns, dtype=np.int64)
        if self._copy_ns:
            copies = float(np.median(self._copy_ns)) / 1e6
            options = self.facts.options | {"copies_median_ms": copies}
            self.facts = replace(self.facts, options=options)
        self._compute_ns, self._copy_ns = [], []
        return found

    def profile(self, inputs: Mapping[str, NDArray[Any]], runs: int = 20) -> tuple[Node, ...]:
        """Layers by TensorRT's own profiler."""
        trt = self._trt
        times: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer: str, ms: float) -> None:
                times[layer] = times.get(layer, 0.0) + ms * 1e3

        graphs, self._graphs = self._graphs, False  # a graph hides its layers
        call = self.prepare(inputs)
        self._graphs = graphs
        for _ in range(5):
            call()
        self._context.profiler = Profiler()
        for _ in range(runs):
            call()
        self.device_times_ns()
        total = sum(times.values()) or 1.0
        return tuple(
            Node(name, "layer", "cuda", us / runs, us / total)
            for name, us in sorted(times.items(), key=lambda item: -item[1])
        )

    def close(self) -> None:
        for pointer in self._pinned:
            self._cuda.free_pinned(pointer)
        for pointer in [*self._outgrown, *(p for p, _ in self._device.values())]:
            self._cuda.free(pointer)
        self._pinned, self._outgrown, self._device = [], [], {}
        self._context = self._engine = self._runtime = None
