"""Walks a prepared network with its float and its quantised values side by side.

Post-training repairs compare a layer's float output with the quantised one, mend the layer, and go
on to the next one with the mended values. Here all batches go through the graph together, node by
node, so each operation runs once for each network however many layers are mended.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .graph import bn_after, leaf
from .quantizers import ActivationQuantizer, WeightQuantizer, weight_of

PIXELS = 64 * 224 * 224
"""Most pixels of the images that are held at once: 3,136 images of 32 px, 64 of 224 px."""


@dataclass(frozen=True)
class Site:
    """One call of a layer with a quantised weight."""

    name: str
    layer: nn.Module
    bn: nn.modules.batchnorm._BatchNorm | None
    """The batch norm that alone reads its output."""
    quantised_inputs: list[Tensor]
    float_outputs: list[Tensor]
    """Before the BN."""


Mend = Callable[[Site], None]
"""Changes the layer or its BN in place; the quantised output is computed afterwards."""


def walk(model: fx.GraphModule, images: Sequence[Tensor], mend: Mend) -> None:
    """Call `mend` for every quantised layer of a calibrated network, in order of execution.

    A layer that is called twice is handed over at its first call.
    """
    was_training = model.training
    model.eval()
    plain = copy.deepcopy(model)  # what is mended must not move what it is held against
    for module in plain.modules():
        if isinstance(module, (ActivationQuantizer, WeightQuantizer)):
            module.enabled = False
    batches = fewer(images)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    last_use: dict[fx.Node, fx.Node] = {}
    for node in model.graph.nodes:
        for read in node.all_input_nodes:
            last_use[read] = node
    values: dict[fx.Node, tuple[list[Any], list[Any]]] = {}
    seen: set[str] = set()

    def run(runner: fx.Interpreter, node: fx.Node, which: int) -> list[Any]:
        made: list[Any] = []
        for index, batch in enumerate(batches):
            pick = lambda n, i=index: values[n][which][i]  # noqa: E731
            args = fx.node.map_arg(node.args, pick)
            kwargs = fx.node.map_arg(node.kwargs, pick)
            if node.op == "placeholder":
                made.append(batch.to(device))
            elif node.op == "output":
                made.append(args[0])
            else:
                made.append(getattr(runner, node.op)(node.target, args, kwargs))
        return made

    runners = fx.Interpreter(plain), fx.Interpreter(model)
    try:
        with torch.no_grad():
            for node in model.graph.nodes:
                float_outputs = run(runners[0], node, 0)
                site = _site(model, node)
                if site is not None and site[0] not in seen:
                    seen.add(site[0])
                    read = node.all_input_nodes[0]
                    mend(Site(*site, values[read][1], float_outputs))
                values[node] = (float_outputs, run(runners[1], node, 1))
                for read in node.all_input_nodes:
                    if last_use[read] is node:
                        del values[read]
    finally:
        model.train(was_training)


def fewer(images: Sequence[Tensor]) -> list[Tensor]:
    """As many of the batches as may be held at once, at least one image."""
    kept: list[Tensor] = []
    room = PIXELS
    for batch in images:
        count = min(len(batch), max(room // (batch.shape[-1] * batch.shape[-2]), not kept))
        if count <= 0:
            break
        kept.append(batch[:count])
        room -= count * batch.shape[-1] * batch.shape[-2]
    return kept


def _site(
    model: fx.GraphModule, node: fx.Node
) -> tuple[str, nn.Module, nn.modules.batchnorm._BatchNorm | None] | None:
    if node.op != "call_module":
        return None
    layer = model.get_submodule(str(node.target))
    if weight_of(layer) is None:
        return None
    after = bn_after(node)
    bn = None if after is None else leaf(after)
    assert bn is None or isinstance(bn, nn.modules.batchnorm._BatchNorm)
    return str(node.target), layer, bn
