"""A model repository for Triton Inference Server: configuration, labels, and the model.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import at_least, check_ranges
from vcompress.bench.text import is_name

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z", re.ASCII)
TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16",
    "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
}  # fmt: skip
WARM_UP_SIDE = 256
"""Height and width of a warm-up image where the model takes any."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of the model."""

    name: str
    shape: tuple[int | None, ...]
    """With the batch; None is free."""
    dtype: str
    """NumPy's name."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the server runs the model."""

    name: str
    """Name of the model in requests."""
    max_batch: Annotated[int, at_least(1)] = 8
    """Requests of one shape are gathered up to so many images; needs a model with a free batch."""
    instances: Annotated[int, at_least(1)] = 1
    """Copies of the model that run at the same time, on each device."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    queue_delay_us: Annotated[int, at_least(0)] = 100
    """How long a request may wait for others."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not _NAME.match(self.name):
            raise UserError(
                f"--serve-name {self.name!r}: expected letters, digits, dots, dashes and "
                "underscores, at most 100, such as my-model."
            )


def onnx_tensors(file: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of an ONNX file."""
    import onnx

    graph = onnx.load(str(file), load_external_data=False).graph

    def tensor(value: Any) -> Tensor:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        return Tensor(value.name, shape, str(dtype))

    return tuple(map(tensor, graph.input)), tuple(map(tensor, graph.output))


def config(
    serving: Serving,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    engine: bool,
    classes: int,
    properties: dict[str, str],
) -> str:
    """The text of `config.pbtxt`.

    Args:
        engine: a TensorRT engine, which needs a GPU; else an ONNX file.
        classes: an output of so many values gets the labels.
        properties: told as they are, as parameters.

    Raises:
        UserError: a type that Triton does not know.
    """
    free = all(t.shape[:1] == (None,) for t in (*inputs, *outputs))
    device = "gpu" if engine else serving.device
    lines = [
        f"name: {_quoted(serving.name)}",
        f'backend: "{"tensorrt" if engine else "onnxruntime"}"',
        f'default_model_filename: "{"model.plan" if engine else "model.onnx"}"',
        # 0: the model's own first dimension is a fixed batch, which Triton leaves alone.
        f"max_batch_size: {serving.max_batch if free else 0}",
    ]
    for tensor in inputs:
        lines += ["input {", *_tensor(tensor, free), "}"]
    for tensor in outputs:
        labelled = tensor.dtype.startswith("float") and tensor.shape[1:] == (classes,)
        extra = ['  label_filename: "labels.txt"'] if labelled else []
        lines += ["output {", *_tensor(tensor, free), *extra, "}"]
    lines += ["instance_group {", f"  count: {serving.instances}", f"  kind: KIND_{device.upper()}"]
    lines += ["}", "version_policy { latest { num_versions: 1 } }"]
    if free:
        lines += [
            "dynamic_batching {",
            f"  max_queue_delay_microseconds: {serving.queue_delay_us}",
            "}",
        ]
    # The first request of each batch must not pay for the runtime's set-up.
    for batch in sorted({1, serving.max_batch}) if free else [0]:
        name = f"batch of {batch}" if free else "fixed batch"
        lines += ["model_warmup {", f"  name: {_quoted(name)}", f"  batch_size: {batch or 1}"]
        for tensor in inputs:
            lines += _warm_up(tensor, free)
        lines += ["}"]
    for key, value in sorted(properties.items()):
        lines += [
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}"
        ]
    return "\n".join(lines) + "\n"


def check(text: str, serving: Serving) -> bool:
    """Parse the configuration with Triton's own protobuf definition.

    Returns:
        Whether it was checked: False without `tritonclient`.

    Raises:
        UserError: Triton would not read it.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        return False
    try:
        found = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(
            f"the configuration for Triton is not one that it reads ({error}). Please report it."
        ) from None
    if found.name != serving.name or not found.input or not found.output:
        raise UserError("the configuration for Triton lost its name or tensors. Please report it.")
    return True


def write_repository(
    out: Path, model: Path, labels: Sequence[str], text: str, serving: Serving, *, engine: bool
) -> Path:
    """Write `out/NAME/`, whole or not at all: `config.pbtxt`, `labels.txt`, `1/model.*`.

    Raises:
        UserError: a model of that name is there already, or a label that does not fit on one line.
    """
    for label in labels:
        if not is_name(label):
            raise UserError(f"label {label!r}: Triton reads one label a line; rename it.")
    target = out / serving.name
    if target.exists() or target.is_symlink():
        raise UserError(
            f"{target}: there is something already. Remove it, or give another --out or "
            "--serve-name."
        )
    out.mkdir(parents=True, exist_ok=True)
    # The server polls the repository: it must never see half a model. What is put together beside
    # it can be renamed into it; where it is a mount of its own, only what lies in it can.
    beside = out.resolve().parent
    same_disk = beside.stat().st_dev == out.stat().st_dev and os.access(beside, os.W_OK)
    place = beside if same_disk else out
    with tempfile.TemporaryDirectory(prefix=".vcompress-", dir=place) as folder:
        staging = Path(folder) / serving.name
        (staging / "1").mkdir(parents=True)
        shutil.copyfile(model, staging / "1" / ("model.plan" if engine else "model.onnx"))
        (staging / "config.pbtxt").write_text(text, encoding="utf-8")
        (staging / "labels.txt").write_text("".join(f"{n}\n" for n in labels), encoding="utf-8")
        staging.rename(target)
    return target


def _tensor(tensor: Tensor, free: bool) -> list[str]:
    shape = tensor.shape[1:] if free else tensor.shape
    dims = ", ".join(str(-1 if size is None else size) for size in shape)
    return [
        f"  name: {_quoted(tensor.name)}",
        f"  data_type: {_type(tensor)}",
        f"  dims: [ {dims} ]",
    ]


def _warm_up(tensor: Tensor, free: bool) -> list[str]:
    shape = tensor.shape[1:] if free else tensor.shape
    dims = ", ".join(str(WARM_UP_SIDE if size is None else size) for size in shape)
    return [
        "  inputs {",
        f"    key: {_quoted(tensor.name)}",
        f"    value {{ data_type: {_type(tensor)} dims: [ {dims} ] random_data: true }}",
        "  }",
    ]


def _type(tensor: Tensor) -> str:
    if tensor.dtype not in TYPES:
        raise UserError(f"{tensor.name}: {tensor.dtype} is no type that Triton serves.")
    return TYPES[tensor.dtype]


def _quoted(text: str) -> str:
    """A string of the text format of protobuf, whatever it holds."""
    plain = {*range(0x20, 0x7F)} - {ord('"'), ord("\\")}
    data = text.encode("utf-8", "replace")
    return '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in data) + '"'
