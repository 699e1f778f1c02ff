"""ONNX Runtime: CPU, CUDA and TensorRT execution providers. None falls back to another."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import onnx_file
from ..bundle.atomic import temporary_folder
from ..errors import EnvironmentLacks, UserError
from .session import Facts, Node, Session, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".onnx", ".ort")
# The asked one first; the CPU provider is always there for what a GPU has no kernel for, and
# every node that it takes is reported.
PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
DEVICES = tuple(PROVIDERS)
DTYPES = {
    "float": "float32", "float16": "float16", "double": "float64", "bool": "bool",
    "string": "str", "bfloat16": "bfloat16", "int4": "int4", "uint4": "uint4",
    **{name: name for name in ("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz")},
    **{f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_CODES = {name: code for code, name in onnx_file.DTYPES.items()}
_HELD_AS_BITS = ("bfloat16", "int4", "uint4", "float8e4m3fn", "float8e4m3fnuz", "float8e5m2",
                 "float8e5m2fnuz")  # fmt: skip


def open_session(
    path: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    io_binding: bool = False,
    optimize: bool = True,
    check: bool = True,
    content: bytes | None = None,
) -> OnnxRuntimeSession:
    """Open an ONNX model.

    `threads` is ONNX Runtime's `intra_op_num_threads`; None leaves its default, one for each
    physical core. `io_binding` keeps inputs and outputs on the device, so the copies are not in
    the time. `optimize` False turns graph optimisation off. `check` reads the file first for
    external data outside the model's folder.

    Raises `EnvironmentLacks` where the device's provider is missing, `UserError` for a file that
    is no model.
    """
    unranked: tuple[str, ...] = ()
    if check and path.suffix != ".ort":  # whatever else it is called, it is read as ONNX
        facts = onnx_file.read(path, content)
        onnx_file.check_external(path, facts)
        unranked = facts.unranked
    ort = library()
    providers = _providers(ort, device)
    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = (
        4  # what it logs goes past Python to the terminal; errors are raised
    )
    if device != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return OnnxRuntimeSession(ort, path, options, providers, device, io_binding, unranked, content)


def library() -> Any:
    """Import ONNX Runtime. Raises `EnvironmentLacks` where it is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentLacks(
            f"onnxruntime cannot be imported ({error}). Install it: pip install onnxruntime, or "
            "onnxruntime-gpu for CUDA (never both)."
        ) from None
    return onnxruntime


def _providers(ort: Any, device: str) -> list[str]:
    known = ort.get_available_providers()
    wanted = PROVIDERS[device][0]
    if wanted not in known:
        raise EnvironmentLacks(
            f"--device {device} needs {wanted}; this onnxruntime {ort.__version__} has "
            f"{', '.join(known)}. Install onnxruntime-gpu in place of onnxruntime, or measure "
            "with --device cpu."
        )
    return [p for p in PROVIDERS[device] if p in known]


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its code, on one line."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


class OnnxRuntimeSession(Session):
    """A model in ONNX Runtime."""

    def __init__(
        self, ort: Any, path: Path, options: Any, providers: list[str], device: str,
        io_binding: bool, unranked: Sequence[str] = (), content: bytes | None = None,
    ) -> None:  # fmt: skip
        self.path, self._ort, self._io_binding = path, ort, io_binding
        self._options = options
        self._providers = providers
        try:
            # enable_fallback=0: by default a failing provider is replaced with a printed line.
            self._session = ort.InferenceSession(
                str(path) if content is None else content,
                options,
                providers=providers,
                enable_fallback=0,
            )
        except Exception as error:
            # onnxruntime has no common class for its errors.
            raise UserError(
                f"{path}: onnxruntime {ort.__version__} does not load it: {_reason(error)[:600]}"
            ) from None
        running = self._session.get_providers()
        if running[0] != providers[0]:
            raise EnvironmentLacks(
                f"--device {device} was asked for and onnxruntime would run on {running[0]}: "
                f"{providers[0]} did not start. Look at its libraries (CUDA, cuDNN, TensorRT) and "
                "at the driver, or measure with --device cpu."
            )
        self.inputs = tuple(_spec(i, unranked) for i in self._session.get_inputs())
        self.outputs = tuple(_spec(o, unranked) for o in self._session.get_outputs())
        self._odd = {s.name: s for s in self.inputs if s.sequence or s.dtype in _HELD_AS_BITS}
        self._names = [o.name for o in self.outputs]
        self.facts = Facts(
            runtime="onnxruntime", version=ort.__version__, device=device, provider=running[0],
            options={
                "intra_op_num_threads": options.intra_op_num_threads,
                "inter_op_num_threads": options.inter_op_num_threads,
                "graph_optimization_level": str(options.graph_optimization_level).split(".")[-1],
                "execution_mode": str(options.execution_mode).split(".")[-1],
                "io_binding": io_binding,
            },
            fallback=self._fallen_back(),
            includes="device arrays in, device arrays out (IO binding)" if io_binding
            else "host arrays in, host arrays out",
        )  # fmt: skip

    def _fallen_back(self) -> tuple[str, ...]:
        if self._providers[0] == "CPUExecutionProvider":
            return ()
        if not hasattr(self._session, "get_provider_graph_assignment_info"):
            return ("unknown: onnxruntime tells from version 1.24 on",)
        return tuple(
            f"{node.op_type} {node.name} on {part.ep_name}"
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name != self._providers[0]
            for node in part.get_nodes()
        )

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        if self._io_binding:
            return self._bind(inputs)
        # The model is run once by whoever measures, which checks shapes and types.
        return partial(self._session.run, self._names, self._fed(inputs))

    def _fed(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """As ONNX Runtime takes them: a list for a sequence, and bits with the type they mean.
        What is made of an array shares its memory, so the array must live as long."""
        fed: dict[str, Any] = dict(inputs)
        for name, spec in self._odd.items():
            if spec.sequence:
                fed[name] = list(inputs[name])
            else:
                fed[name] = self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                    inputs[name], _CODES[spec.dtype]
                )
        return fed

    def _bind(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        if self._odd:
            raise UserError(
                f"{self.path}: --io-binding takes tensors of NumPy's types; the model takes "
                f"{', '.join(map(str, self.inputs))}. Omit --io-binding."
            )
        on = "cpu" if self.facts.device == "cpu" else "cuda"
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, self._ort.OrtValue.ortvalue_from_numpy(array, on, 0))
        for name in self._names:
            binding.bind_output(name, on)
        run, wait = self._session.run_with_iobinding, binding.synchronize_outputs

        def call() -> None:
            run(binding)
            wait()

        return call

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            outputs = self._session.run(self._names, self._fed(inputs))
        except Exception as error:
            fed = ", ".join(f"{n} {list(a.shape)} {a.dtype}" for n, a in inputs.items())
            raise UserError(
                f"{self.path}: the model does not run on {fed}; it expects "
                f"{', '.join(map(str, self.inputs))}. onnxruntime says: {_reason(error)[:400]} "
                "Give another --shape, or values that it takes with --inputs FILE.npz."
            ) from None
        return dict(zip(self._names, outputs, strict=True))

    def profile(self, inputs: Mapping[str, NDArray[Any]], runs: int = 20) -> tuple[Node, ...]:
        """Nodes after graph optimisation, by ONNX Runtime's own profiler, in a second session."""
        with temporary_folder() as folder:
            options = self._ort.SessionOptions()
            options.intra_op_num_threads = self._options.intra_op_num_threads
            options.graph_optimization_level = self._options.graph_optimization_level
            options.log_severity_level = 4
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
            session = self._ort.InferenceSession(
                str(self.path), options, providers=self._providers, enable_fallback=0
            )
            fed = self._fed(inputs)
            for _ in range(runs + 5):
                session.run(self._names, fed)
            events = json.loads(Path(session.end_profiling()).read_text())
        return _nodes(events, runs)

    def close(self) -> None:
        self._session = None


def _spec(item: Any, unranked: Sequence[str]) -> TensorSpec:
    whole = item.type.removeprefix("optional(")
    sequence = whole.startswith("seq(")
    kind = whole.removeprefix("seq(").removeprefix("tensor(").rstrip(")")
    dtype = DTYPES.get(kind, item.type)
    if sequence or item.name in unranked:
        return TensorSpec(item.name, (), dtype, ranked=False, sequence=sequence)
    shape = tuple(
        size if isinstance(size, int) else (size or f"{item.name}_{axis}")
        for axis, size in enumerate(item.shape or ())
    )
    return TensorSpec(item.name, shape, dtype)


def _nodes(events: list[dict[str, Any]], runs: int) -> tuple[Node, ...]:
    """The last `runs` times of each node; the earlier ones are warm-up."""
    times: dict[str, list[float]] = defaultdict(list)
    about: dict[str, tuple[str, str]] = {}
    for event in events:
        args = event.get("args") or {}
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        times[name].append(float(event["dur"]))
        about[name] = (args.get("op_name", "?"), args.get("provider", "?"))
    mean = {name: sum(t[-runs:]) / max(len(t[-runs:]), 1) for name, t in times.items()}
    total = sum(mean.values()) or 1.0
    return tuple(
        Node(name, *about[name], time_us=us, share=us / total)
        for name, us in sorted(mean.items(), key=lambda item: -item[1])
    )
