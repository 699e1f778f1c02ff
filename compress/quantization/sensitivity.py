"""Sensitivity: quantises one layer at a time and measures SQNR and lost accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION, load
from vcompress.bench.tasks.scoring import evaluated
from vcompress.bench.working import working
from vcompress.export import parity
from vcompress.export.modes import evaluating
from vcompress.export.onnx_export import logits_of

from .. import quantization
from ..models.faithful import tensors_of
from .graph import leaf, qualified_name
from .ptq import Scheme, quantised
from .quality import rounding_only
from .quantizers import ActivationQuantizer, WeightQuantizer, weight_of

Batches = Sequence[tuple[Tensor, Tensor]]
"""(images [B, C, H, W], targets [B, ...]) of one split, small enough to stay in memory."""
Logits = npt.NDArray[Any]
HELD_BYTES = 512 * 2**20
"""What the nodes of a graph make, that is held while its layers are ranked."""
MOST_OUTPUTS = 4096
"""Outputs of an image of which those of every layer are held."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantising one layer alone, its weight and its input, does to the network."""

    layer: str
    sqnr_db: float
    """SQNR of the logits against the float network's; infinite where nothing changed."""
    lost_accuracy: float
    """Float accuracy less the accuracy with this layer quantised: points (0 to 100), or the unit of
    a metric that is no share."""


@dataclass(frozen=True)
class KeepFloat:
    """Layers to leave in floating point so that a budget of accuracy is held."""

    layers: tuple[str, ...]
    drop: float
    """Points lost with the other layers quantised."""
    drop_of_all: float
    """Points lost with every layer quantised."""
    reached: bool


def sensitivity(
    model: nn.Module, batches: Batches, task: str = CLASSIFICATION
) -> list[LayerSensitivity]:
    """Every quantised layer of a calibrated `model`, the most sensitive first.

    The ranking is by SQNR; lost accuracy of one layer is often zero on a small split. Accuracy is
    the first metric of `task`: in points where it is a share, else in its own unit.

    Raises:
        UserError: the model is not quantised or there are no images.
    """
    quantization.placement(model)
    layers = dict(_layers(model))
    if isinstance(model, fx.GraphModule) and _may_be_kept(model, batches):
        reference, of_each = _from_each_on(model, batches, layers)
    else:
        reference, of_each = _one_by_one(model, batches, layers)
    lost = _lost_against(reference, batches, task)
    found = [
        LayerSensitivity(name, parity.compare(reference, logits).sqnr_db, lost(logits))
        for name, logits in of_each
    ]
    return sorted(found, key=lambda s: s.sqnr_db)


def _one_by_one(
    model: nn.Module, batches: Batches, layers: Mapping[str, list[nn.Module]]
) -> tuple[Logits, Iterator[tuple[str, Logits]]]:
    """The float logits, and each layer with those where it alone is rounded."""
    with rounding_only(model):
        reference = _logits(model, batches)

    def each() -> Iterator[tuple[str, Logits]]:
        with working("ranking layers", len(layers)) as work:
            for name, members in layers.items():
                with rounding_only(model, members):
                    logits = _logits(model, batches)
                yield name, logits
                work.done()

    return reference, each()


def _from_each_on(
    model: fx.GraphModule, batches: Batches, layers: Mapping[str, list[nn.Module]]
) -> tuple[Logits, Iterator[tuple[str, Logits]]]:
    """The same, with what stands before a layer computed once: half of the work for all layers."""
    nodes = list(model.graph.nodes)
    starts = {name: _first(nodes, members) for name, members in layers.items()}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    whole: list[Logits] = []
    found: dict[str, list[Logits]] = {name: [] for name in layers}
    at_once = _at_once(model, batches[0][0])
    parts = [part for images, _ in batches for part in torch.split(images, at_once)]
    with evaluating(model), torch.no_grad(), working("ranking layers", len(parts)) as work:
        for part in parts:
            with rounding_only(model):
                keeping = _Keeping(model)
                whole.append(_array(keeping.run(part.to(device))))
            for name, members in layers.items():
                known = {node: keeping.values[node] for node in nodes[: starts[name]]}
                with rounding_only(model, members):
                    run = fx.Interpreter(model)
                    found[name].append(_array(run.run(part.to(device), initial_env=known)))
            work.done()
    return np.concatenate(whole), ((name, np.concatenate(v)) for name, v in found.items())


class _Keeping(fx.Interpreter):
    """Runs a graph and keeps what every node makes; no node of a trace changes it in place."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = made = super().run_node(n)
        return made


def _first(nodes: Sequence[fx.Node], members: Sequence[nn.Module]) -> int:
    """The place of the first node that one of these quantisers is part of."""
    return next(
        place for place, module in enumerate(map(leaf, nodes))
        if module is not None and any(m in members for m in module.modules())
    )  # fmt: skip


def _at_once(model: fx.GraphModule, images: Tensor) -> int:
    """Images of which everything that the nodes make may be held, at least one."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.no_grad():
        keeping = _Keeping(model)
        keeping.run(images[:1].to(device))
    made = (t for v in keeping.values.values() for t in tensors_of(v))
    return max(1, HELD_BYTES // max(1, sum(t.nbytes for t in made)))


def _may_be_kept(model: fx.GraphModule, batches: Batches) -> bool:
    """Whether the outputs of all layers may be held: those of maps may not."""
    if not batches:
        return False
    return parity.run_torch(model, batches[0][0][:1]).size <= MOST_OUTPUTS


def _array(out: Any) -> Logits:
    made: Logits = logits_of(out).float().cpu().numpy()
    return made


def choose_keep_float(
    model: nn.Module,
    example: Tensor,
    calibration: Sequence[Tensor],
    batches: Batches,
    scheme: Scheme,
    *,
    max_drop: float,
    task: str = CLASSIFICATION,
) -> KeepFloat:
    """The fewest layers of the ranking to keep in float, so that PTQ loses at most `max_drop`.

    The worst layers are kept, 1, 2, 4, ... of them until the budget holds, then bisected; those
    that `scheme` keeps come on top. `batches` should be the validation split, never the test split.

    Args:
        example: [1, C, H, W], to learn the shapes.
        calibration: batches [B, C, H, W] that set the ranges.
        max_drop: points of accuracy, 0.5 means from 90.0 % to 89.5 %.
    """
    lost = _lost_against(_logits(model, batches), batches, task)

    def drop(network: nn.Module) -> float:
        return lost(_logits(network, batches))

    everything = quantised(model, example, calibration, scheme)
    whole = drop(everything)
    if whole <= max_drop:
        return KeepFloat((), whole, whole, True)
    ranking = [s.layer for s in sensitivity(everything, batches, task)]
    most = len(ranking) - 1  # with none left there is nothing to quantise
    tried: dict[int, float] = {0: whole}

    def tried_drop(count: int) -> float:
        if count not in tried:
            kept = replace(scheme, keep_float=(*scheme.keep_float, *ranking[:count]))
            tried[count] = drop(quantised(model, example, calibration, kept))
        return tried[count]

    enough = next((n for n in (*_doubling(most), most) if tried_drop(n) <= max_drop), None)
    if enough is None:
        count = min(tried, key=lambda n: (tried[n], n))
        return KeepFloat(tuple(ranking[:count]), tried[count], whole, False)
    short = max(n for n in tried if n < enough)
    while enough - short > 1:
        middle = (enough + short) // 2
        if tried_drop(middle) <= max_drop:
            enough = middle
        else:
            short = middle
    return KeepFloat(tuple(ranking[:enough]), tried[enough], whole, True)


def _doubling(most: int) -> Iterator[int]:
    count = 1
    while count < most:
        yield count
        count *= 2


def _layers(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Layer -> the quantisers of its weight and of its input."""
    for path, graph in model.named_modules():
        if not isinstance(graph, fx.GraphModule):
            continue
        wrapped = quantization.placement(graph).get("wrapped", False)
        for node in graph.graph.nodes:
            weight = _weight_quantizer(node)
            if weight is None:
                continue
            inner = "" if wrapped else qualified_name(node)
            name = ".".join(filter(None, (path, inner))) or node.name
            rounding = _input_quantizer(node)
            yield name, [weight] if rounding is None else [weight, rounding]


def _weight_quantizer(node: fx.Node) -> WeightQuantizer | None:
    """The quantiser of a layer's weight, or of a weight that is a parameter of the graph."""
    module = leaf(node)
    found = None if module is None else weight_of(module)
    if found is not None:
        return found[1]
    inputs = [leaf(read) for read in node.all_input_nodes]
    return next((m for m in inputs if isinstance(m, WeightQuantizer)), None)


def _input_quantizer(node: fx.Node) -> ActivationQuantizer | None:
    """The nearest rounding before the first input of a node."""
    before: Any = node.all_input_nodes[0]
    while before.all_input_nodes:
        module = leaf(before)
        if isinstance(module, ActivationQuantizer):
            return module
        before = before.all_input_nodes[0]
    return None


def _logits(model: nn.Module, batches: Batches) -> Logits:
    if not batches:
        raise UserError("sensitivity needs images: the split is empty.")
    return np.concatenate([parity.run_torch(model, images) for images, _ in batches])


def _lost_against(reference: Logits, batches: Batches, task: str) -> Callable[[Logits], float]:
    """How much worse other logits are: points (0 to 100) of a share, else the metric's own unit."""
    judge = load(task)
    metric = judge.metrics[0]
    targets = np.concatenate([targets.numpy() for _, targets in batches])
    whole = evaluated(judge, reference, targets).value()

    def lost(logits: Logits) -> float:
        return metric.points(metric.loss(whole, evaluated(judge, logits, targets).value()))

    return lost
