"""Which layers quantisation hurts: one at a time, by SQNR and by lost accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError

from . import quantization
from .quantization.quantizers import ActivationQuantizer, WeightQuantizer, weight_of

Batches = Sequence[tuple[Tensor, Tensor]]
"""(images [B, C, H, W], labels [B]) of one split, small enough to stay in memory."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What quantising one layer alone, its weight and its input, does to the network."""

    layer: str
    sqnr_db: float
    """Of the logits against those of the float network; infinite where nothing changed."""
    lost_accuracy: float
    """Float accuracy less the accuracy with this layer quantised, in points (0 to 100)."""


@dataclass(frozen=True)
class KeepFloat:
    """Layers to leave in floating point so that a budget of accuracy is held."""

    layers: tuple[str, ...]
    drop: float
    """Points lost with the other layers quantised."""
    drop_of_all: float
    """Points lost with every layer quantised."""
    reached: bool


def sensitivity(model: nn.Module, batches: Batches) -> list[LayerSensitivity]:
    """Every quantised layer of a calibrated `model`, the most sensitive first.

    The ranking is by SQNR; lost accuracy of one layer is often zero on a small split.

    Raises:
        UserError: the model is not quantised or there are no images.
    """
    quantization.placement(model)
    groups = dict(_layers(model))
    with _evaluation(model), _only(model, ()):
        reference = _logits(model, batches)
        labels = torch.cat([labels for _, labels in batches])
        best = _accuracy(reference, labels)
        found = []
        for name, members in groups.items():
            with _only(model, members):
                logits = _logits(model, batches)
            found.append(
                LayerSensitivity(
                    name, _sqnr_db(reference, logits), best - _accuracy(logits, labels)
                )
            )
    return sorted(found, key=lambda s: s.sqnr_db)


def choose_keep_float(
    model: nn.Module,
    example: Tensor,
    calibration: Sequence[Tensor],
    batches: Batches,
    *,
    target: str,
    max_drop: float,
    observer: str = "mse",
    weight_bits: int = 8,
    keep_float: tuple[str, ...] = (),
) -> KeepFloat:
    """The fewest layers of the ranking to keep in float, so that PTQ loses at most `max_drop`.

    The worst layers are kept, 1, 2, 4, ... of them until the budget holds, then bisected. `batches`
    should be the validation split, never the test split.

    Args:
        max_drop: points of accuracy, 0.5 means from 90.0 % to 89.5 %.
    """

    def quantised(kept: tuple[str, ...]) -> nn.Module:
        prepared = quantization.prepare(
            model, example, target=target, weight_bits=weight_bits, keep_float=(*keep_float, *kept)
        )
        quantization.calibrate(prepared, calibration, observer)
        return prepared

    labels = torch.cat([labels for _, labels in batches])
    with _evaluation(model):
        best = _accuracy(_logits(model, batches), labels)

    def drop(network: nn.Module) -> float:
        with _evaluation(network):
            return best - _accuracy(_logits(network, batches), labels)

    everything = quantised(())
    whole = drop(everything)
    if whole <= max_drop:
        return KeepFloat((), whole, whole, True)
    ranking = [s.layer for s in sensitivity(everything, batches)]
    most = len(ranking) - 1  # with none left there is nothing to quantise
    tried: dict[int, float] = {0: whole}

    def tried_drop(count: int) -> float:
        if count not in tried:
            tried[count] = drop(quantised(tuple(ranking[:count])))
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
        if isinstance(graph, fx.GraphModule):
            yield from _layers_of(graph, f"{path}." if path else "")


def _layers_of(model: fx.GraphModule, prefix: str) -> Iterator[tuple[str, list[nn.Module]]]:
    for node in model.graph.nodes:
        if node.op != "call_module":
            continue
        module = model.get_submodule(str(node.target))
        found = weight_of(module)
        if found is None:
            continue
        before: Any = node.all_input_nodes[0]
        while before.all_input_nodes:
            rounding = (
                model.get_submodule(str(before.target)) if before.op == "call_module" else None
            )
            if isinstance(rounding, ActivationQuantizer):
                yield prefix + str(node.target), [found[1], rounding]
                break
            before = before.all_input_nodes[0]
        else:
            yield prefix + str(node.target), [found[1]]


@contextmanager
def _only(model: nn.Module, members: Iterable[nn.Module]) -> Iterator[None]:
    """Only these quantisers round; afterwards all do as before."""
    chosen = {id(m) for m in members}
    all_of_them = [
        m for m in model.modules() if isinstance(m, (ActivationQuantizer, WeightQuantizer))
    ]
    before = [m.enabled for m in all_of_them]
    try:
        for module in all_of_them:
            module.enabled = id(module) in chosen
        yield
    finally:
        for module, enabled in zip(all_of_them, before, strict=True):
            module.enabled = enabled


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _logits(model: nn.Module, batches: Batches) -> Tensor:
    if not batches:
        raise UserError("sensitivity needs images: the split is empty.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        return torch.cat([model(images.to(device)).cpu() for images, _ in batches])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    return 100.0 * float((logits.argmax(1) == labels).float().mean())


def _sqnr_db(reference: Tensor, other: Tensor) -> float:
    error = float((reference - other).double().square().sum())
    if error == 0:
        return float("inf")
    return 10 * float(torch.log10(reference.double().square().sum() / error))
