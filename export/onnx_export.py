"""Exports an `nn.Module` to ONNX; the file is read again and checked before it gets its name."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from vcompress.bench.bundle import InputSpec
from vcompress.bench.errors import UserError, nearest

from .failures import reason, without_form
from .folding import folded
from .graph import opset_of
from .modes import evaluating
from .opsets import WRITTEN, check_opset, lowered
from .precision import Half, convert_file
from .rewrite import rewrite

OPSET = 20
"""Opset of the file unless asked otherwise; the oldest with all that is used here."""


class ExportError(UserError):
    """The network could not be exported, or the file failed its checks and was removed."""


@dataclass(frozen=True)
class ExportReport:
    """What was written."""

    path: Path
    opset: int
    size_bytes: int
    operators: dict[str, int]
    """Operator -> number of nodes."""
    qdq_before: int
    """Roundings in the traced network: one for each quantised activation and weight."""
    qdq_after: int
    """DequantizeLinear nodes in the file; the same number, but for those of equal values."""
    int8_tensors: int
    """Weights stored as int8."""
    int8_bytes: int
    float_bytes: int
    """Bytes of floating point in initialisers: biases, scales, layers that are not quantised."""
    notes: tuple[str, ...] = field(default=())
    cast: dict[str, Any] | None = None
    """What the conversion to half precision did, where there was one."""


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's chatter from the terminal; its errors are raised anyway."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@functools.cache
def _registry(build: Any, **settings: Any) -> Any:
    return build(**settings)


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    """Let the exporter build its table of operators once, and not anew for every file.

    It reads the source of 500 functions for it, which takes longer than a small network. A torch
    that keeps the table elsewhere goes on without.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        build = ONNXRegistry.from_torchlib
    except (ImportError, AttributeError):
        yield
        return
    kept = vars(ONNXRegistry)["from_torchlib"]
    setattr(ONNXRegistry, "from_torchlib", functools.partial(_registry, build))  # noqa: B010
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", kept)  # noqa: B010


def logits_of(out: Any, output: str | None = None) -> Tensor:
    """The one output that counts of a network that returns several.

    Args:
        out: a tensor, a mapping or a sequence.
        output: its name in a mapping; by default `out` where there is one, else the first tensor.

    Raises:
        UserError: there is no such output, or none that is a tensor.
    """
    found = named_outputs(out)
    if isinstance(out, Tensor) and output is None:
        return out
    wanted = output if output is not None else "out"
    if wanted in found and (output is not None or _has_names(out)):
        return found[wanted]
    if output is not None:
        names = ", ".join(found)
        raise UserError(
            f"output = {output!r}: the network gives {names}.{nearest(output, found)}"
            if _has_names(out)
            else f"output = {output!r}: the network gives a {type(out).__name__} without names; "
            f"leave output out, which takes its first tensor, or give one of {names}."
        )
    for value in found.values():
        return value
    raise UserError(
        f"The network gives a {type(out).__name__}; expected a tensor, or a dictionary or a tuple "
        "that holds one."
    )


def _has_names(out: Any) -> bool:
    return isinstance(out, Mapping) or hasattr(out, "_asdict")


def named_outputs(out: Any) -> dict[str, Tensor]:
    """All tensors that a network gives, by name: the keys of a dictionary or of a named tuple; else
    `output_0`, `output_1`, ...; `logits` of a tensor alone. What stands inside of these has both
    names, `boxes_0`. Other values are left out."""
    if isinstance(out, Tensor):
        return {"logits": out}
    named = getattr(out, "_asdict", None)
    found = named() if named is not None else out
    if isinstance(found, Mapping):
        pairs = [(str(name), value) for name, value in found.items()]
    elif isinstance(found, (tuple, list)):
        pairs = [(f"output_{number}", value) for number, value in enumerate(found)]
    else:
        return {}
    made: dict[str, Tensor] = {}
    for name, value in pairs:
        if isinstance(value, Tensor):
            made[name] = value
        else:
            inner = {k.removeprefix("output_"): v for k, v in named_outputs(value).items()}
            made |= {f"{name}_{k}": v for k, v in inner.items()}
    return made


class _Every(nn.Module):
    """The network with all its tensors, in the order of their names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.model(input)).values())


class _Logits(nn.Module):
    """The network with that output alone."""

    def __init__(self, model: nn.Module, output: str | None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input: Tensor) -> Tensor:
        return logits_of(self.model(input), self.output)


@contextlib.contextmanager
def _plain_memory(model: nn.Module) -> Iterator[None]:
    """Every tensor of the network in contiguous memory for a while.

    The exporter traces strides too: after a kernel in channels_last a pooled map is taken apart by
    `as_strided` and put together again by a chain of Shape, Range and Gather.
    """
    moved = {
        t: t.data
        for t in (*model.parameters(), *model.buffers())
        if t.layout == torch.strided and t.stride() != torch.empty(t.shape, device="meta").stride()
    }
    try:
        for tensor, data in moved.items():
            tensor.data = data.clone(memory_format=torch.contiguous_format)
        yield
    finally:
        for tensor, data in moved.items():
            tensor.data = data


def _to_proto(
    model: nn.Module, example: Tensor, dynamic: bool, opset: int, output: str | None,
    names: Sequence[str],
) -> tuple[onnx.ModelProto, torch.export.ExportedProgram]:  # fmt: skip
    """The exported graph, and the traced network it is of; with `names`, all outputs."""
    whole = _Every(model) if names else _Logits(model, output)
    try:
        with _silence(), _one_registry(), _plain_memory(model), torch.no_grad():
            program = torch.onnx.export(
                whole.eval(),
                _inputs(example, dynamic),
                dynamo=True,
                opset_version=opset,
                input_names=["input"],
                output_names=list(names) or ["logits"],
                dynamic_shapes=_shapes(dynamic),
                verbose=False,
            )
    except Exception as error:
        _check_traces(model, example, output, dynamic)  # which says more
        raise _no_export(model, reason(model, error)) from error
    assert program is not None
    traced = program.exported_program
    assert traced is not None
    return program.model_proto, traced


def output_names(path: Path) -> list[str]:
    """The names of a file's outputs."""
    return [o.name for o in onnx.load(str(path), load_external_data=False).graph.output]


def _output_names(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    with evaluating(model), torch.no_grad():
        return tuple(named_outputs(model(example)))


def _inputs(example: Tensor, dynamic: bool) -> tuple[Tensor]:
    # A batch of one would be baked in as a constant.
    return (torch.cat([example, example]) if dynamic else example,)


def _shapes(dynamic: bool) -> Any:
    return ({0: torch.export.Dim("batch")},) if dynamic else None


def _no_export(model: nn.Module, why: str) -> ExportError:
    return ExportError(f"{type(model).__name__} cannot be exported to ONNX: {why}")


def check_traces(model: nn.Module, shape: tuple[int, ...], output: str | None = None) -> None:
    """Take the first step of an export, where most that cannot be exported fails: it costs a tenth.

    Raises:
        ExportError: the network cannot be traced for a batch of any size, or does what ONNX has no
            operator for.
    """
    _check_traces(folded(model), _example(model, shape), output, dynamic=True)


def _check_traces(model: nn.Module, example: Tensor, output: str | None, dynamic: bool) -> None:
    try:
        with _silence(), torch.no_grad():
            traced = torch.export.export(
                _Logits(model, output).eval(), _inputs(example, dynamic),
                dynamic_shapes=_shapes(dynamic), strict=False,
            )  # fmt: skip
    except Exception as error:
        raise _no_export(model, reason(model, error)) from error
    with _silence(), _one_registry(), torch.no_grad():
        unknown = without_form(traced)
    if unknown:
        raise _no_export(
            model,
            f"ONNX has no form of {unknown}. Compute the same from other operations, or leave it "
            "to what comes after the network.",
        )


def _example(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """One input of noughts, of the type of the weights, where they are."""
    tensors = [*model.parameters(), *model.buffers()]
    device = next((t.device for t in tensors), torch.device("cpu"))
    kind = next((t.dtype for t in tensors if t.is_floating_point()), None)
    return torch.zeros(1, *shape, dtype=kind, device=device)


def _roundings(traced: torch.export.ExportedProgram) -> list[fx.Node]:
    """The nodes that the exporter makes a DequantizeLinear of."""
    return [
        n
        for n in traced.graph.nodes
        if "fake_quantize" in str(n.target)
        or ("onnx_symbolic" in str(n.target) and "DequantizeLinear" in map(str, n.args))
    ]


def _distinct_roundings(traced: torch.export.ExportedProgram) -> int:
    """How many of them make values of their own; the exporter merges the others.

    Two heads that were never trained round the same values in the same steps.
    """
    signature = traced.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors = {**traced.constants, **traced.state_dict}
    keys: dict[Any, str] = {}
    of: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        tensor = tensors.get(held.get(node.name, ""))
        if isinstance(tensor, Tensor):
            stored = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            key: Any = (tensor.dtype, tensor.shape, stored.tobytes())
        elif node.op == "placeholder":
            key = node.name
        else:
            key = (node.target, repr(fx.map_arg((node.args, node.kwargs), of.__getitem__)))
        of[node] = keys.setdefault(key, f"%{len(keys)}")
    return len({of[n] for n in _roundings(traced)})


def _forget_the_machine(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about the source of every node: stack traces with the paths of
    this machine, in a small file as many bytes as the weights."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output,
                 *graph.initializer, *proto.functions):  # fmt: skip
        del part.metadata_props[:]


def _count(proto: onnx.ModelProto, operator: str) -> int:
    return sum(n.op_type == operator for n in proto.graph.node)


def export(
    model: nn.Module,
    path: Path | str,
    input_spec: InputSpec | tuple[str, tuple[int, ...]],
    *,
    metadata: Mapping[str, str] = MappingProxyType({}),
    dynamic_batch: bool = True,
    opset: int | None = None,
    output: str | None = None,
    every_output: bool = False,
) -> ExportReport:
    """Write `model` to `path`: input `input` [B, C, H, W] float32, output `logits`.

    Of a network with several outputs `output` names the one that is written, see `logits_of`; with
    `every_output` all are, by the names of `named_outputs`. The file is in `opset`, by default 20,
    or refused.

    A network with quantisers must come from `to_export`. Its weights are stored as int8. BN is
    folded, quantised or not. The file is written beside `path`, read again, checked and renamed.

    Raises:
        ExportError: the exporter failed or the file did not pass; nothing is left behind.
        UserError: an opset that does not hold this network; the message says which do.
    """
    path = Path(path)
    shape = tuple(input_spec[1] if isinstance(input_spec, tuple) else input_spec.shape)
    example = _example(model, shape)
    asked = OPSET if opset is None else opset
    check_opset(asked)
    model = folded(model)
    names = _output_names(model, example) if every_output else ()
    proto, traced = _to_proto(model, example, dynamic_batch, max(asked, WRITTEN[0]), output, names)
    before = len(_roundings(traced))
    merged = rewrite(proto)
    before -= merged
    proto = lowered(proto, asked)
    if opset_of(proto) != asked:
        raise ExportError(f"opset {asked}: the exporter wrote {opset_of(proto)} instead.")
    _forget_the_machine(proto)
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    after = _count(proto, "DequantizeLinear")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        with temporary.open("wb") as file:
            file.write(proto.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        checked = check_file(temporary, shape, dynamic_batch, names)
        if after > before or (after < before and after < _distinct_roundings(traced) - merged):
            raise ExportError(
                f"{path.name}: {before} quantisers were exported and {after} are in the file. "
                "An optimiser removed some; please report this network."
            )
        temporary.replace(path)
    return _report(path, checked, before, after)


def _report(path: Path, checked: onnx.ModelProto, before: int, after: int) -> ExportReport:
    operators = Counter(n.op_type for n in checked.graph.node)
    sizes = {
        t.name: (t.data_type, onnx.numpy_helper.to_array(t).nbytes)
        for t in checked.graph.initializer
    }
    stored = {n.input[0] for n in checked.graph.node if n.op_type == "DequantizeLinear"}
    integers = [
        s for name, (kind, s) in sizes.items() if kind == onnx.TensorProto.INT8 and name in stored
    ]
    return ExportReport(
        path=path,
        opset=opset_of(checked),
        size_bytes=path.stat().st_size,
        operators=dict(sorted(operators.items())),
        qdq_before=before,
        qdq_after=after,
        int8_tensors=len(integers),
        int8_bytes=sum(integers),
        float_bytes=sum(
            s
            for kind, s in sizes.values()
            if kind in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        ),
    )


def cast_file(report: ExportReport, shape: tuple[int, ...], precision: Half) -> ExportReport:
    """Convert the float32 file of `report` to half precision in place, and check it again.

    Raises:
        UserError: the network does not fit the type; the file is as it was.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{report.path.name}.", dir=report.path.parent
    ) as folder:
        file = Path(shutil.copyfile(report.path, Path(folder) / report.path.name))
        cast = convert_file(file, precision)
        checked = check_file(file, shape, _dynamic(report.path))
        after = _count(checked, "DequantizeLinear")
        if after != report.qdq_after:
            raise ExportError(f"{report.path.name}: {report.qdq_after} quantisers, {after} cast.")
        file.replace(report.path)
    return replace(_report(report.path, checked, report.qdq_before, after), cast=asdict(cast))


def _dynamic(path: Path) -> bool:
    proto = onnx.load(str(path), load_external_data=False)
    return bool(proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param)


def check_file(
    path: Path, shape: tuple[int, ...], dynamic_batch: bool, outputs: Sequence[str] = ()
) -> onnx.ModelProto:
    """Read a file again: ONNX checker, strict shape inference, its input, outputs (by default
    `logits` alone) and scales.

    Raises:
        ExportError: it does not pass.
    """
    try:
        proto = onnx.load(str(path))
        onnx.checker.check_model(proto, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except Exception as error:
        raise ExportError(f"{path.name} does not pass the ONNX checker: {error}") from error
    names = ([i.name for i in inferred.graph.input], [o.name for o in inferred.graph.output])
    wanted = list(outputs) or ["logits"]
    if names != (["input"], wanted):
        raise ExportError(
            f"{path.name}: inputs and outputs {names}, expected input and {', '.join(wanted)}."
        )
    dims = inferred.graph.input[0].type.tensor_type.shape.dim
    got = tuple(d.dim_value for d in dims)[1:]
    if got != shape or bool(dims[0].dim_param) != dynamic_batch:
        raise ExportError(f"{path.name}: its input is {got}, expected {shape}.")
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ExportError(
                f"{path.name}: {tensor.name} holds values that are not finite. "
                "The weights or the scales of the network are broken."
            )
    return proto
