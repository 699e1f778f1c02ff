"""Why a network does not become an ONNX file, in words and with the user's line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]*)')
_OURS = Path(__file__).parent.parent
_TORCH = Path(torch.__file__).parent
_CHECKS = ("_assert", "sym_")
"""Beginnings of operators that the exporter takes out."""
_TAKEN_APART = frozenset({"batch_norm", "adaptive_avg_pool2d", "dropout", "fill"})
"""Common operators that torch takes apart into others, which are known."""


def without_form(traced: torch.export.ExportedProgram) -> str | None:
    """The operators of a traced network that ONNX has no form of, with their lines; None where
    there are none. A torch that keeps its table of operators elsewhere is not asked."""
    try:
        from torch.onnx._internal.exporter._fx_passes import decompose_with_registry
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        table = ONNXRegistry.from_torchlib()
    except (ImportError, AttributeError):
        return None
    if next(_strange(traced, table), None) is None:  # the usual case, and quick
        return None
    found: dict[str, str] = {}
    for node in _strange(decompose_with_registry(traced, table), table):
        found.setdefault(str(node.target), _line(node.meta.get("stack_trace") or ""))
    return ", ".join(f"{name}{line}" for name, line in found.items()) or None


def _strange(traced: torch.export.ExportedProgram, table: Any) -> Iterator[Any]:
    """The nodes whose operator the table lacks; that of a call in place is the plain one."""
    for node in traced.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        space, _, name = str(node.target).partition(".")
        name, _, overload = name.partition(".")
        plain = name.removesuffix("_")
        full = f"{space}::{plain}" + ("" if overload == "default" else f".{overload}")
        if space not in ("aten", "prims") or name.startswith(_CHECKS) or plain in _TAKEN_APART:
            continue
        if not table.is_registered(node.target) and not table.is_registered(full):
            yield node


def _line(stack: str) -> str:
    """` (net.py, line 7: x = x.kthvalue(3))`: the innermost of a stack that is not torch's."""
    frames = [found for found in _FRAME.findall(stack) if _is_theirs(found[0])]
    if not frames:
        return ""
    file, line, text = frames[-1]
    return f" ({Path(file).name}, line {line}: {text.strip()})"


def _is_theirs(file: str) -> bool:
    path = Path(file)
    rooms = ("bench", "compress", "export")
    inside = any(path.is_relative_to(_OURS / room) for room in rooms)
    return not inside and not path.is_relative_to(_TORCH) and not file.startswith("<")


def reason(model: nn.Module, error: Exception) -> str:
    """Why `model` could not be traced for an export: one sentence or two."""
    causes = list(_causes(error))
    frames = [
        frame
        for cause in causes
        for frame in traceback.extract_tb(cause.__traceback__)
        if _is_theirs(frame.filename) and frame.line
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line})" if (
        frames
    ) else ""  # fmt: skip
    if any("DataDependent" in type(cause).__name__ for cause in causes):
        return (
            f"its forward pass branches on a value of the images, or makes sizes of one{place}. "
            "Compute both sides and choose by torch.where, or let an attribute decide."
        )
    last = (str(causes[-1]).strip().splitlines() or [type(causes[-1]).__name__])[0]
    return (
        f"{type(causes[-1]).__name__}: {last}{place}. Look for a branch on a value or on the batch "
        "size in its forward pass."
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__
