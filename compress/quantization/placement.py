"""Put quantisers into a network, and say where in JSON, so that it can be built again."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError, nearest

from .calibration import activation_quantizers, set_weight_scales
from .graph import activations_of, attribute, kind, leaf, qualified_name, source
from .quantizers import (
    ActivationQuantizer,
    WeightQuantizer,
    weight_of,
    with_quantised_weight,
)
from .targets import Plan, load_target
from .trace import record_shapes, shape, trace

FORMAT = 1
_HOLDER = "activation_quantizers"
_NO_OPERATION = frozenset(
    {"input", "output", "get_attr", "reshape", "identity", "bn", "relu", "relu6", "maxpool"}
)


def prepare(
    model: nn.Module,
    example: Tensor,
    *,
    target: str,
    weight_bits: int = 8,
    keep_float: tuple[str, ...] = (),
) -> fx.GraphModule:
    """A copy of `model` with quantisers where `target` wants them; calibrate it next.

    Args:
        model: a float network.
        example: [1, C, H, W], to learn the shapes.
        target: the name of a table of rules, see `target_names()`.
        weight_bits: 2 to 8. 7 avoids 16-bit saturation on x86 without VNNI.
        keep_float: paths of modules, or patterns (`layer4.*`), that stay in floating point.

    Raises:
        UserError: an unknown target or name, weight bits out of range, an untraceable network.
    """
    rules = load_target(target)
    if not 2 <= weight_bits <= 8:
        raise UserError(f"weight_bits = {weight_bits}: expected 2 to 8.")
    if is_quantized(model):
        raise UserError("the network is quantised already; start from the float network.")
    for name, parameter in model.named_parameters():
        if parameter.dtype is not torch.float32:
            raise UserError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}: quantisation starts "
                "from float32. Call model.float() first, and cast what is left afterwards."
            )
    graph = trace(model)
    record_shapes(graph, example)
    nodes = list(graph.graph.nodes)
    used = dict.fromkeys(keep_float, False)

    def keep(node: fx.Node) -> str | None:
        name = qualified_name(node)
        for pattern in keep_float:
            inside = name == pattern or name.startswith(f"{pattern}.")
            if inside or fnmatchcase(name, pattern):
                used[pattern] = True
                return "asked for"
        return None

    plan = rules.place(nodes, keep)
    for pattern, found in used.items():
        if not found:
            names = [qualified_name(n) for n in nodes]
            raise UserError(
                f"keep_float: {pattern!r} is no module of the network." + nearest(pattern, names)
            )
    if not plan.weights:
        raise UserError(
            f"nothing to quantise for {target}: "
            + ("; ".join(f"{n} ({r})" for n, (_, r) in plan.kept.items()) or "no layer was found")
        )
    _explain_the_rest(nodes, plan)
    description = _describe(nodes, plan, target, weight_bits, rules.UNSIGNED, rules.REPEAT)
    _apply(graph, description)
    set_weight_scales(graph)
    for quantizer in activation_quantizers(graph).values():
        quantizer.enabled = False
    return graph


def restore(model: nn.Module, placement: dict[str, Any]) -> fx.GraphModule:
    """The quantised structure again, from the float network and `placement(...)` alone.

    The keys of the state_dict are those of the network that `placement` was taken from; load it
    next.

    Raises:
        UserError: the placement is of another network or of a newer format.
    """
    if placement.get("format") != FORMAT:
        raise UserError(
            f"quantisation placement of format {placement.get('format')!r}, expected {FORMAT}. "
            "Was the bundle written by a newer version?"
        )
    graph = trace(model)
    _apply(graph, placement)
    return graph


def placement(model: nn.Module) -> dict[str, Any]:
    """What `restore` needs, JSON-able; `float` lists what stayed in floating point and why.

    Raises:
        UserError: the network is not from `prepare` or `restore`.
    """
    found = getattr(model, "meta", {}).get("quantization")
    if not isinstance(found, dict):
        raise UserError("the network is not quantised: prepare it first.")
    return found


def is_quantized(module: nn.Module) -> bool:
    """Whether a network carries quantisers."""
    kinds = (ActivationQuantizer, WeightQuantizer)
    return any(isinstance(m, kinds) for m in module.modules())


def _explain_the_rest(nodes: Iterable[fx.Node], plan: Plan) -> None:
    for node in nodes:
        what, name = kind(node), qualified_name(node)
        if name in plan.kept or what in _NO_OPERATION or node in plan.weights:
            continue
        if what in ("add", "mul", "cat", "avgpool", "global_pool", "matmul"):
            if not any(source(n) in plan.activations for n in activations_of(node)):
                plan.keep(node, what, "not among quantised operations")
            continue
        made = shape(node)
        if made is not None and len(made) > 1:
            plan.keep(node, what, "no rule of the target quantises it")


def _describe(
    nodes: list[fx.Node], plan: Plan, target: str, bits: int, unsigned: bool, repeat: bool
) -> dict[str, Any]:
    activations = []
    for node in nodes:
        if node not in plan.activations:
            continue
        entry: dict[str, Any] = {"node": node.name, "quantizer": plan.activations[node].name}
        alone = list(plan.activations.values()).count(plan.activations[node]) == 1
        if kind(node) in ("relu", "relu6") and alone:
            entry["relu"] = True
            if kind(node) == "relu6":
                entry["limit"] = 6.0
        activations.append(entry)
    moved = [
        n
        for n in nodes
        if repeat
        and kind(n) in ("reshape", "maxpool")
        and source(n) in plan.activations
        and shape(n) is not None
    ]
    return {
        "format": FORMAT,
        "target": target,
        "weight_bits": bits,
        "unsigned": unsigned,
        "activations": activations,
        "weights": [{"node": n.name, "layer": qualified_name(n)} for n in plan.weights],
        "repeat": [{"node": n.name, "quantizer": plan.activations[source(n)].name} for n in moved],
        "float": [
            {"name": name, "operation": what, "reason": reason}
            for name, (what, reason) in plan.kept.items()
        ],
    }


def _apply(graph: fx.GraphModule, description: dict[str, Any]) -> None:
    """Change the graph in place as a description says."""
    nodes = {node.name: node for node in graph.graph.nodes}
    wanted = [e["node"] for e in (*description["activations"], *description["weights"])]
    missing = [name for name in wanted if name not in nodes]
    if missing:
        raise UserError(
            f"the placement names {missing[0]!r}, which the network does not have"
            f" ({len(missing)} of {len(wanted)} names are missing). Is it the same architecture?"
        )
    device = next((p.device for p in graph.parameters()), torch.device("cpu"))
    graph.add_module(_HOLDER, nn.Module())
    for entry in description["activations"]:
        if entry["node"] == entry["quantizer"]:
            quantizer = ActivationQuantizer(
                unsigned=description["unsigned"],
                relu=entry.get("relu", False),
                limit=entry.get("limit"),
            )
            graph.add_submodule(f"{_HOLDER}.{entry['node']}", quantizer.to(device))
    for entry in description["activations"]:
        _insert(graph, nodes[entry["node"]], entry)
    for entry in description["weights"]:
        _quantise_weight(graph, nodes[entry["node"]], description["weight_bits"])
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
    graph.meta["quantization"] = description


def _insert(graph: fx.GraphModule, node: fx.Node, entry: dict[str, Any]) -> None:
    users = list(node.users)
    with graph.graph.inserting_after(node):
        rounded = graph.graph.call_module(f"{_HOLDER}.{entry['quantizer']}", (node,))
    for user in users:
        user.replace_input_with(node, rounded)
    if entry.get("relu"):  # the quantiser clips at zero: the ReLU is left without a reader
        rounded.replace_input_with(node, node.all_input_nodes[0])


def _quantise_weight(graph: fx.GraphModule, node: fx.Node, bits: int) -> None:
    module = leaf(node)
    if module is not None:
        if weight_of(module) is None:  # called twice: quantised already
            graph.add_submodule(str(node.target), with_quantised_weight(module, bits))
        return
    place = node.kwargs.get("weight", node.args[1] if len(node.args) > 1 else None)
    assert isinstance(place, fx.Node)
    name = f"weight_quantizers.{place.name}"
    if any(str(user.target) == name for user in place.users):
        return
    weight = attribute(graph, str(place.target))
    graph.add_submodule(name, WeightQuantizer(weight.shape[0], bits=bits).to(weight.device))
    with graph.graph.inserting_after(place):
        rounded = graph.graph.call_module(name, (place,))
    for user in list(place.users):
        if user is not rounded:
            user.replace_input_with(place, rounded)
