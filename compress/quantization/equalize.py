"""Cross-layer equalisation: brings the channels of one tensor to similar ranges, exactly.

Nagel et al., "Data-free quantization through weight equalization and bias correction" (2019),
arXiv:1906.04721. A tensor has one step for all its channels, so a channel whose values are a
hundredth of another's keeps a hundredth of the levels. Dividing what a layer makes by s_c and
multiplying the weights that read it by s_c changes nothing in the network and evens the channels
out.

Three things differ from the paper. Weights here have a step for each output channel, so the range
of the first layer's weights does not matter, only that of the tensor between: it is measured on
images. Where the reader is a depthwise convolution, its weights have a step for each channel as
well and take on any factor at no cost; so the tensor is evened out wholly, and in part where the
reader is dense. And a residual stream is one chain: a channel is divided by one factor in every
layer that adds to the stream, and multiplied by it in every layer that reads a sum. There the mean
over the tensors is evened out, each in shares of its widest channel.

The factor goes into the gain and offset of the BN. A ReLU6 is kept, so no channel is lowered there,
and one is raised only as far as it stays below 6 with room to spare; others stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from vcompress.export.onnx_export import logits_of

from .chains import Chain, find_chains
from .trace import record_shapes, trace

MARGIN = 1.5
"""Room under the 6 of a ReLU6 for images that calibration has not seen,"""
DEVIATIONS = 8.0
"""and, by the gain and offset of the BN before it, for values so many deviations from the mean."""
TOWARDS_TENSOR = 0.7
"""Power of the ratio of a channel's range in the tensor to its range in dense weights behind it.
0.5, the square root of the paper, evens out both alike; but the weights have a step for each output
channel, and the tensor has one. With 0.7 a trained MobileNetV2 kept most of its SQNR."""
MOST = 1024.0
"""No channel is moved by more."""
EXACT = 1e-5
"""Largest change of the logits, relative to the largest one, that is put down to rounding."""


def equalize(model: nn.Module, images: Sequence[Tensor]) -> tuple[nn.Module, list[str]]:
    """A copy of a float network with even channels, and the layers whose outputs were moved.

    The function stays the same to 1e-5 on `images`; chains that would change it are left alone.

    Args:
        model: a float network.
        images: batches [B, C, H, W] float32, as for calibration.

    Raises:
        UserError: the network cannot be traced.
    """
    graph = trace(model).eval()
    record_shapes(graph, images[0][:1])
    chains = find_chains(graph)
    with torch.no_grad():
        tensors = {name: c.axis for c in chains for name in c.tensors}
        reach, logits = _reach(graph, tensors, images)
        equal = copy.deepcopy(model).eval()
        moved = _move(equal, chains, reach)
        if moved and not _gives(equal, logits, images):
            # What calibration does not show, a rounding that the network magnifies, or a gate.
            equal, moved = copy.deepcopy(model).eval(), []
    return equal.train(model.training), moved


def _move(model: nn.Module, chains: Sequence[Chain], reach: dict[str, Tensor]) -> list[str]:
    """Change the network in place, chain by chain; the names of the layers moved."""
    moved = []
    for chain in chains:
        readers = [model.get_submodule(name) for name in chain.readers]
        writers = [model.get_submodule(w.bn or w.layer) for w in chain.writers]
        factor = _factor(chain, readers, writers, [reach[name] for name in chain.tensors])
        if bool((factor == 1).all()):
            continue
        for made_by in writers:
            weight: Any = made_by.weight
            weight.div_(factor.view(-1, *[1] * (weight.dim() - 1)))
            if isinstance(made_by.bias, Tensor):
                made_by.bias.div_(factor)
        for reader in readers:
            _scale_inputs(reader, factor)
        moved += [w.layer for w in chain.writers]
    return moved


def _ceiling(made_by: nn.Module, reach: Tensor) -> Tensor:
    """[C] what a channel does not pass on other images either, as far as one can say."""
    ceiling = reach * MARGIN
    if isinstance(made_by, nn.modules.batchnorm._BatchNorm):
        ceiling = torch.maximum(ceiling, made_by.bias + DEVIATIONS * made_by.weight.abs())
    return ceiling


def _factor(
    chain: Chain, readers: Sequence[nn.Module], writers: Sequence[nn.Module],
    reaches: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """[C] what each channel is divided by; 1 where it stays.

    Args:
        reaches: of each tensor, [C]: the largest magnitude of each channel on the images.
    """
    reach = torch.stack([r / r.max().clamp_min(1e-12) for r in reaches]).mean(0)
    reach = reach * max(float(r.max()) for r in reaches)
    alive = reach > 0
    if not bool(alive.any()):
        return torch.ones_like(reach)
    full = reach.max()
    if all(_is_depthwise(r) for r in readers):
        factor = reach / full
    else:
        wanted = torch.stack([_input_reach(r) for r in readers]).amax(0)
        alive = alive & (wanted > 0)
        share = (reach / full) / (wanted / wanted.max().clamp_min(1e-12)).clamp_min(1e-12)
        factor = share.clamp_min(1e-12) ** TOWARDS_TENSOR
        factor = factor / (factor[alive].max() if bool(alive.any()) else 1.0)
        # The widest channel sets the step: dividing by more than its share would widen another.
        factor = torch.maximum(factor, reach / full)
    if chain.limited:
        # At 6 a channel may be cut off: only 1 is exact. Below, it may be raised up to 6.
        factor = torch.maximum(factor, _ceiling(writers[0], reach) / 6.0).clamp(max=1.0)
    factor = factor.clamp(1 / MOST, MOST)
    return torch.where(alive, factor, torch.ones_like(factor))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _input_reach(module: nn.Module) -> Tensor:
    """[C] how large the weights of each input channel are, beside the rows that they stand in."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    weight = weight.detach()
    rows = weight.abs().flatten(1).amax(1).clamp_min(1e-12)
    relative = weight.abs() / rows.view(-1, *[1] * (weight.dim() - 1))
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    each = relative.flatten(2).amax(2) if relative.dim() > 2 else relative  # [O, I / groups]
    return each.view(groups, -1, each.shape[1]).amax(1).reshape(-1)


def _scale_inputs(module: nn.Module, factor: Tensor) -> None:
    """Multiply the weights that read channel c by factor[c], in place."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    per_group = factor.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    shape = (weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
    weight.mul_(per_group.reshape(shape))


def _reach(
    graph: fx.GraphModule, tensors: dict[str, int], images: Sequence[Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Largest magnitude of each channel of the named tensors, whose axis of channels is given, and
    the logits of each batch."""
    found: dict[str, Tensor] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            made = super().run_node(n)
            if n.name in tensors:
                axis = tensors[n.name] % made.dim()
                others = [d for d in range(made.dim()) if d != axis]
                seen = made.abs().amax(others) if others else made.abs()
                before = found.get(n.name)
                found[n.name] = seen if before is None else torch.maximum(before, seen)
            return made

    device = next((p.device for p in graph.parameters()), torch.device("cpu"))
    logits = [logits_of(Watch(graph).run(batch.to(device))) for batch in images]
    return found, logits


def _gives(model: nn.Module, logits: Sequence[Tensor], images: Sequence[Tensor]) -> bool:
    """Whether a network in evaluation gives these logits."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for batch, wanted in zip(images, logits, strict=True):
        found = logits_of(model(batch.to(device)))
        if float((wanted - found).abs().max()) > EXACT * max(1.0, float(wanted.abs().max())):
            return False
    return True
