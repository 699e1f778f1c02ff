"""The builder's own process: `python -m vcompress.bench.engine.worker`.

Only what TensorRT 10.13 to 11.4 and TensorRT-RTX share is used, with flags by their names:
the numbers moved. A test holds the calls against the recorded API of each version.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..apart import serve
from ..bundle.atomic import staged_file
from ..errors import EnvironmentLacks, UserError
from ..runtimes.tensorrt_library import FLAVOURS, is_rtx, libraries, package_of
from .advice import refused
from .layers import HEADER, LayersUnreadable, parse
from .settings import Settings


def _work(request: Mapping[str, Any]) -> dict[str, Any]:
    settings = Settings.from_json(request["settings"])
    trt = _library(settings)
    messages: list[tuple[str, str]] = []
    gpu = gpu_name()
    cache = Path(request["timing_cache"]) if request["timing_cache"] else None
    if cache is not None and is_rtx(trt) and not gpu:
        text = "nothing is timed without a GPU; the timing cache was left alone"
        messages.append(("WARNING", text))
        cache = None
    plan = build(trt, Path(request["path"]), settings, messages, cache)
    Path(request["out"]).write_bytes(plan)
    layers, missing = None, "a classic TensorRT builder does not log its layers"
    if is_rtx(trt):
        try:
            text = next(t for _, t in messages if t.startswith(HEADER))
            layers, missing = parse(text, trt.__version__).to_json(), ""
        except StopIteration:
            missing = "the builder logged no layers"
        except LayersUnreadable as error:
            missing = str(error)
    return {
        "library": trt.__name__,
        "version": trt.__version__,
        "gpu": gpu,
        "layers": layers,
        "layers_missing": missing,
        "warnings": sorted({" ".join(t.split())[:300] for s, t in messages if s == "WARNING"}),
    }


def _library(settings: Settings) -> Any:
    """The package that shall build.

    Raises:
        EnvironmentLacks: it is not installed.
    """
    names = FLAVOURS if settings.flavour is None else (package_of(settings.flavour),)
    found = libraries(names)
    if settings.flavour is None and settings.sm:  # only TensorRT-RTX builds for other GPUs
        found = [trt for trt in found if is_rtx(trt)] or found
    return found[0]


def gpu_name() -> str:
    """Name and compute capability of the first GPU, such as `NVIDIA L4, SM 89`; "" without one."""
    from ..runtimes.cuda import Cuda

    try:
        name, number = Cuda().gpu()
    except EnvironmentLacks:
        return ""
    return f"{name}, SM {number}"


def build(
    trt: Any,
    onnx_path: Path,
    settings: Settings,
    messages: list[tuple[str, str]],
    timing_cache: Path | None = None,
) -> bytes:
    """The serialised engine. `messages` gains what the builder says, with its severity's name.

    Raises:
        EnvironmentLacks: the builder does not start.
        UserError: it refuses the file or the settings.
    """
    builder = _builder(trt, _logger(trt, messages))
    network = builder.create_network(_strongly_typed(trt))
    logger = builder.logger
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(onnx_path)):
        raise refused(onnx_path, _parser_errors(parser) or _errors(messages))
    if network.num_inputs == 0 or network.num_outputs == 0:
        raise UserError(
            f"{onnx_path}: TensorRT's parser finds no inputs or outputs in it. Is it an ONNX "
            "model, and whole?"
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * 2**20)
    if settings.optimisation_level is not None:
        config.builder_optimization_level = settings.optimisation_level
    _set_targets(trt, config, settings.sm)
    _set_shapes(builder, network, config, settings, onnx_path)
    cached = _set_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refused(onnx_path, _errors(messages))
    if cached is not None and timing_cache is not None:
        with staged_file(timing_cache) as stream:
            stream.write(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            # Thousands of VERBOSE lines come by; of those only the layers are read.
            if severity.name != "VERBOSE" or text.startswith(HEADER):
                messages.append((severity.name, text))

    return Logger()


def _builder(trt: Any, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # its factory gave nothing: no GPU, or no driver
        raise EnvironmentLacks(
            f"{trt.__name__} {trt.__version__} cannot build here: it needs an NVIDIA GPU and its "
            "driver. TensorRT-RTX builds without one: pip install 'tensorrt-rtx>=1.7'."
        ) from error


def _strongly_typed(trt: Any) -> int:
    """The flag's bit is 1 in TensorRT 10 and 0 in 11 and RTX: always by its name."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parser_errors(parser: Any) -> list[str]:
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = (
            f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_name() else ""
        )
        found.append(where + error.desc())
    return found


def _errors(messages: list[tuple[str, str]]) -> list[str]:
    return [text for severity, text in messages if severity in ("ERROR", "INTERNAL_ERROR")]


def _set_targets(trt: Any, config: Any, sm: tuple[int, ...]) -> None:
    if not is_rtx(trt):
        if sm:
            raise UserError(
                f"sm {', '.join(map(str, sm))}: the classic TensorRT builds for the GPU of this "
                "machine. Leave --sm, or build with TensorRT-RTX (--to tensorrt-rtx)."
            )
        return
    known = trt.ComputeCapability.__members__
    if not sm and not gpu_name():
        raise UserError(
            "There is no GPU here: say for which ones to build with --sm. TensorRT-RTX "
            f"{trt.__version__} knows {_numbers(known)}."
        )
    names = [f"SM{number}" for number in sm] or ["CURRENT"]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if name not in known:
            raise UserError(
                f"sm {name[2:]}: TensorRT-RTX {trt.__version__} does not build for it; it knows "
                f"{_numbers(known)}. For other GPUs build with the classic TensorRT on the device."
            )
        if not config.set_compute_capability(known[name], index):
            raise UserError(f"sm {name[2:]}: TensorRT-RTX refuses this combination of targets.")


def _numbers(known: Mapping[str, Any]) -> str:
    return ", ".join(name[2:] for name in known if name.startswith("SM"))


def _set_shapes(
    builder: Any, network: Any, config: Any, settings: Settings, onnx_path: Path
) -> None:
    """One profile for every input whose shape is open; a closed one must be what was asked."""
    profile, dynamic = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape, name = tuple(tensor.shape), tensor.name
        _check_size(shape, name, settings, onnx_path)
        if min(shape, default=1) >= 0:
            continue
        dynamic = True
        profile.set_shape(name, *(_filled(shape, name, n, settings, onnx_path) for n in range(3)))
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise UserError(f"{onnx_path}: TensorRT refuses the shapes {settings.batch}.")


def _check_size(shape: tuple[int, ...], name: str, settings: Settings, onnx_path: Path) -> None:
    """A size that the file fixes must be the one that was asked for."""
    fixed = len(shape) == 4 and -1 not in shape[2:]
    if settings.hw is not None and fixed and shape[2:] != settings.hw:
        raise UserError(
            f"{onnx_path}: its input {name} is fixed at {shape[2]}x{shape[3]}, --hw asks for "
            f"{settings.hw[0]}x{settings.hw[1]}. Leave --hw, or export at that size."
        )


def _filled(
    shape: tuple[int, ...], name: str, which: int, settings: Settings, onnx_path: Path
) -> tuple[int, ...]:
    """The least (0), usual (1) or largest (2) shape of an input."""
    if name in settings.shapes:
        given = settings.shapes[name][which]
        fits = len(given) == len(shape) and all(
            size in (-1, asked) for size, asked in zip(shape, given, strict=True)
        )
        if not fits:
            raise UserError(
                f"{onnx_path}: {name} is {list(shape)}, which {list(given)} does not fit."
            )
        return given
    hw = dict(enumerate(settings.hw, 2)) if settings.hw is not None and len(shape) == 4 else {}
    sizes = {0: settings.batch[which], **hw}
    for axis, size in enumerate(shape):
        if size < 0 and axis not in sizes:
            raise UserError(
                f"{onnx_path}: axis {axis} of {name} {list(shape)} is open. Give "
                f"{'--hw' if len(shape) == 4 and axis in (2, 3) else f'--shape {name}=...'}."
            )
    return tuple(sizes[axis] if size < 0 else size for axis, size in enumerate(shape))


def _set_timing_cache(config: Any, path: Path | None) -> Any:
    """A cache of earlier measurements; one of another version or GPU is begun again."""
    if path is None:
        return None
    held = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(held)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        if cache is None or not config.set_timing_cache(cache, False):
            raise UserError(f"{path}: TensorRT makes no timing cache here. Leave --timing-cache.")
    return cache


if __name__ == "__main__":
    sys.exit(serve(_work))
