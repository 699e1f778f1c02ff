"""Prune channels until a share of the cost remains, and recover by distillation after each step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import at_least, share

from ..training.config import Context, TaughtConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import nn

    from ..pruning.importance import Loss
    from ..pruning.latency import LatencyReport

BATCHES = 16
"""Of training images, for criteria that take gradients and for the statistics of batch norms."""
LEAST_BATCH = 16
"""Images that the statistics of batch norms are taken over at once, at least."""
_BUDGETS = "macs, params, channels, latency and latency_ms"


@dataclass(frozen=True, kw_only=True)
class Config(TaughtConfig):
    """Options of `vcompress prune`. Give exactly one of macs, params, channels, latency and
    latency_ms; drop_blocks may stand alone."""

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
    """The same, in milliseconds."""
    threads: Annotated[int | None, at_least(1)] = None
    """Threads that latency is measured with; by default the runtime's own choice."""
    latency_table: str = ""
    """File that keeps the latencies of layers for other runs; by default in the work folder."""
    importance: Literal["l1", "l2", "bn", "lamp", "taylor", "hessian", "distillation", "random"] = (
        "bn"
    )
    """What ranks channels: the scale of their batch norm (bn; their weights where there is none),
    the size of their weights (l1, l2, lamp), or their effect on the loss (taylor, hessian) or on
    the recovery loss (distillation)."""
    scope: Literal["local", "kind", "global"] = "local"
    """Same share in every layer, ranked among layers of one kind, or ranked among all."""
    round_to: Annotated[int, at_least(1)] = 8
    """Widths are multiples of it."""
    max_channel_ratio: Annotated[float, share(zero=False, one=False)] = 0.95
    """Largest share of a layer's channels that may go."""
    protect: tuple[str, ...] = ()
    """Layers that keep their width: paths (all inside is meant), or patterns such as 'layer4.*'."""
    drop_blocks: Annotated[int, at_least(0)] = 0
    """Residual blocks or transformer layers that go whole before any channel does."""
    steps: Annotated[int, at_least(1)] = 1
    """Prune in so many steps, each by the same factor, with training in between."""
    step_epochs: Annotated[int, at_least(0)] = 2
    """Passes over the images after each step but the last, which gets `epochs`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {
            name: value
            for name, value in (
                ("macs", self.macs),
                ("params", self.params),
                ("channels", self.channels),
                ("latency", self.latency),
                ("latency_ms", self.latency_ms),
            )
            if value is not None
        }
        if len(given) != 1 and not (self.drop_blocks and not given):
            got = ", ".join(given) or "none"
            raise UserError(f"Give exactly one of {_BUDGETS}; got {got}.")
        for name, value in given.items():
            if name == "latency_ms" and value > 0:
                continue
            if not 0 < value < 1:
                raise UserError(
                    f"{name} = {value}: expected the share that remains, between 0 and 1."
                )
        if self.steps > 1 and (self.latency is not None or self.latency_ms is not None):
            raise UserError(f"steps = {self.steps}: pruning to a latency takes one step.")

    def budget(self) -> tuple[str, float]:
        """What is limited and the share that remains; an empty name where only blocks go."""
        for name in ("macs", "params", "channels", "latency", "latency_ms"):
            value: float | None = getattr(self, name)
            if value is not None:
                return name, value
        return "", 1.0


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Prune `model` in place in `config.steps` steps and train it after each."""
    import copy
    from dataclasses import replace

    from ..distillation.losses import from_teacher
    from ..models.cost import count_macs, count_parameters
    from ..pruning import drop_blocks, prune
    from ..pruning.batch_norm import recalibrate
    from ..training.loop import fit
    from ..training.schedule import within

    refuse_quantised(model)
    refuse_sparse(model)
    teacher = context.teacher if context.teacher is not None else copy.deepcopy(model)
    recovery = from_teacher(teacher, config)

    example = context.data.example
    before = {"macs": count_macs(model, example), "params": count_parameters(model)}
    what, share = config.budget()
    dropped = []
    if config.drop_blocks:
        dropped = drop_blocks(
            model, example, context.data.images("train", 256), config.drop_blocks, config.protect
        )
    remains = 1.0
    if what in before:
        now = count_macs(model, example) if what == "macs" else count_parameters(model)
        remains = now / before[what]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    left_alone: dict[str, str] = {}
    steps: list[dict[str, Any]] = []
    measured: dict[str, float] = {}
    if what.startswith("latency"):
        timed = _to_latency(model, config, context, recovery)
        first = {layer.name: layer.before for layer in timed.prune.layers}
        last = {layer.name: layer.after for layer in timed.prune.layers}
        left_alone = timed.prune.left_alone
        remains = timed.measured_ms / timed.before_ms
        measured = {
            "latency_before_ms": timed.before_ms,
            "latency_predicted_ms": timed.predicted_ms,
            "latency_measured_ms": timed.measured_ms,
        }
    total = (config.steps - 1) * config.step_epochs + config.epochs
    for step in range(1, config.steps + 1):
        wanted = share ** (step / config.steps) / remains
        if what in ("macs", "params", "channels") and wanted < 1.0:
            report = prune(
                model,
                example,
                macs=wanted if what == "macs" else None,
                params=wanted if what == "params" else None,
                channels=wanted if what == "channels" else None,
                scope=config.scope,
                **_choice(config, context, recovery),
            )
            remains *= report.achieved[what]
            for layer in report.layers:
                first.setdefault(layer.name, layer.before)
                last[layer.name] = layer.after
            left_alone = report.left_alone
        # An image alone has no variance: small batches would leave no statistics at all.
        recalibrate(model, context.data.sample(max(config.batch_size, LEAST_BATCH), BATCHES))
        final = step == config.steps
        training = fit(
            model,
            within(
                config if final else replace(config, epochs=config.step_epochs),
                (step - 1) * config.step_epochs,
                total,
            ),
            context,
            recovery,
            name=f"prune-{step}of{config.steps}",
        )
        steps.append({"remains": remains, "training": training})
    after = {"macs": count_macs(model, example), "params": count_parameters(model)}
    achieved = {name: after[name] / before[name] for name in before}
    if what == "channels" or measured:
        achieved["latency" if measured else what] = remains
    return Outcome(
        model,
        {
            "asked": {what: share} if what else {},
            "achieved": achieved,
            "before": before,
            "after": after,
            "layers": [[name, first[name], last[name]] for name in first],
            "left_alone": left_alone,
            **measured,
            "dropped_blocks": [[block.path, block.effect] for block in dropped],
            "steps": steps,
        },
    )


def _to_latency(
    model: nn.Module, config: Config, context: Context, recovery: Loss
) -> LatencyReport:
    """Prune by measured latencies of the float network in ONNX Runtime on this machine."""
    from vcompress.bench.timing.environment import preflight
    from vcompress.export.to_onnx import export

    from ..pruning.latency import prune_to_latency
    from ..pruning.latency_table import LatencyTable, vbench_measure, vbench_ratio

    example = context.data.example
    shape = tuple(example.shape[1:])
    environment = {
        "runtime": "onnxruntime", "device": "cpu", "threads": config.threads,
        **preflight().comparable(),
    }  # fmt: skip
    file = (
        Path(config.latency_table) if config.latency_table else (context.workdir / "latencies.json")
    )
    table = LatencyTable.open(
        file,
        vbench_measure(0.3, "cpu", config.threads),
        environment,
        vbench_ratio(4.0, "cpu", config.threads),
    )
    return prune_to_latency(
        model,
        example,
        table,
        lambda network, path: export(network, path, ("input", shape), metadata={}),
        latency=config.latency,
        latency_ms=config.latency_ms,
        **_choice(config, context, recovery),
    )


def _choice(config: Config, context: Context, recovery: Loss) -> dict[str, Any]:
    """How channels are chosen, whatever is limited: options of `prune` and `prune_to_latency`."""
    on_recovery = config.importance == "distillation"
    on_loss = on_recovery or config.importance in ("taylor", "hessian")
    return {
        "importance": "taylor" if on_recovery else config.importance,
        "round_to": config.round_to,
        "max_channel_ratio": config.max_channel_ratio,
        "protect": config.protect,
        "batches": context.data.sample(config.batch_size, BATCHES) if on_loss else None,
        "loss": recovery if on_recovery else None,
        "seed": context.seed,
    }


def refuse_quantised(model: nn.Module) -> None:
    """Widths are cut in floating point: scales of a quantised network would not follow."""
    import torch

    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("vcompress.compress.quantization") or isinstance(
            module, torch.ao.quantization.FakeQuantizeBase
        ):
            raise UserError(
                f"This network is quantised already ({path} is a {kind.__name__}): prune first, "
                "then quantise."
            )


def refuse_sparse(model: nn.Module) -> None:
    """Cutting input channels would move the zeros of 2:4 sparsity out of their fours."""
    from ..pruning.sparsity import sparse_layers

    layers = sparse_layers(model)
    if layers:
        raise UserError(
            f"This network is 2:4 sparse ({layers[0]} and {len(layers) - 1} more): prune channels "
            "first, then sparsify."
        )


STAGE = Stage(
    Config,
    apply,
    roles=(Role("teacher", Kind.OPTIONAL), Role("model", Kind.TRAINED, changed=True)),
)
