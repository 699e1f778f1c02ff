"""Puts quantisers into a network, and records their places as JSON to build it again."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError
from vcompress.export.folding import folded

from ..models.head import carry_head
from ..models.patterns import check_patterns, matches
from .calibration import activation_quantizers, set_weight_scales
from .gates import GatedActivation
from .graph import (
    activations_of,
    before_zeros,
    called_weight,
    constant,
    kind,
    leaf,
    qualified_name,
    source,
)
from .in_place import CHANGES_INPUT
from .parts import prepare_children, put, record_inputs, submodule, trace_network, traceable_form
from .quality import check_prepared
from .quantizers import ActivationQuantizer, WeightQuantizer, weight_of, with_quantised_weight
from .targets import Plan, Target, load_target
from .trace import Untraceable, inside, record_shapes, shape, trace

FORMAT = 1
_HOLDER = "activation_quantizers"
_GATES = "rounded_gates"
_PLACEMENT = "_quantization_placement"
"""Attribute of a network in parts; a graph has the same in `meta`."""
_NO_OPERATION = frozenset(
    {"input", "output", "get_attr", "reshape", "identity", "bn", "relu", "relu6", "maxpool", "pad"}
)


def prepare(
    model: nn.Module,
    example: Tensor,
    *,
    target: str,
    weight_bits: int = 8,
    keep_float: tuple[str, ...] = (),
) -> nn.Module:
    """A copy of `model` with quantisers where `target` wants them; calibrate it next.

    A network that can be traced becomes an `fx.GraphModule`. Of one that cannot, the largest parts
    that can are quantised; `placement(...)["float"]` names the rest and what stopped the tracer.

    Args:
        model: a float network.
        example: [1, C, H, W], to learn the shapes.
        target: the name of a table of rules, see `target_names()`.
        weight_bits: 2 to 8. 7 avoids 16-bit saturation on x86 without VNNI.
        keep_float: paths of modules, or patterns (`layer4.*`), that stay in floating point.

    Raises:
        UserError: an unknown target or name, weight bits out of range, or nothing to quantise.
        NotTheSame: the network that was traced computes something else.
    """
    wanted = load_target(target)
    if not 2 <= weight_bits <= 8:
        raise UserError(f"weight_bits = {weight_bits}: expected 2 to 8.")
    check_float(model)
    model = folded(model)
    job = _Job(wanted, weight_bits, keep_float)
    made = _prepare(model, (example,), "", job)
    check_patterns("keep_float", keep_float, [*dict(model.named_modules()), *job.names])
    if isinstance(made, str):
        raise UserError(f"nothing to quantise for {target}: {made}")
    _hold_image_step(made)
    set_weight_scales(made)
    for quantizer in activation_quantizers(made).values():
        quantizer.enabled = False
    check_prepared(model, made, (example,))
    carry_head(model, made)
    return made


@dataclass
class _Job:
    """What is asked, and the names of all nodes so far."""

    target: Target
    weight_bits: int
    keep_float: tuple[str, ...]
    names: list[str] = field(default_factory=list)

    def keep(self, name: str) -> str | None:
        """Why a node is to stay in floating point, given its path in the whole network."""
        return "asked for" if matches(name, self.keep_float) else None


def _prepare(
    model: nn.Module, inputs: tuple[Tensor, ...], prefix: str, job: _Job
) -> nn.Module | str:
    """A quantised copy of the network, or of the part at `prefix`; or why there is nothing."""
    form = traceable_form(model)
    try:
        traced = trace_network(form, inputs, whole=not prefix)
    except Untraceable as error:
        return _in_parts(model, inputs, prefix, job, str(error))
    graph = traced.graph
    if prefix and graph.meta[CHANGES_INPUT]:
        return "it changes its input in place, which may be read outside of it"
    record_shapes(graph, *inputs)
    nodes = list(graph.graph.nodes)
    dot = f"{prefix}." if prefix else ""

    def full(node: fx.Node) -> str:
        return prefix if form is not model else f"{dot}{qualified_name(node)}"

    job.names += [full(n) for n in nodes]
    live = _reached(nodes)

    def keep(node: fx.Node) -> str | None:
        if node not in live:
            return job.keep(full(node)) or "made of constants: it is folded"
        by_image = kind(node) in ("conv", "linear") and called_weight(node) in live
        return job.keep(full(node)) or ("its weight is made of the images" if by_image else None)

    plan = job.target.place(nodes, keep)
    _explain_the_rest([node for node in nodes if node in live], plan)
    parts: dict[str, nn.Module] = {}
    called = record_inputs(graph, inputs) if traced.leaves else {}
    for path, reason in traced.leaves.items():
        given = called.get(inside(path), "it is never called")
        sub = graph.get_submodule(inside(path))
        made = (
            given if isinstance(given, str) else _in_parts(sub, given, f"{dot}{path}", job, reason)
        )
        plan.kept[path] = (type(sub).__name__, reason)
        if not isinstance(made, str):
            parts[path] = made
    if not plan.weights and not parts:
        return "; ".join(f"{n} ({r})" for n, (_, r) in plan.kept.items()) or "no layer was found"
    description = _describe(nodes, plan, job.target, job.weight_bits)
    if form is not model:
        description["wrapped"] = True
    if traced.sizes is not None:
        description["sizes"] = list(traced.sizes)
    if len(inputs) > 1:
        description["inputs"] = len(inputs)
    if traced.leaves:
        description["leaves"] = sorted(traced.leaves)
        _add_parts(description, parts)
        for path, part in parts.items():
            put(graph, inside(path), part)
    _apply(graph, description)
    return graph


def _reached(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that depend on the network's input."""
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _in_parts(
    model: nn.Module, inputs: tuple[Tensor, ...], prefix: str, job: _Job, reason: str
) -> nn.Module | str:
    """A copy of a network that cannot be traced, with its children quantised."""
    dot = f"{prefix}." if prefix else ""
    made, parts, kept = prepare_children(
        model, inputs, dot, lambda child, given, path: _prepare(child, given, path, job)
    )
    if not parts:
        return "; ".join([reason, *(f"{name} ({why})" for name, why in kept.items())])
    description = {
        "format": FORMAT,
        "target": job.target.name,
        "weight_bits": job.weight_bits,
        "unsigned": job.target.unsigned,
        "graph": False,
        "activations": [],
        "weights": [],
        "repeat": [],
        "float": [
            {"name": prefix or type(model).__name__, "operation": "forward", "reason": reason},
            *({"name": n, "operation": "module", "reason": why} for n, why in kept.items()),
        ],
    }
    _add_parts(description, parts)
    vars(made)[_PLACEMENT] = description
    return made


def _add_parts(description: dict[str, Any], parts: dict[str, nn.Module]) -> None:
    description["parts"] = {path: placement(part) for path, part in parts.items()}
    for path, part in description["parts"].items():
        inner = part["float"]
        whole = part.get("graph", True)  # others name their own with the whole path already
        description["float"] += [
            {**e, "name": f"{path}.{e['name']}"} if whole else e for e in inner
        ]


def count_quantised(placement: dict[str, Any]) -> tuple[int, int]:
    """Layers with a quantised weight and activations that are rounded, parts included."""
    inner = [count_quantised(part) for part in placement.get("parts", {}).values()]
    return (
        len(placement["weights"]) + sum(layers for layers, _ in inner),
        len(placement["activations"]) + sum(tensors for _, tensors in inner),
    )


def _hold_image_step(model: nn.Module) -> None:
    """The step of the images stays as calibrated: they do not change in training.

    Learning it takes the gradient of the images, for which the first layer would make one more
    convolution in each step: 40 ms of 590 for ResNet-18 at 64 px.
    """
    if isinstance(model, fx.GraphModule):
        for node in model.graph.find_nodes(op="placeholder"):
            for user in node.users:
                if user.op == "call_module" and str(user.target).startswith(f"{_HOLDER}."):
                    model.get_submodule(str(user.target)).requires_grad_(False)


def restore(model: nn.Module, placement: dict[str, Any]) -> nn.Module:
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
    model = folded(model)
    made = _restore(model, placement)
    _hold_image_step(made)
    carry_head(model, made)
    return made


def _restore(model: nn.Module, placement: dict[str, Any]) -> nn.Module:
    parts: dict[str, Any] = placement.get("parts", {})
    if not placement.get("graph", True):
        whole = copy.deepcopy(model)
        for path, part in parts.items():
            put(whole, path, _restore(submodule(whole, path), part))
        vars(whole)[_PLACEMENT] = placement
        return whole
    leaves = frozenset(placement.get("leaves", ()))
    sizes = tuple(placement.get("sizes", ())) or None
    graph = trace(traceable_form(model), leaves, placement.get("inputs", 1), sizes)
    for path, part in parts.items():
        put(graph, inside(path), _restore(submodule(graph, inside(path)), part))
    _apply(graph, placement)
    return graph


def placement(model: nn.Module) -> dict[str, Any]:
    """What `restore` needs, JSON-able; `float` lists what stayed in floating point and why.

    Raises:
        UserError: the network is not from `prepare` or `restore`.
    """
    found = vars(model).get(_PLACEMENT)
    if isinstance(model, fx.GraphModule):
        found = vars(model)["meta"].get("quantization")
    if not isinstance(found, dict):
        raise UserError("the network is not quantised: prepare it first.")
    return found


def target_of(model: nn.Module) -> Target | None:
    """What a network was quantised for; None of a float one.

    Raises:
        UserError: it was quantised for a target that is not known here.
    """
    return load_target(placement(model)["target"]) if is_quantized(model) else None


def check_float(model: nn.Module) -> None:
    """Raise a UserError where a network is quantised already, or not in float32."""
    if is_quantized(model):
        raise UserError("the network is quantised already; start from the float network.")
    for name, parameter in model.named_parameters():
        if parameter.dtype is not torch.float32:
            raise UserError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}: quantisation starts "
                "from float32. Call model.float() first, and cast what is left afterwards."
            )


def is_quantized(module: nn.Module) -> bool:
    """Whether a network carries quantisers."""
    kinds = (ActivationQuantizer, WeightQuantizer)
    return any(isinstance(m, kinds) for m in module.modules())


def _explain_the_rest(nodes: Iterable[fx.Node], plan: Plan) -> None:
    for node in nodes:
        what, name = kind(node), qualified_name(node)
        if name in plan.kept or what in _NO_OPERATION or node in plan.weights or node in plan.gates:
            continue
        if what in ("add", "mul", "cat", "avgpool", "global_pool", "matmul"):
            if not any(source(n) in plan.activations for n in activations_of(node)):
                plan.keep(node, what, "not among quantised operations")
            continue
        made = shape(node)
        if made is not None and len(made) > 1:
            plan.keep(node, what, "no rule of the target quantises it")


def _describe(nodes: list[fx.Node], plan: Plan, target: Target, bits: int) -> dict[str, Any]:
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
        if _stands_between(n, target)
        and source(n) is not n
        and source(n) in plan.activations
        and shape(n) is not None
    ]
    return {
        "format": FORMAT,
        "target": target.name,
        "weight_bits": bits,
        "unsigned": target.unsigned,
        "activations": activations,
        "weights": [{"node": n.name, "layer": qualified_name(n)} for n in plan.weights],
        "gates": [{"node": node.name, "kind": what} for node, what in plan.gates.items()],
        "repeat": [{"node": n.name, "quantizer": plan.activations[source(n)].name} for n in moved],
        "float": [
            {"name": name, "operation": what, "reason": reason}
            for name, (what, reason) in plan.kept.items()
        ],
    }


def _stands_between(node: fx.Node, target: Target) -> bool:
    """Whether what a node moves is rounded again behind it, in the same steps, which changes no
    value: a runtime then moves the integers. Zeros become a convolution's own padding."""
    if kind(node) == "pad":
        folded = before_zeros(node) is not node and all(kind(user) == "conv" for user in node.users)
        return not folded
    return target.repeat and kind(node) in ("reshape", "maxpool")


def _apply(graph: fx.GraphModule, description: dict[str, Any]) -> None:
    """Change the graph in place as a description says."""
    nodes = {node.name: node for node in graph.graph.nodes}
    gates = description.get("gates", [])  # older placements have none
    wanted = [e["node"] for e in (*description["activations"], *description["weights"], *gates)]
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
    for entry in gates:
        _round_gate(graph, nodes[entry["node"]], GatedActivation(entry["kind"]).to(device))
    for entry in description["activations"]:
        _insert(graph, nodes[entry["node"]], entry)
    for entry in description["weights"]:
        _quantise_weight(graph, nodes[entry["node"]], description["weight_bits"])
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    graph.delete_all_unused_submodules()
    graph.meta["quantization"] = description


def _round_gate(graph: fx.GraphModule, node: fx.Node, gated: GatedActivation) -> None:
    """Let `gated` stand for an activation; the node keeps its name."""
    path = f"{_GATES}.{node.name}"
    graph.add_submodule(path, gated)
    node.args, node.kwargs = (node.all_input_nodes[0],), {}
    node.op, node.target = "call_module", path


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
    place = called_weight(node)
    assert place is not None
    name = f"weight_quantizers.{place.name}"
    if any(str(user.target) == name for user in place.users):
        return
    weight = constant(graph, place)
    graph.add_submodule(name, WeightQuantizer(weight.shape[0], bits=bits).to(weight.device))
    with graph.graph.inserting_after(place):
        rounded = graph.graph.call_module(name, (place,))
    for user in list(place.users):
        if user is not rounded:
            user.replace_input_with(place, rounded)
