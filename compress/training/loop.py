"""The only training loop; accelerate spreads it over devices, processes and machines.

Every epoch seeds itself from (seed, epoch) and the learning rate is a function of the step, so the
state after an epoch is only the weights, the averages and the optimiser's moments: a killed run
goes on from there and ends with the weights of an undisturbed one.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vcompress.bench.errors import EnvironmentLacks, UserError, to_install
from vcompress.bench.tasks import load
from vcompress.bench.tasks.metrics import Metric
from vcompress.export.modes import evaluating

from ..distillation.losses import Parts
from ..distillation.teaching import TaughtLoss
from ..models.layout import lay_out
from ..models.outputs import mean_loss
from ..pruning.sparsity import held_sparse
from ..tasks import training_task
from ..tasks.task import TrainingTask
from .config import Context, TrainConfig
from .identity import identity_of, resumed
from .loss import Loss, as_loss
from .optimizer import freeze, optimizer_for
from .processes import process_state
from .progress import EpochProgress, epoch_progress
from .schedule import share_of_peak
from .state import State, save_state
from .trial import Trial, try_out

log = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    config: TrainConfig,
    context: Context,
    loss: Loss | None = None,
    *,
    name: str,
    on_epoch: Callable[[int, nn.Module], None] | None = None,
    on_batch: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    extra_groups: list[dict[str, Any]] | None = None,
    parts: Parts | None = None,
) -> dict[str, Any]:
    """Train `model` in place and leave in it the weights of the best validation epoch.

    Args:
        model: trained where it is moved to by accelerate and handed back on the CPU.
        loss: from outputs and targets to a scalar, such as `nn.CrossEntropyLoss()`, or from
            outputs, images and targets; by default that of the data's task, with label smoothing. A
            `TaughtLoss` may have parameters, which are trained beside the network's and thrown away
            with it. It is told the `Samples` of the batch too, says by `view(epoch)` what epoch's
            augmentation it wants, and by `identity` what must be the same for a resume.
        name: says what is trained, and under `context.workdir` keeps what a resume needs.
        on_epoch: called with (epoch, model) after `model.train()`, for example to freeze norms.
        on_batch: from (model, images, labels) to the images to train on, for example an attack's.
        extra_groups: optimiser groups of parameters that want their own options.
        parts: where `loss` notes what it is the sum of, which the progress then names.

    Returns:
        epochs run, the best epoch (from 1), its validation score in the task's metric, the loss of
        each epoch.

    Raises:
        UserError: a loss that is not finite, or a resume with other options than before.
    """
    accelerator, task = _accelerator(config, context), training_task(context.data.dataset)
    metric = task.deployed.metrics[0]
    taught = loss if isinstance(loss, TaughtLoss) else None
    if loss is not None and taught is None:
        loss = as_loss(loss)
    file = context.workdir / name / "state.safetensors"
    identity = identity_of(model, config, context, name)
    if taught is not None:
        identity["loss"] = json.loads(json.dumps(taught.identity))
    state = resumed(file, identity, context.resume)
    if not context.resume and accelerator.is_main_process:
        shutil.rmtree(file.parent, ignore_errors=True)
    accelerator.wait_for_everyone()

    torch.manual_seed(context.seed)
    if config.epochs == 0:
        return _result(metric, [], 0, None)
    if state is not None and state.finished:
        model.load_state_dict(state.best)
        return _result(metric, state.history, state.best_epoch, state.best_score)

    trial = _rehearsed(model, config, context, name, resumes=state is not None)
    run = _prepare(
        model, config, context, task, loss, state, accelerator, name, extra_groups, trial
    )
    run.on_epoch, run.on_batch = on_epoch, on_batch
    run.parts = parts or (Parts() if taught is None else taught.parts)
    start = len(run.history)
    # Zeros of 2:4 sparsity stay: in their own training, a later fine-tuning and QAT alike.
    with held_sparse(model), epoch_progress(name, config.epochs, run.steps, start) as progress:
        for epoch in range(start, config.epochs):
            mean_loss, rate = _train_epoch(run, epoch, progress)
            score = _judge(run, epoch, mean_loss)
            stopped = bool(
                config.patience and _without_gain(run.history, metric) >= config.patience
            )
            finished = stopped or epoch + 1 == config.epochs
            if accelerator.is_main_process:
                named = run.parts.means(run.steps)
                progress.epoch(epoch, mean_loss, metric.text(score), rate, named)
                _save(run, file, identity, finished)
                accelerator.log({"loss": mean_loss, f"val_{metric.name}": score}, step=epoch)
            if finished:
                break
    _hand_back(run)
    return _result(metric, run.history, run.best_epoch, run.best_score)


@dataclass(kw_only=True)
class _Run:
    """What one training holds, and what has come of it so far."""

    name: str
    config: TrainConfig
    context: Context
    task: TrainingTask
    accelerator: Accelerator
    model: nn.Module
    wrapped: nn.Module
    """`model` as accelerate runs it: on several devices, in mixed precision."""
    taught: TaughtLoss | None
    """The loss where it is one, else None."""
    own: list[nn.Parameter]
    """Parameters of the loss itself."""
    loss: Any
    """As accelerate runs it; None is the task's own."""
    optimizer: Any
    ema: AveragedModel | None
    layout: torch.memory_format
    """Memory format of the kernels and the images."""
    mixes: bool
    """Whether an image's outputs depend on its batch: then it is validated as it ships, alone."""
    frozen: list[nn.Module]
    """Kept in eval mode."""
    learning: list[tuple[nn.Parameter, bool]]
    """Which parameters learnt before this training froze some."""
    own_attributes: set[str]
    """Those of the model before accelerate added some."""
    peaks: list[float]
    """Peak learning rate of each optimiser group."""
    steps: int
    """In one epoch."""
    history: list[dict[str, float]]
    best: dict[str, Tensor]
    best_score: float | None = None
    """The task's metric on the validation images; None before the first epoch."""
    best_epoch: int = 0
    parts: Parts = field(default_factory=Parts)
    """What the loss is the sum of."""
    on_epoch: Callable[[int, nn.Module], None] | None = None
    on_batch: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None


def _rehearsed(
    model: nn.Module, config: TrainConfig, context: Context, name: str, *, resumes: bool
) -> Trial:
    """Try a step, and what comes after the training."""
    mixed = torch.autocast("cpu", torch.bfloat16) if config.precision != "no" else None
    trial, network = try_out(model, context.data, name, mixed)
    if context.rehearse is not None and not resumes:
        images = len(context.data.dataset.splits["train"])
        context.rehearse(network, trial.seconds * images * config.epochs)
    return trial


def _accelerator(config: TrainConfig, context: Context) -> Accelerator:
    """A fresh one for this training's precision and trackers.

    Raises:
        UserError: a batch or data that cannot be divided by the processes.
        EnvironmentLacks: fp16 without a GPU.
    """
    AcceleratorState._reset_state()  # the precision may differ from an earlier stage's
    process_state()
    if config.precision == "fp16" and not torch.accelerator.is_available():
        raise EnvironmentLacks(
            "precision fp16 needs a GPU, and there is none here. Give bf16, or no precision."
        )
    accelerator = Accelerator(
        mixed_precision=config.precision,
        log_with=_trackers(context.track),
        project_dir=str(context.workdir.parent / "tracking"),
    )
    world, images = accelerator.num_processes, len(context.data.dataset.splits["train"])
    if config.batch_size % world:
        raise UserError(f"batch_size {config.batch_size} does not divide by {world} processes.")
    if images < world:
        raise UserError(
            f"{images} training images do not reach for {world} processes. Start fewer."
        )
    return accelerator


def _prepare(
    model: nn.Module, config: TrainConfig, context: Context, task: TrainingTask,
    loss: Loss | None, state: State | None, accelerator: Accelerator, name: str,
    extra_groups: list[dict[str, Any]] | None, trial: Trial,
) -> _Run:  # fmt: skip
    """Everything on its device, with the weights, averages and moments of `state`."""
    taught = loss if isinstance(loss, TaughtLoss) else None
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    frozen = freeze(model, config, len(context.data.classes), context.data.example)
    own = [] if taught is None else [p for p in taught.parameters() if p.requires_grad]
    projections = {"params": own, "weight_decay": config.weight_decay}
    optimizer: Any = optimizer_for(model, config, [*(extra_groups or []), projections])
    ema = None
    if config.ema_decay:
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    best = {k: v.clone() for k, v in model.state_dict().items()}
    if state is not None:
        state.restore(model, ema, optimizer, accelerator.scaler, taught)
        best = state.best

    if context.track:
        folder = context.workdir.name.strip(".").removesuffix(".work")
        accelerator.init_trackers(f"{folder}-{name}", config=_flat(asdict(config)))
    lay_out(model, trial.layout)
    own_attributes = set(vars(model))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if taught is not None:
        taught.to(accelerator.device)
        loss = accelerator.prepare(taught) if own else taught
    if ema is not None:
        ema.to(accelerator.device)
    if context.teacher is not None:
        context.teacher.to(accelerator.device)
    run = _Run(
        name=name, config=config, context=context, task=task, accelerator=accelerator,
        model=model, wrapped=wrapped, taught=taught, own=own, loss=loss, optimizer=optimizer,
        ema=ema, layout=trial.layout, mixes=trial.mixes,
        frozen=frozen, learning=learning, own_attributes=own_attributes,
        peaks=[group["lr"] for group in optimizer.param_groups],
        steps=len(context.data.loader("train", config.batch_size, train=True)),
        history=[], best=best,
    )  # fmt: skip
    if state is not None:
        run.history = list(state.history)
        run.best_score, run.best_epoch = state.best_score, state.best_epoch
    return run


def _train_epoch(run: _Run, epoch: int, progress: EpochProgress) -> tuple[float, float]:
    """One pass over the training images; gives its mean loss and its last learning rate."""
    config, context, accelerator, taught = run.config, run.context, run.accelerator, run.taught
    torch.manual_seed(context.seed * 1_000_003 + epoch)
    loader = context.data.loader(
        "train", config.batch_size, train=True, epoch=epoch, workers=config.workers,
        rank=accelerator.process_index, world=accelerator.num_processes,
        samples=taught is not None, view=None if taught is None else taught.view(epoch),
    )  # fmt: skip
    run.wrapped.train()
    for module in run.frozen:
        module.eval()
    if run.on_epoch is not None:
        run.on_epoch(epoch, run.model)
    total = torch.zeros((), device=accelerator.device)
    for step, batch in enumerate(loader):
        share = share_of_peak(epoch * run.steps + step, run.steps, config)
        for group, peak in zip(run.optimizer.param_groups, run.peaks, strict=True):
            group["lr"] = peak * share
        number = _step(run, epoch, step, batch)
        total += number
        progress.step(epoch, step, number)
    return float(accelerator.reduce(total, "mean")) / run.steps, run.peaks[0] * share


def _step(run: _Run, epoch: int, step: int, batch: Sequence[Any]) -> float:
    """Forward and backward pass of one batch, and the update where it is due; gives the loss."""
    config, accelerator = run.config, run.accelerator
    images, targets, *samples = batch
    images = images.to(accelerator.device, memory_format=run.layout)
    targets = run.task.tensor(targets).to(accelerator.device)
    if run.on_batch is not None:
        images = run.on_batch(run.model, images, targets)
    with accelerator.autocast():
        value = mean_loss(
            run.wrapped(images),
            lambda outputs: (
                run.loss(outputs, images, targets, *samples)
                if run.loss is not None
                else run.parts.add(run.task.loss(outputs, targets, config.label_smoothing))
            ),
        )
    number = float(value.detach())  # the host waits for the device here
    if not math.isfinite(number):
        raise UserError(
            f"{run.name}: the loss is {number} at epoch {epoch + 1}, step {step + 1}, learning "
            f"rate {run.optimizer.param_groups[0]['lr']:.3g}. Lower --lr, raise --warmup-epochs, "
            f"or clip harder with --clip-norm."
        )
    # The last updates of an epoch may have fewer steps.
    size = min(config.accumulate, run.steps - step // config.accumulate * config.accumulate)
    accelerator.backward(value / size)
    if (step + 1) % config.accumulate == 0 or step + 1 == run.steps:
        _update(run)
    return number


def _update(run: _Run) -> None:
    """Clip the gradients that were added up, and step the optimiser and the average."""
    clip_norm, accelerator = run.config.clip_norm, run.accelerator
    if clip_norm and accelerator.sync_gradients:
        accelerator.clip_grad_norm_(run.wrapped.parameters(), clip_norm)
        # Apart, so that they take nothing from the network's share; the gradients of the whole
        # optimiser are unscaled by now.
        nn.utils.clip_grad_norm_(run.own, clip_norm)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema is not None:
        run.ema.update_parameters(run.model)


def _judge(run: _Run, epoch: int, mean_loss: float) -> float:
    """Validate the epoch's weights, or their average, and keep the best; gives the score."""
    shown = run.ema.module if run.ema is not None else run.model
    config = run.config
    if run.mixes:
        config = replace(config, batch_size=run.accelerator.num_processes)
    score = evaluate(shown, run.context, config, "val", run.accelerator, run.layout)
    run.history.append({"loss": mean_loss, "val": score})
    # On a tie keep the later epoch: it has trained longer.
    if run.best_score is None or not run.task.deployed.metrics[0].loss(run.best_score, score) > 0:
        run.best_score, run.best_epoch = score, epoch + 1
        run.best = {k: v.detach().cpu().clone() for k, v in shown.state_dict().items()}
    return score


def _save(run: _Run, file: Path, identity: Mapping[str, Any], finished: bool) -> None:
    save_state(
        file, run.model, run.ema, run.optimizer, run.accelerator.scaler, run.taught,
        identity=identity, best=run.best, best_score=run.best_score,
        best_epoch=run.best_epoch, history=run.history, finished=finished,
    )  # fmt: skip


def _hand_back(run: _Run) -> None:
    """Give the model back on the CPU with the best weights, without what accelerate added."""
    accelerator, model = run.accelerator, run.model
    for tracker in accelerator.trackers:
        tracker.finish()  # not end_training: it dissolves the group that later stages need
    # Or autocast would stay in `forward`, and with it in what is exported.
    accelerator.unwrap_model(run.wrapped, keep_fp32_wrapper=False)
    if run.own:
        accelerator.unwrap_model(run.loss, keep_fp32_wrapper=False)
    for attribute in set(vars(model)) - run.own_attributes:
        delattr(model, attribute)
    accelerator.free_memory()
    model.to("cpu")
    model.load_state_dict(run.best)
    # What comes next, an export above all, is the same whatever the training did.
    lay_out(model, torch.contiguous_format)
    for parameter, learns in run.learning:  # what was frozen is so for this training alone
        parameter.grad = None
        parameter.requires_grad_(learns)


def evaluate(
    model: nn.Module, context: Context, config: TrainConfig, split: str,
    accelerator: Accelerator | None = None, layout: torch.memory_format = torch.contiguous_format,
) -> float:  # fmt: skip
    """The task's metric of `model` on `split`, over all processes; the mode is restored. `layout`
    is that of the images."""
    process_state()
    accelerator = accelerator or Accelerator()
    data = context.data
    loader = data.loader(
        split, config.batch_size, workers=config.workers,
        rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    evaluator = load(data.dataset.task).evaluator(data.classes, "the network")
    several = accelerator.num_processes > 1
    found: list[tuple[Any, Any]] = []
    with evaluating(model), torch.no_grad():
        for images, targets in loader:
            images = images.to(accelerator.device, memory_format=layout)
            outputs = model(images).float().cpu().numpy()
            if several:
                found.append((outputs, targets.numpy()))
            else:
                evaluator.update({"output": outputs}, targets.numpy())
    for outputs, targets in gather_object(found) if several else ():
        evaluator.update({"output": outputs}, targets)
    return evaluator.value()


def _without_gain(history: Sequence[Mapping[str, float]], metric: Metric) -> int:
    """Epochs since the validation score was first as good as it has been."""
    scores = [entry["val"] for entry in history]
    best = max(scores) if metric.higher_is_better else min(scores)
    return len(scores) - 1 - scores.index(best)


def _result(
    metric: Metric, history: Iterable[Mapping[str, float]], best_epoch: int, best: float | None
) -> dict[str, Any]:
    history = list(history)
    return {
        "epochs": len(history),
        "best_epoch": best_epoch,
        "val_metric": metric.name,
        "val_score": best if history else None,
        "loss": [round(entry["loss"], 6) for entry in history],
    }


def _trackers(names: tuple[str, ...]) -> list[str] | None:
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise EnvironmentLacks(
                f"--track {name}: its package is not installed, or accelerate does not know it. "
                f"Installed: {', '.join(available) or 'none'}; tensorboard comes with "
                f"{to_install('track')}."
            )
    return list(names) or None


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trackers take plain values only."""
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
