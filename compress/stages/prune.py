"""Prune channels until a share of the cost remains, and recover by distillation after each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vcompress.bench.errors import UserError
from vcompress.bench.gates.limits import Budget, none_given, to_cut
from vcompress.bench.ranges import at_least, share

from ..training.config import Context, TaughtConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import nn

    from ..pruning.blocks import DroppedBlock
    from ..pruning.budget import Export
    from ..pruning.importance import Loss
    from ..pruning.prune import PruneOptions, PruneReport

SPARE_BYTES = 2000
"""Bytes of model.onnx for its provenance, which is written after pruning."""


@dataclass(frozen=True, kw_only=True)
class Config(TaughtConfig):
    """Options of `vcompress prune`. Give exactly one of budget, macs, params, channels, latency and
    latency_ms; drop_blocks may stand alone."""

    budget: str | None = None
    """Limit on one cost, such as 'latency_ms<=4', 'macs<=0.5' (a share; 'macs<=2e6' is a count),
    'params<=0.3' or 'size_mb<=3' (of the float32 model.onnx)."""
    macs: float | None = None
    """Share of the multiply-accumulates that remains: 0.5 is half."""
    params: float | None = None
    """Share of the parameters that remains."""
    channels: float | None = None
    """Share of the channels that remains."""
    latency: float | None = None
    """Share of the latency at batch 1 in ONNX Runtime on this machine that remains, of the network
    without its dropped blocks. Takes one step; widths are chosen by measured times, and scope is
    not used."""
    latency_ms: float | None = None
    """Latency at batch 1 in ONNX Runtime on this machine, milliseconds; otherwise as latency."""
    latency_table: str = ""
    """File that keeps the latencies of layers for other runs; by default in the work folder."""
    importance: Literal["l1", "l2", "bn", "lamp", "taylor", "hessian", "distillation", "random"] = (
        "bn"
    )
    """Criterion that ranks channels: the scale of their batch norm (bn; their weights where there
    is none), the size of their weights (l1, l2, lamp), or their effect on the loss (taylor,
    hessian) or on the recovery loss (distillation)."""
    scope: Literal["local", "kind", "global"] = "local"
    """Layers among which channels are ranked. local: the same share goes in every layer; kind:
    among layers of one kind; global: among all."""
    images: str = ""
    """Folder of images without labels, flat or nested, that are trained on in place of those of
    --data: what the float network decides about them stands for their labels."""
    round_to: Annotated[int, at_least(1)] = 8
    """Number whose multiples the widths are, 1 or more."""
    max_channel_ratio: Annotated[float, share(zero=False, one=False)] = 0.95
    """Largest share of a layer's channels that may go, between 0 and 1."""
    protect: tuple[str, ...] = ()
    """Layers that keep their width: paths (all inside is meant), or patterns such as 'layer4.*'."""
    drop_blocks: Annotated[int, at_least(0)] = 0
    """Number of residual blocks or transformer layers that go whole before any channel does."""
    steps: Annotated[int, at_least(1)] = 1
    """Number of pruning steps, each by the same factor, with training in between; 1 or more."""
    step_epochs: Annotated[int, at_least(0)] = 2
    """Passes over the training images after each step but the last, which gets `epochs`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = self.asked()
        if asked is None and not self.drop_blocks:
            raise none_given("macs", "params", "channels", "latency", "latency_ms")
        if self.steps > 1 and asked is not None and asked.kind == "latency_ms":
            raise UserError(f"steps = {self.steps}: pruning to a latency takes one step.")

    def asked(self) -> Budget | None:
        """What the network is cut to; None where only blocks go."""
        return to_cut(
            self.budget, macs=self.macs, params=self.params, channels=self.channels,
            latency=self.latency, latency_ms=self.latency_ms,
        )  # fmt: skip


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Prune `model` in place in `config.steps` steps and train it after each."""
    import copy

    from ..distillation.judged import judged_by
    from ..models.folding import fold_told
    from ..pruning.batch_norm import BATCHES, LEAST_BATCH, recalibrate
    from ..pruning.refusals import refuse_quantised, refuse_sparse
    from ..tasks import training_task
    from ..training.recovery import from_teacher

    refuse_quantised(model)
    refuse_sparse(model)
    fold_told(model, "prune")
    teacher = context.teacher if context.teacher is not None else copy.deepcopy(model)
    if config.images:
        context = replace(context, data=judged_by(teacher, context.data, config.images))
    recovery = from_teacher(teacher, config, training_task(context.data.dataset))

    budget = config.asked()
    before = _costs(model, context)
    whole = _amount(budget, before, model, context)
    share = _share(budget, whole)
    dropped = _drop_blocks(model, config, context)
    remains = 1.0  # of channels and latency once the blocks are gone, of all else from the start
    if dropped and whole:
        remains = _amount(budget, _costs(model, context), model, context) / whole
    cuts: list[_Cut] = []
    steps: list[dict[str, Any]] = []
    for step in range(1, config.steps + 1):
        wanted = share ** (step / config.steps) / remains
        if budget is not None and wanted < 1.0:
            cuts.append(_cut(model, budget, wanted, whole * remains, config, context, recovery))
            remains *= cuts[-1].remains
        # An image alone has no variance: small batches would leave no statistics at all.
        recalibrate(model, context.data.sample(max(config.batch_size, LEAST_BATCH), BATCHES))
        training = _recover(model, config, context, recovery, step)
        steps.append({"remains": remains, "training": training})
    report = cuts[-1].report if cuts else None
    after = _costs(model, context, report.macs[1] if report else None)
    achieved = {name: after[name] / before[name] for name in before}
    if budget is not None and budget.kind not in before:
        achieved[budget.share_name] = remains
    return Outcome(
        model,
        {
            "asked": {budget.name: budget.value} if budget is not None else {},
            "achieved": achieved,
            "before": before,
            "after": after,
            **_layers(cuts),
            "dropped_blocks": [[block.path, block.effect] for block in dropped],
            "steps": steps,
        },
    )


@dataclass(frozen=True)
class _Cut:
    """One step's removal of channels."""

    report: PruneReport
    remains: float
    """Share of what is limited that it left."""
    measured: dict[str, float]
    """By their keys in the history."""


def _costs(model: nn.Module, context: Context, macs: int | None = None) -> dict[str, int]:
    """Multiply-accumulates, where they were not counted yet, and parameters."""
    from ..models.cost import count_macs, count_parameters

    if macs is None:
        macs = count_macs(model, context.data.example)
    return {"macs": macs, "params": count_parameters(model)}


def _amount(
    budget: Budget | None, costs: dict[str, int], model: nn.Module, context: Context
) -> float:
    """What `model` has of the limited quantity; 0 where its share needs no count here."""
    from ..pruning.budget import file_bytes

    if budget is not None and budget.kind == "size_mb":
        return file_bytes(model, _exporter(context))
    return float(costs.get(budget.kind, 0)) if budget is not None else 0.0


def _share(budget: Budget | None, whole: float) -> float:
    """The share of `whole` that may remain after the last step; 0 for ms, taken as they are."""
    from ..pruning.budget import in_whole_units, within_already

    if budget is None:
        return 1.0
    if budget.relative:
        return budget.value
    if budget.kind == "latency_ms":
        return 0.0
    limit = in_whole_units(budget) - (SPARE_BYTES if budget.kind == "size_mb" else 0)
    if limit >= whole:
        raise within_already(budget, whole)
    return limit / whole


def _drop_blocks(model: nn.Module, config: Config, context: Context) -> list[DroppedBlock]:
    from ..pruning import drop_blocks

    if not config.drop_blocks:
        return []
    images = context.data.images("train", 256)
    return drop_blocks(model, context.data.example, images, config.drop_blocks, config.protect)


def _cut(
    model: nn.Module, budget: Budget, share: float, amount: float, config: Config,
    context: Context, recovery: Loss,
) -> _Cut:  # fmt: skip
    """Remove channels of `model` until `share` of what `budget` limits remains; `amount` is what
    the network has of it."""
    from ..pruning import prune

    options = _choice(config, context, recovery)
    if budget.kind == "latency_ms":
        return _to_latency(model, budget, config, context, options)
    step = replace(budget, value=share, relative=True)
    of_size = budget.kind == "size_mb"
    report = prune(
        model, context.data.example, step, scope=config.scope,
        export=_exporter(context) if of_size else None, size_bytes=amount if of_size else None,
        **options,
    )  # fmt: skip
    measured = {"size_measured_mb": report.size_mb[1]} if report.size_mb else {}
    return _Cut(report, report.achieved[budget.share_name], measured)


def _to_latency(
    model: nn.Module, budget: Budget, config: Config, context: Context, options: PruneOptions
) -> _Cut:
    """Prune by measured latencies of the float network in ONNX Runtime on this machine."""
    from ..pruning.latency import prune_to_latency
    from ..pruning.latency_table import open_table
    from ..pruning.prune import onnx_export

    example = context.data.example
    file = (
        Path(config.latency_table) if config.latency_table else (context.workdir / "latencies.json")
    )
    table = open_table(file, context.threads)
    timed = prune_to_latency(model, example, table, onnx_export(example), budget, **options)
    measured = {
        "latency_before_ms": timed.before_ms,
        "latency_predicted_ms": timed.predicted_ms,
        "latency_measured_ms": timed.measured_ms,
    }
    return _Cut(timed.prune, timed.measured_ms / timed.before_ms, measured)


def _exporter(context: Context) -> Export:
    """Writes model.onnx with the metadata that is known before the bundle is."""
    from vcompress.export.onnx_properties import properties

    from ..pruning.prune import onnx_export

    data = context.data
    return onnx_export(data.example, properties("", data.classes, data.preprocess, ()))


def _recover(
    model: nn.Module, config: Config, context: Context, recovery: Loss, step: int
) -> dict[str, Any]:
    """Train after a step, on that step's part of the one schedule."""
    from ..training.loop import fit
    from ..training.schedule import within

    final = step == config.steps
    return fit(
        model,
        within(
            config if final else replace(config, epochs=config.step_epochs),
            (step - 1) * config.step_epochs,
            (config.steps - 1) * config.step_epochs + config.epochs,
        ),
        context,
        recovery,
        name=f"prune-{step}of{config.steps}",
    )


def _layers(cuts: list[_Cut]) -> dict[str, Any]:
    """The widths before the first step and after the last one, and what was measured."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    measured: dict[str, float] = {}
    for cut in cuts:
        for layer in cut.report.layers:
            first.setdefault(layer.name, layer.before)
            last[layer.name] = layer.after
        measured |= cut.measured
    return {
        "layers": [[name, first[name], last[name]] for name in first],
        "left_alone": cuts[-1].report.left_alone if cuts else {},
        **measured,
    }


def _choice(config: Config, context: Context, recovery: Loss) -> PruneOptions:
    """How channels are chosen, whatever is limited: options of `prune` and `prune_to_latency`."""
    from ..pruning.batch_norm import BATCHES
    from ..pruning.importance import NEEDS_BATCHES

    on_recovery = config.importance == "distillation"
    on_loss = on_recovery or config.importance in NEEDS_BATCHES
    return {
        "importance": "taylor" if config.importance == "distillation" else config.importance,
        "round_to": config.round_to,
        "max_channel_ratio": config.max_channel_ratio,
        "protect": config.protect,
        "batches": context.data.sample(config.batch_size, BATCHES) if on_loss else None,
        "loss": recovery if on_recovery else _against_targets(context) if on_loss else None,
        "seed": context.seed,
    }


def _against_targets(context: Context) -> Loss:
    """The task's loss, as `pruning.importance` calls it."""
    from ..distillation.losses import total
    from ..tasks import training_task

    task = training_task(context.data.dataset)
    return lambda outputs, _, targets: total(task.loss(outputs, task.tensor(targets)))


STAGE = Stage(
    Config,
    apply,
    roles=(Role("teacher", Kind.OPTIONAL), Role("model", Kind.TRAINED, changed=True)),
    trains=lambda config: not config.images,
    unlabelled=lambda config: "images" if config.images else "",
)
