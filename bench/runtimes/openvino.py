"""OpenVINO, for ONNX files and its own IR. Chosen with --runtime openvino; an extra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import onnx_file
from ..errors import EnvironmentLacks, UserError, to_install
from .session import Facts, Node, Session, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".xml", ".onnx")
DEVICES = ("cpu", "gpu", "npu")


def library() -> Any:
    """Import OpenVINO. Raises `EnvironmentLacks` where it is missing."""
    try:
        import openvino
    except ImportError as error:
        raise EnvironmentLacks(
            f"openvino cannot be imported ({error}). Install it: {to_install('openvino')}."
        ) from None
    return openvino


def open_session(
    path: Path, *, device: str = "cpu", threads: int | None = None, content: bytes | None = None
) -> OpenVinoSession:
    """Compile a model for one device.

    The precision of the file is kept: OpenVINO's own default computes float32 models in bfloat16
    where the processor can, which is another model.
    """
    if path.suffix != ".xml":  # whatever else it is called, it is read as ONNX
        onnx_file.check_external(path, onnx_file.read(path, content))
    ov = library()
    core = ov.Core()
    if device.upper() not in {d.split(".")[0] for d in core.available_devices}:
        raise EnvironmentLacks(
            f"--device {device}: OpenVINO sees {', '.join(core.available_devices)} here."
        )
    return OpenVinoSession(ov, core, path, device, threads, content)


class OpenVinoSession(Session):
    """A compiled model with one infer request."""

    thread_safe = False

    def __init__(
        self, ov: Any, core: Any, path: Path, device: str, threads: int | None,
        content: bytes | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        self._core, self._config, self._device = core, config, device.upper()
        try:
            self._model = core.read_model(str(path) if content is None else content)
            self._compiled = core.compile_model(self._model, self._device, config)
        except RuntimeError as error:
            raise UserError(
                f"{path}: OpenVINO {ov.__version__} does not load it: {_reason(error)}"
            ) from None
        self._request = self._compiled.create_infer_request()
        self.inputs = tuple(_spec(p, i) for i, p in enumerate(self._compiled.inputs))
        self.outputs = tuple(_spec(p, i) for i, p in enumerate(self._compiled.outputs))
        running = self._compiled.get_property("EXECUTION_DEVICES")
        self.facts = Facts(
            runtime="openvino", version=ov.__version__, device=device,
            provider=", ".join(map(str, running)),
            options={
                "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
                if device == "cpu" else None,
                "inference_precision": str(
                    self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
                ),
                "performance_hint": "LATENCY",
            },
        )  # fmt: skip

    @property
    def compiled(self) -> Any:
        """OpenVINO's compiled model, whose runtime graph says what runs in which type."""
        return self._compiled

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        self._check(inputs)
        fed, infer = dict(inputs), self._request.infer

        def call() -> object:
            return infer(fed, share_inputs=True, share_outputs=False)

        return call

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        for spec in self.inputs:
            array = inputs.get(spec.name)
            if array is None or str(array.dtype) != spec.dtype or not spec.takes(array.shape):
                fed = ", ".join(f"{n} {list(a.shape)} {a.dtype}" for n, a in inputs.items())
                raise UserError(
                    f"{self.path}: the model does not run on {fed}; it expects "
                    f"{', '.join(map(str, self.inputs))}."
                )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self._check(inputs)
        try:
            found = self._request.infer(dict(inputs), share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise UserError(f"{self.path}: OpenVINO does not run it: {_reason(error)}") from None
        return {spec.name: found[i] for i, spec in enumerate(self.outputs)}

    def profile(self, inputs: Mapping[str, NDArray[Any]], runs: int = 20) -> tuple[Node, ...]:
        """Layers by OpenVINO's performance counters, in a second compiled model."""
        config = self._config | {"PERF_COUNT": True}
        request = self._core.compile_model(self._model, self._device, config).create_infer_request()
        times: dict[str, float] = {}
        kinds: dict[str, tuple[str, str]] = {}
        for turn in range(runs + 5):
            request.infer(dict(inputs))
            for item in request.profiling_info if turn >= 5 else ():
                us = item.real_time.total_seconds() * 1e6 / runs
                times[item.node_name] = times.get(item.node_name, 0.0) + us
                kinds[item.node_name] = (item.node_type, item.exec_type)
        total = sum(times.values()) or 1.0
        return tuple(
            Node(name, *kinds[name], time_us=us, share=us / total)
            for name, us in sorted(times.items(), key=lambda item: -item[1])
            if us > 0
        )

    def close(self) -> None:
        self._request = self._compiled = self._model = None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def _spec(port: Any, index: int) -> TensorSpec:
    name, dtype = port.any_name if port.get_names() else f"tensor_{index}", _dtype(port)
    if port.partial_shape.rank.is_dynamic:
        return TensorSpec(name, (), dtype, ranked=False)
    shape = tuple(
        d.get_length() if d.is_static else f"{name}_{axis}"
        for axis, d in enumerate(port.partial_shape)
    )
    return TensorSpec(name, shape, dtype)


def _dtype(port: Any) -> str:
    """NumPy's name of the type, or OpenVINO's own where NumPy has none."""
    kind: str = port.element_type.get_type_name()
    if kind in ("bf16", "i4", "u4", "u1", "string", "f8e4m3", "f8e5m2"):
        return {"bf16": "bfloat16", "i4": "int4", "u4": "uint4", "string": "str"}.get(kind, kind)
    return str(port.element_type.to_dtype())
