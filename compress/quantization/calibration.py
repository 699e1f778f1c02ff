"""Calibration: sets the ranges of a prepared network from a few batches of images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from vcompress.bench.errors import UserError

from .graph import constant
from .observers import Observer, find_range, weight_scale
from .quantizers import ActivationQuantizer, WeightQuantizer, weight_of


def activation_quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """Name of the quantised tensor -> its quantiser."""
    return {
        name.replace("activation_quantizers.", ""): module
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer)
    }


def weight_quantizers(model: nn.Module) -> list[tuple[Tensor, WeightQuantizer]]:
    """Each weight with its quantiser: in a layer, or in the graph behind a parameter or what is
    computed from parameters."""
    found = [pair for pair in map(weight_of, model.modules()) if pair is not None]
    for graph in model.modules():
        for node in graph.graph.nodes if isinstance(graph, fx.GraphModule) else ():
            if node.op == "call_module":
                module = graph.get_submodule(str(node.target))
                if isinstance(module, WeightQuantizer):
                    found.append((constant(graph, node.all_input_nodes[0]), module))
    return found


def set_weight_scales(model: nn.Module) -> None:
    """Steps of the weights, from the weights themselves."""
    for weight, quantizer in weight_quantizers(model):
        quantizer.set_scale(weight_scale(weight, quantizer.axis, quantizer.high))


def calibrate(model: nn.Module, batches: Iterable[Tensor], observer: str = "mse") -> None:
    """Set every step of a prepared network; all tensors are observed in floating point, at once.

    Args:
        model: from `prepare`.
        batches: images, each [B, C, H, W] float32, preprocessed. Read once.
        observer: how a range is chosen: `mse`, `minmax`, `percentile` or `entropy`.

    Raises:
        UserError: no images, a value that is not finite, or an unknown observer.
    """
    quantizers = activation_quantizers(model)
    set_weight_scales(model)
    was_training, before = model.training, {n: q.enabled for n, q in quantizers.items()}
    weights = [quantizer for _, quantizer in weight_quantizers(model)]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    images = 0
    model.eval()
    for name, quantizer in quantizers.items():
        quantizer.observer = Observer(name)
    try:
        for weight in weights:
            weight.enabled = False
        with torch.no_grad():
            for index, batch in enumerate(batches):
                if not bool(torch.isfinite(batch).all()):
                    raise UserError(
                        f"calibration batch {index} has values that are not finite. "
                        "Expected preprocessed images; look for broken files."
                    )
                images += batch.shape[0]
                model(batch.to(device))
        if images == 0:
            raise UserError("calibration got no images; at least one is needed, 100 are better.")
        found = {
            name: _scale_and_zero(quantizer, observer) for name, quantizer in quantizers.items()
        }
    finally:
        model.train(was_training)
        for weight in weights:
            weight.enabled = True
        for name, quantizer in quantizers.items():
            quantizer.observer, quantizer.enabled = None, before[name]
    for name, (scale, zero_point) in found.items():
        quantizers[name].set_range(scale, zero_point)


def _scale_and_zero(quantizer: ActivationQuantizer, observer: str) -> tuple[float, int]:
    if quantizer.fixed is not None:
        return quantizer.fixed
    assert quantizer.observer is not None
    if not quantizer.observer.samples:
        return 1.0 / quantizer.high, 0  # never reached by the forward pass
    values = quantizer.observer.values()
    low, high = find_range(values, observer, (1 << quantizer.bits) - 1, not quantizer.unsigned)
    if not quantizer.unsigned:
        reach = max(-low, high)
        return (reach or 1.0) / quantizer.high, 0
    if quantizer.relu:
        low = 0.0
    scale = (high - low) / quantizer.high
    if scale <= 0:  # a dead ReLU: any step does, and one of ordinary size breaks nothing
        return 1.0 / quantizer.high, 0
    return scale, max(0, min(quantizer.high, round(-low / scale)))
