"""A file in the opset that was asked for, or why it cannot be."""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from vcompress.bench.errors import UserError

from .graph import opset_of

WRITTEN = (18, 25)
"""The oldest and the newest opset that the exporter writes itself."""
OLDEST = 7
"""The oldest that ONNX Runtime runs."""
OLDEST_IR = 4
"""The oldest format of a file whose weights are no inputs."""


def check_opset(opset: int) -> None:
    """Raise a UserError for an opset that no network is written in."""
    if not OLDEST <= opset <= WRITTEN[1]:
        raise UserError(f"opset {opset}: expected {OLDEST} to {WRITTEN[1]}.")


def lowered(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph in an older opset, one version at a time. Metadata is lost.

    Raises:
        UserError: an operator that the older opset has not; the message says which opsets do.
    """
    while (now := opset_of(proto)) > opset:
        try:
            proto = _one_lower(proto, now - 1)
        except Exception as error:  # the converter's and the checker's, each of its own kind
            raise UserError(
                f"opset {opset}: {_reason(error, now - 1)}. This network can be written in opsets "
                f"{now} to {WRITTEN[1]}."
            ) from error
    oldest = onnx.helper.find_min_ir_version_for(list(proto.opset_import))
    proto.ir_version = max(oldest, OLDEST_IR)
    return proto


def _one_lower(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        made = version_converter.convert_version(proto, opset)
    except RuntimeError:  # it lacks an adapter also where the operator only gained an option
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        for entry in made.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
        shapes = {t.name for t in made.graph.initializer if _has_no_zero(t)}
        for node in made.graph.node:
            if node.op_type == "Reshape" and node.input[1] in shapes:  # then it says nothing
                kept = [a for a in node.attribute if a.name != "allowzero"]
                del node.attribute[:]
                node.attribute.extend(kept)
            _forget_defaults(node, opset)
    onnx.checker.check_model(made, full_check=True)
    return made


def _has_no_zero(tensor: onnx.TensorProto) -> bool:
    whole = tensor.data_type == onnx.TensorProto.INT64
    return whole and bool(onnx.numpy_helper.to_array(tensor).all())


def _forget_defaults(node: onnx.NodeProto, opset: int) -> None:
    """Remove attributes that came with the next opset and say what was always done."""
    if node.domain not in ("", "ai.onnx"):
        return
    new = onnx.defs.get_schema(node.op_type, opset + 1).attributes
    try:
        old = onnx.defs.get_schema(node.op_type, opset).attributes
    except onnx.defs.SchemaError:  # the checker says so
        return
    for attribute in list(node.attribute):
        if attribute.name in old or attribute.name not in new:
            continue
        value, default = onnx.helper.get_attribute_value, new[attribute.name].default_value
        spread = attribute.name == "dilations" and set(attribute.ints) != {1}  # of 1 by default
        if value(default) == value(attribute) if default.type else not spread:
            node.attribute.remove(attribute)


def _reason(error: Exception, opset: int) -> str:
    missing = re.search(r"No Op registered for (\w+)", str(error))
    if missing:
        return f"opset {opset} has no {missing[1]}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"opset {opset} does not hold it ({lines[0].strip()[:160] if lines else error!r})"
