"""PyTorch: a bundle rebuilt as a module, eager or compiled. Not on a device: it needs torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import Bundle
from ..errors import EnvironmentLacks, UserError, to_install
from .session import Facts, Node, Session, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = ("",)
DEVICES = ("cpu", "cuda")
# By name and not by an import statement: bench is below compress and is installed without it.
STORE = "vcompress.compress.bundles.store"


def library() -> Any:
    """Import PyTorch. Raises `EnvironmentLacks` where it is missing."""
    try:
        import torch
    except ImportError as error:
        raise EnvironmentLacks(
            f"torch cannot be imported ({error}). Install it: {to_install('train')}; or measure "
            "the bundle's model.onnx."
        ) from None
    return torch


def open_session(
    path: Path, *, device: str = "cpu", threads: int | None = None, compile: bool = False,
    trust: str | None = None, content: bytes | None = None,
) -> TorchSession:  # fmt: skip
    """Rebuild a bundle as a module. `threads` is torch.set_num_threads, for the whole process;
    `trust` names the user's own code that the bundle may run. `content` is refused."""
    if content is not None:
        raise UserError(
            f"{path}: torch runs a bundle's folder and opens no model file. Choose onnxruntime or "
            f"openvino."
        )
    torch = library()
    try:
        store = import_module(STORE)
    except ImportError as error:
        raise EnvironmentLacks(
            f"The module is rebuilt by vcompress.compress, which cannot be imported ({error}). "
            f"Install it: {to_install('train')}."
        ) from None
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacks(
            "--device cuda: torch sees no GPU (torch.cuda.is_available() is false). Look at the "
            "driver, or measure with --device cpu."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    bundle = Bundle.open(path)
    model = store.load_network(bundle, trust).model
    return TorchSession(torch, path, bundle, model, device, compile)


class TorchSession(Session):
    """A module in eval mode under inference_mode."""

    thread_safe = False

    def __init__(
        self, torch: Any, path: Path, bundle: Bundle, model: Any, device: str, compile: bool
    ) -> None:
        self.path, self._torch, self._device = path, torch, device
        model = model.to(device).eval()
        self._model = torch.compile(model) if compile else model
        dtype = bundle.input.dtype
        self.inputs = (TensorSpec(bundle.input.name, ("batch", *bundle.input.shape), dtype),)
        self.outputs = (TensorSpec("output", ("batch", len(bundle.labels)), dtype),)
        self.facts = Facts(
            runtime="torch", version=torch.__version__, device=device,
            provider="compiled" if compile else "eager",
            options={
                "threads": torch.get_num_threads(), "compile": compile,
                "parallel_backend": torch.__config__.parallel_info().splitlines()[0].strip(),
            },
        )  # fmt: skip

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        tensor = self._tensor(inputs)
        model, device, mode = self._model, self._device, self._torch.inference_mode

        def call() -> object:
            with mode():
                # .cpu() waits for the device, so the copy back is in the time.
                return model(tensor.to(device)).cpu().numpy()

        return call

    def _tensor(self, inputs: Mapping[str, NDArray[Any]]) -> Any:
        spec = self.inputs[0]
        if set(inputs) != {spec.name}:
            raise UserError(f"{self.path} takes {spec}; got {', '.join(inputs)}.")
        array = inputs[spec.name]
        if str(array.dtype) != spec.dtype or array.shape[1:] != spec.shape[1:]:
            raise UserError(f"{self.path} takes {spec}; got {list(array.shape)} {array.dtype}.")
        return self._torch.from_numpy(array.copy())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        output: Any = self.prepare(inputs)()
        return {"output": output}

    def profile(self, inputs: Mapping[str, NDArray[Any]], runs: int = 20) -> tuple[Node, ...]:
        """Operators by torch.profiler, their own time without what they call."""
        call = self.prepare(inputs)
        for _ in range(5):
            call()
        with self._torch.profiler.profile() as found:
            for _ in range(runs):
                call()
        cuda = self._device == "cuda"
        times = {
            e.key: float(e.self_device_time_total if cuda else e.self_cpu_time_total) / runs
            for e in found.key_averages()
        }
        total = sum(times.values()) or 1.0
        return tuple(
            Node(name, name.removeprefix("aten::"), self._device, us, us / total)
            for name, us in sorted(times.items(), key=lambda item: -item[1])
            if us > 0
        )
