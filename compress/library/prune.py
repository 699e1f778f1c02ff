"""`compress.prune`: channels go, in place, until a cost is within a budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import none_given, to_cut
from vcompress.export.library import answer

from ..pruning.batch_norm import BATCHES, LEAST_BATCH, recalibrate
from ..pruning.importance import NEEDS_BATCHES, Importance
from ..pruning.latency import prune_to_latency
from ..pruning.latency_table import open_table
from ..pruning.prune import PruneReport, Scope, onnx_export
from ..pruning.prune import prune as cut
from ..pruning.refusals import refuse_quantised, refuse_sparse
from ..training.loss import as_loss
from .loaders import Batches, Transform, batches, labelled, nothing


def prune(
    net: nn.Module,
    example: Tensor,
    budget: str | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    data: Batches | None = None,
    transform: Transform | None = None,
    importance: Importance = "bn",
    loss: Callable[..., Any] | None = None,
    output: str | None = None,
    scope: Scope = "local",
    round_to: int = 8,
    max_channel_ratio: float = 0.95,
    protect: tuple[str, ...] = (),
    threads: int = 1,
    seed: int = 0,
) -> PruneReport:
    """Remove whole channels of a float network, in place, until its cost is within a budget.

    Train it afterwards: accuracy that is lost comes back in your own loop. Make the optimiser anew,
    its moments have the old shapes. Inputs and outputs keep their shapes; `requires_grad` and the
    mode of training stay.

    Args:
        net: of one input. What it returns may be a tensor, a tuple or a dictionary.
        example: one preprocessed input, `[1, C, H, W] float32`.
        budget: such as "macs<=0.5", "params<=2e6", "latency_ms<=4" or "size_mb<=3"; give it or one
            of the next five.
        macs, params, channels, latency: the share that remains, between 0 and 1. Latency is that of
            one image in ONNX Runtime on this machine's CPU, measured, which takes minutes.
        latency_ms: the latency that remains, milliseconds.
        data: batches of training images, up to 16 of which are read. With them the statistics of
            batch norms are estimated again, without which a pruned network is at chance until it is
            trained. `taylor` and `hessian` take gradients on them and need targets.
        transform: from a batch of `data` to its images, or to (images, targets).
        importance: what ranks channels: `bn`, `l1`, `l2`, `lamp`, `taylor`, `hessian`, `random`;
            `vcompress.compress.pruning.importance` names the papers.
        loss: of outputs and targets, for the two that take gradients; default: cross entropy. A
            `Distiller` serves too.
        output: of a network that returns a dictionary, the name of what the loss takes; default:
            `out`, else the first tensor.
        scope: how widths are shared out: `local` the same share everywhere, `kind` by rank among
            layers of one kind, `global` among all.
        round_to: widths are multiples of it.
        max_channel_ratio: largest share of a layer's channels that may go.
        protect: layers that keep their width: paths, or patterns such as "layer4.*".
        threads: with which latency is measured.
        seed: of the criterion `random`.

    Returns:
        what was asked and achieved, MACs and parameters before and after, every layer's width, and
        why the rest was left alone.

    Raises:
        UserError: a budget that cannot be met, a network that is quantised or 2:4 sparse already or
            cannot be traced, an example that does not fit, a loader that gives nothing, a loss that
            is no scalar. The network is then as it was.
    """
    answer(net, example, output)
    refuse_quantised(net)
    refuse_sparse(net)
    asked = to_cut(
        budget, macs=macs, params=params, channels=channels, latency=latency, latency_ms=latency_ms
    )
    if asked is None:
        raise none_given("macs", "params", "channels", "latency", "latency_ms")
    on_loss = importance in NEEDS_BATCHES
    if on_loss and data is None:
        raise UserError(f"importance = {importance!r} takes gradients: give data with targets.")
    given: list[tuple[Tensor, Any]] = []
    if data is not None:
        given = list(
            labelled(data, transform, BATCHES)
            if on_loss
            else itertools.islice(batches(data, transform), BATCHES)
        )
        if not given:
            raise nothing()
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    image = example[:1].detach().to(device)
    options: dict[str, Any] = {
        "importance": importance, "round_to": round_to, "max_channel_ratio": max_channel_ratio,
        "protect": protect, "batches": given if on_loss else None, "seed": seed,
        "loss": as_loss(loss or nn.CrossEntropyLoss(), output) if on_loss else None,
    }  # fmt: skip
    export = onnx_export(image, output=output)
    if asked.kind == "latency_ms":
        table = open_table(None, threads)
        timed = prune_to_latency(net, image, table, export, asked, **options)
        report = replace(
            timed.prune,
            achieved={**timed.prune.achieved, "latency": timed.measured_ms / timed.before_ms},
            latency_ms=(timed.before_ms, timed.measured_ms),
        )
    else:
        report = cut(net, image, asked, scope=scope, export=export, **options)
    return replace(report, batch_norms=recalibrate(net, _joined(given)))


def _joined(given: list[tuple[Tensor, Any]]) -> list[tuple[Tensor, Any]]:
    """Batches of at least `LEAST_BATCH` images: one alone has no variance."""
    found: list[tuple[Tensor, Any]] = []
    waiting: list[Tensor] = []
    for images, _ in given:
        waiting.append(images)
        if sum(map(len, waiting)) >= LEAST_BATCH:
            found.append((torch.cat(waiting), None))
            waiting = []
    if waiting and not found:
        found.append((torch.cat(waiting), None))
    return found
