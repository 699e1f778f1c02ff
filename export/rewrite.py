"""Rewrites an exported graph: integers are stored as such, pooling and BN get their best form."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Array, Graph, attribute, per_axis


def rewrite(proto: onnx.ModelProto) -> int:
    """Apply every rewrite in place; by how many the DequantizeLinear nodes have become fewer: those
    of padded integers less those that are there twice now."""
    graph = Graph(proto)
    constants_to_initializers(graph)
    store_integers(graph)
    fold_transposes(graph)
    fold_pads(graph)
    merged = pad_integers(graph)
    fold_bn(graph)
    global_pools(graph)
    scale_resizes(graph)
    open_windows(graph)
    added = keep_weights_float(graph)
    name_quantised(graph)
    graph.write_back()
    return merged - added


def constants_to_initializers(graph: Graph) -> None:
    """Constant nodes with a tensor become initialisers."""
    for node in list(graph.nodes):
        value = attribute(node, "value")
        if node.op_type == "Constant" and isinstance(value, onnx.TensorProto):
            graph.store(node.output[0], numpy_helper.to_array(value))
            graph.drop(node)
    graph.index()


def store_integers(graph: Graph) -> None:
    """QuantizeLinear of a constant: store its integers, leave the DequantizeLinear alone."""
    for node in list(graph.nodes):
        if node.op_type != "QuantizeLinear":
            continue
        values = graph.value(node.input[0])
        scale = graph.value(node.input[1])
        if values is None or scale is None:
            continue
        zero = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        axis = int(attribute(node, "axis", 1))
        steps = values / per_axis(scale, values.ndim, axis)
        limits = np.iinfo(kind)
        offset = 0 if zero is None else per_axis(zero.astype(np.int32), values.ndim, axis)
        integers = np.clip(np.rint(steps).astype(np.int64) + offset, limits.min, limits.max)
        graph.store(node.output[0], integers.astype(kind))
        graph.drop(node)
    graph.index()


def fold_transposes(graph: Graph) -> None:
    """DequantizeLinear of a constant, then Transpose: transpose the integers instead."""
    for node in list(graph.nodes):
        if node.op_type != "Transpose":
            continue
        before = graph.maker.get(node.input[0])
        if before is None or before.op_type != "DequantizeLinear":
            continue
        integers = graph.value(before.input[0])
        if integers is None or graph.only_reader(node.input[0]) is None:
            continue
        order = attribute(node, "perm", list(range(integers.ndim))[::-1])
        assert isinstance(order, list)
        before.input[0] = graph.store(f"{before.input[0]}_t", integers.transpose(order))
        for found in before.attribute:
            if found.name == "axis":
                found.i = order.index(found.i % integers.ndim)
        before.output[0] = node.output[0]
        graph.drop(node)
        graph.index()


def fold_pads(graph: Graph) -> None:
    """Zeros added before a convolution become its own padding: a Pad between a DequantizeLinear
    and a convolution would keep it out of int8."""
    for node in list(graph.nodes):
        if node.op_type != "Pad" or attribute(node, "mode", b"constant") != b"constant":
            continue
        pads = graph.value(node.input[1])
        value = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        conv = graph.only_reader(node.output[0])
        if conv is None or conv.op_type != "Conv" or conv.input[0] != node.output[0]:
            continue
        if pads is None or len(node.input) > 3 or (value is not None and bool(np.any(value))):
            continue
        rank = len(pads) // 2
        given = [*pads[2:rank], *pads[rank + 2 :]]
        if any(pads[:2]) or any(pads[rank : rank + 2]) or min(given) < 0:
            continue
        if attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET":
            continue
        own = attribute(conv, "pads", [0] * len(given))
        assert isinstance(own, list)
        kept = [a for a in conv.attribute if a.name != "pads"]
        del conv.attribute[:]
        conv.attribute.extend(kept)
        total = [int(a) + int(b) for a, b in zip(given, own, strict=True)]
        conv.attribute.append(helper.make_attribute("pads", total))
        conv.input[0] = node.input[0]
        graph.drop(node)
        graph.index()


def pad_integers(graph: Graph) -> int:
    """DequantizeLinear, Pad, QuantizeLinear in the same steps: the integers are padded, which is
    exact. The number of nodes DequantizeLinear that nobody reads any more.

    Signed integers are left alone: TensorRT pads no int8 tensor.
    """
    dropped = 0
    for node in list(graph.nodes):
        if node.op_type != "Pad" or len(node.input) > 3:
            continue
        filled = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        before, after = graph.maker.get(node.input[0]), graph.only_reader(node.output[0])
        if before is None or before.op_type != "DequantizeLinear" or len(before.input) < 3:
            continue
        if after is None or after.op_type != "QuantizeLinear" or len(after.input) < 3:
            continue
        (scale, zero), (again, same) = (
            [graph.value(name) for name in n.input[1:3]] for n in (before, after)
        )
        if scale is None or zero is None or zero.dtype != np.uint8:
            continue
        if again is None or same is None or scale != again or zero != same:
            continue
        if filled is not None and np.any(filled):
            continue
        if attribute(node, "mode", b"constant") == b"constant":
            del node.input[2:]
            node.input.append(before.input[2])
        node.input[0], node.output[0] = before.input[0], after.output[0]
        graph.drop(after)
        graph.index()
        if not graph.readers.get(before.output[0]) and before.output[0] not in graph.outputs:
            graph.drop(before)
            graph.index()
            dropped += 1
    return dropped


def fold_bn(graph: Graph) -> None:
    """BatchNormalization behind a convolution with a floating point weight, folded."""
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization":
            continue
        conv = graph.maker.get(node.input[0])
        if conv is None or conv.op_type != "Conv" or graph.only_reader(conv.output[0]) is None:
            continue
        weight = graph.value(conv.input[1])
        bias = graph.value(conv.input[2]) if len(conv.input) > 2 else None
        given = [graph.value(name) for name in node.input[1:5]]
        if weight is None or any(g is None for g in given):
            continue
        if len(conv.input) > 2 and bias is None:
            continue
        gamma, beta, mean, variance = (np.asarray(g, np.float64) for g in given)
        factor = gamma / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))
        start = np.zeros_like(mean) if bias is None else bias.astype(np.float64)
        shape = (-1, *[1] * (weight.ndim - 1))
        name = conv.output[0]
        folded = (weight.astype(np.float64) * factor.reshape(shape)).astype(weight.dtype)
        offset = (beta + (start - mean) * factor).astype(weight.dtype)
        names = [graph.store(f"{name}_weight", folded), graph.store(f"{name}_bias", offset)]
        del conv.input[1:]
        conv.input.extend(names)
        conv.output[0] = node.output[0]
        graph.drop(node)
        graph.index()


def global_pools(graph: Graph) -> None:
    """The mean over height and width as GlobalAveragePool, which runtimes have in int8."""
    for node in list(graph.nodes):
        if node.op_type != "ReduceMean" or len(node.input) < 2:
            continue
        axes = graph.value(node.input[1])
        if axes is None or sorted(int(a) for a in axes) not in ([2, 3], [-2, -1]):
            continue
        if sorted(int(a) for a in axes) == [-2, -1] and not _rank_is(graph, node.input[0], 4):
            continue
        keep = int(attribute(node, "keepdims", 1))
        place = graph.nodes.index(node)
        out = node.output[0]
        pooled = out if keep else f"{out}_pooled"
        new = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name)]
        if not keep:
            # Reshape and not Flatten: ONNX Runtime moves Q/DQ past it.
            shape = graph.store(f"{out}_shape", np.array([0, -1], np.int64))
            new.append(
                helper.make_node("Reshape", [pooled, shape], [out], name=f"{node.name}_flat")
            )
        graph.nodes[place : place + 1] = new
    graph.index()


def scale_resizes(graph: Graph) -> None:
    """Resize to sizes that are joined to the input's batch and channels, by whole factors: the
    factors are written instead, so no shape is computed and every operator set holds it."""
    dims = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.value_info
    }
    for node in list(graph.nodes):
        if node.op_type != "Resize" or len(node.input) < 4 or attribute(node, "axes") is not None:
            continue
        joined = graph.maker.get(node.input[3])
        if joined is None or joined.op_type != "Concat" or len(joined.input) != 2:
            continue
        of, size = graph.maker.get(joined.input[0]), graph.value(joined.input[1])
        own = dims.get(node.input[0], [])[2:]
        if of is None or of.op_type != "Shape" or of.input[0] != node.input[0] or size is None:
            continue
        first_two = (attribute(of, "start", 0), attribute(of, "end")) == (0, 2)
        if not first_two or len(own) != len(size) or not all(own):
            continue
        if any(int(to) % of_ for to, of_ in zip(size, own, strict=True)):
            continue
        scales = [1.0, 1.0, *(int(to) // of_ for to, of_ in zip(size, own, strict=True))]
        stored = graph.store(f"{node.output[0]}_scales", np.array(scales, np.float32))
        del node.input[2:]
        node.input.append(stored)
        graph.index()
        for left in (joined, of):
            if not any(graph.readers.get(name) for name in left.output):
                graph.drop(left)
                graph.index()


def open_windows(graph: Graph) -> None:
    """Average pools whose windows may reach over the border (`ceil_mode`) count real values alone:
    what they counted as padding is padded before.

    The result is the same, and ONNX Runtime's integer kernel, which divides such windows by the
    wrong number where padding counts, is right then (`integer_kernels` finds it).
    """
    for node in list(graph.nodes):
        if node.op_type != "AveragePool" or not attribute(node, "ceil_mode", 0):
            continue
        if not attribute(node, "count_include_pad", 0):
            continue
        pads = [int(pad) for pad in attribute(node, "pads", [])]
        kept = [a for a in node.attribute if a.name not in ("pads", "count_include_pad")]
        del node.attribute[:]
        node.attribute.extend(kept)
        if any(pads):
            half = len(pads) // 2
            amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
            out = f"{node.output[0]}_padded"
            stored = graph.store(f"{out}_amounts", amounts)
            new = helper.make_node("Pad", [node.input[0], stored], [out], name=out)
            graph.nodes.insert(graph.nodes.index(node), new)
            node.input[0] = out
    graph.index()


_MOVED = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
"""What ONNX Runtime moves a DequantizeLinear behind."""


def keep_weights_float(graph: Graph) -> int:
    """Layers in floating point between two roundings stay that; the number of DequantizeLinear
    nodes that were added.

    ONNX Runtime rounds the weights of such a layer by itself, to one scale for the whole tensor
    (its transformer WeightBiasQuantization). It leaves those alone whose input has a scale for each
    channel: here the same one for all.
    """
    added = 0
    for node in list(graph.nodes):
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        weight = graph.value(node.input[1])
        if weight is None or weight.dtype != np.float32 or not _is_rounded_next(graph, node):
            continue
        way = [node]
        before = graph.maker.get(node.input[0])
        while before is not None and before.op_type in _MOVED:
            way.append(before)
            before = graph.maker.get(before.input[0])
        if before is None or before.op_type != "DequantizeLinear" or len(before.input) < 3:
            continue
        scale, zero = (graph.value(name) for name in before.input[1:3])
        if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
            continue
        channels = _inputs(node, weight) if len(way) == 1 else _second(graph, before.output[0])
        if channels is None or channels < 2:
            continue
        added += _own_way(graph, way, before, scale, zero, channels)
    return added


def _own_way(
    graph: Graph, way: list[onnx.NodeProto], rounded: onnx.NodeProto, scale: Array, zero: Array,
    channels: int,
) -> int:  # fmt: skip
    """Give the first of `way` a DequantizeLinear of its own, with a scale for each channel, through
    nodes of its own; whether another still needs the old one."""
    name = f"{way[0].output[0]}_input"
    made = onnx.NodeProto()
    made.CopyFrom(rounded)
    made.name, made.output[0] = name, name
    made.input[1] = graph.store(f"{name}_scale", np.full(channels, scale.item(), scale.dtype))
    made.input[2] = graph.store(f"{name}_zero_point", np.full(channels, zero.item(), zero.dtype))
    kept = [a for a in made.attribute if a.name != "axis"]
    del made.attribute[:]
    made.attribute.extend([*kept, helper.make_attribute("axis", 1)])
    place = graph.nodes.index(rounded) + 1
    graph.nodes.insert(place, made)
    for number, node in enumerate(reversed(way[1:])):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = made.output[0]
        copy.name = copy.output[0] = f"{name}_{number}"
        graph.nodes.insert(graph.nodes.index(node) + 1, copy)
        made = copy
    way[0].input[0] = made.output[0]
    graph.index()
    for node in (*way[1:], rounded):
        if graph.readers.get(node.output[0]) or node.output[0] in graph.outputs:
            return 1
        graph.drop(node)
        graph.index()
    return 0


def _is_rounded_next(graph: Graph, node: onnx.NodeProto) -> bool:
    after = graph.only_reader(node.output[0])
    while after is not None and after.op_type in ("Relu", "Clip"):
        after = graph.only_reader(after.output[0])
    return after is not None and after.op_type == "QuantizeLinear"


def _inputs(node: onnx.NodeProto, weight: Array) -> int:
    """Channels that a layer reads."""
    if node.op_type == "ConvTranspose":
        return int(weight.shape[0])
    if node.op_type == "Conv":
        return int(weight.shape[1]) * int(attribute(node, "group", 1))
    return int(weight.shape[1 if attribute(node, "transB", 0) else 0])


def _second(graph: Graph, name: str) -> int | None:
    """The second dimension of a tensor, where the file has it."""
    for info in graph.graph.value_info:
        shape = info.type.tensor_type.shape.dim
        if info.name == name and len(shape) > 1:
            return shape[1].dim_value or None
    return None


def _rank_is(graph: Graph, name: str, rank: int) -> bool:
    for info in graph.graph.value_info:
        if info.name == name:
            return len(info.type.tensor_type.shape.dim) == rank
    maker = graph.maker.get(name)
    return maker is not None and maker.op_type in ("Conv", "MaxPool", "AveragePool")


def name_quantised(graph: Graph) -> None:
    """Name each quantised tensor after the module that rounds it, for whoever reads the file."""
    taken = {name for node in graph.nodes for name in (*node.input, *node.output)}
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scopes = next(
            (p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]"
        )
        modules = [s.strip(" '\"") for s in scopes.strip("[]").split(",")]
        owner = next((s for s in reversed(modules[:-1]) if s), "")
        base = owner.removeprefix("model.").replace(".", "_")
        if not base or node.output[0] in graph.outputs:
            continue
        base += "_int" if node.op_type == "QuantizeLinear" else ""
        name, number = base, 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        old, node.output[0] = node.output[0], name
        graph.maker[name] = node
        graph.redirect(old, name)
