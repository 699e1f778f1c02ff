"""The only training loop. Flat; accelerate spreads it over devices, processes and machines.

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
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vcompress.bench.errors import EnvironmentLacks, UserError

from ..models.modes import evaluating
from ..pruning.sparsity import held_sparse
from .config import Context, TrainConfig
from .identity import _identity, _resumed
from .optimizer import _freeze, optimizer_for
from .processes import process_state
from .progress import epoch_progress
from .schedule import share_of_peak
from .state import save_state

log = logging.getLogger(__name__)


Loss = Callable[..., Tensor]
"""From logits `[B, K]`, images `[B, C, H, W]` and labels `[B]` to a scalar averaged over `B`.

One that is a module (`teaching.TaughtLoss`) may have parameters, which are trained beside the
network's and thrown away with it. It is told the `Samples` of the batch too, says by `view(epoch)`
what epoch's augmentation it wants, and by `identity` what must be the same for a resume.
"""


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
) -> dict[str, Any]:
    """Train `model` in place and leave in it the weights of the best validation epoch.

    Args:
        model: trained where it is moved to by accelerate and handed back on the CPU.
        loss: cross entropy with label smoothing by default.
        name: says what is trained, and under `context.workdir` keeps what a resume needs.
        on_epoch: called with (epoch, model) after `model.train()`, for example to freeze norms.
        on_batch: from (model, images, labels) to the images to train on, for example an attack's.
        extra_groups: optimiser groups of parameters that want their own options.

    Returns:
        epochs run, the best epoch (from 1) and its validation accuracy, the loss of each epoch.

    Raises:
        UserError: a loss that is not finite, or a resume with other options than before.
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
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % world:
        raise UserError(f"batch_size {config.batch_size} does not divide by {world} processes.")
    if len(context.data.dataset.splits["train"]) < world:
        raise UserError(
            f"{len(context.data.dataset.splits['train'])} training images do not reach for {world} "
            f"processes. Start fewer."
        )
    file = context.workdir / name / "state.safetensors"
    identity = _identity(model, config, context, name)
    taught: Any = loss if isinstance(loss, nn.Module) else None
    if taught is not None:
        identity["loss"] = json.loads(json.dumps(taught.identity))
    state = _resumed(file, identity, context.resume)
    if not context.resume and accelerator.is_main_process:
        shutil.rmtree(file.parent, ignore_errors=True)
    accelerator.wait_for_everyone()

    torch.manual_seed(context.seed)
    if config.epochs == 0:
        return _result([], 0, -1.0)
    if state is not None and state.finished:
        # As training leaves it: what comes next then adds up in the same order, to the last bit.
        model.to(memory_format=torch.channels_last)
        model.load_state_dict(state.best)
        return _result(state.history, state.best_epoch, state.best_accuracy)
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    frozen = _freeze(model, config, len(context.data.classes))
    own = [] if taught is None else [p for p in taught.parameters() if p.requires_grad]
    projections = {"params": own, "weight_decay": config.weight_decay}
    optimizer = optimizer_for(model, config, [*(extra_groups or []), projections])
    ema = None
    if config.ema_decay:
        average = get_ema_multi_avg_fn(config.ema_decay)  # type: ignore[no-untyped-call]
        ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    best = {k: v.clone() for k, v in model.state_dict().items()}
    if state is not None:
        state.restore(model, ema, optimizer, accelerator.scaler, taught)
        best = state.best
    history: list[dict[str, float]] = list(state.history) if state else []
    best_accuracy, best_epoch = (state.best_accuracy, state.best_epoch) if state else (-1.0, 0)

    if context.track:
        run = context.workdir.name.strip(".").removesuffix(".work")
        accelerator.init_trackers(f"{run}-{name}", config=_flat(asdict(config)))
    model = model.to(memory_format=torch.channels_last)
    own_attributes = set(vars(model))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    if taught is not None:
        taught.to(accelerator.device)
        loss = accelerator.prepare(taught) if own else taught
    if ema is not None:
        ema.to(accelerator.device)
    if context.teacher is not None:
        context.teacher.to(accelerator.device)
    peaks = [group["lr"] for group in optimizer.param_groups]
    steps = len(context.data.loader("train", config.batch_size, train=True))
    start = len(history)

    # Zeros of 2:4 sparsity stay: in their own training, a later fine-tuning and QAT alike.
    with held_sparse(model), epoch_progress(name, config.epochs, steps, start) as progress:
        for epoch in range(start, config.epochs):
            torch.manual_seed(context.seed * 1_000_003 + epoch)
            loader = context.data.loader(
                "train", config.batch_size, train=True, epoch=epoch, workers=config.workers,
                rank=rank, world=world, samples=taught is not None,
                view=None if taught is None else taught.view(epoch),
            )  # fmt: skip
            wrapped.train()
            for module in frozen:
                module.eval()
            if on_epoch is not None:
                on_epoch(epoch, model)
            total = torch.zeros((), device=accelerator.device)
            for step, (images, labels, *samples) in enumerate(loader):
                share = share_of_peak(epoch * steps + step, steps, config)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * share
                images = images.to(accelerator.device, memory_format=torch.channels_last)
                labels = labels.to(accelerator.device)
                if on_batch is not None:
                    images = on_batch(model, images, labels)
                with accelerator.autocast():
                    logits = wrapped(images)
                    value = (
                        loss(logits, images, labels, *samples)
                        if loss is not None
                        else F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                    )
                number = float(value.detach())  # the host waits for the device here
                if not math.isfinite(number):
                    raise UserError(
                        f"{name}: the loss is {number} at epoch {epoch + 1}, step {step + 1}, "
                        f"learning rate {peaks[0] * share:.3g}. Lower --lr, raise --warmup-epochs, "
                        f"or clip harder with --clip-norm."
                    )
                update = (step + 1) % config.accumulate == 0 or step + 1 == steps
                size = min(config.accumulate, steps - step // config.accumulate * config.accumulate)
                accelerator.backward(value / size)
                if update:
                    if config.clip_norm and accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(wrapped.parameters(), config.clip_norm)
                        # Apart, so that they take nothing from the network's share; the gradients
                        # of the whole optimiser are unscaled by now.
                        nn.utils.clip_grad_norm_(own, config.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    if ema is not None:
                        ema.update_parameters(model)
                total += number
                progress.step(epoch, step, number)
            mean_loss = float(accelerator.reduce(total, "mean")) / steps
            shown = ema.module if ema is not None else model
            accuracy = evaluate(shown, context, config, "val", accelerator)
            history.append({"loss": mean_loss, "val_accuracy": accuracy})
            if accuracy >= best_accuracy:  # of equals the later one has trained longer
                best_accuracy, best_epoch = accuracy, epoch + 1
                best = {k: v.detach().cpu().clone() for k, v in shown.state_dict().items()}
            stopped = bool(config.patience and _without_gain(history) >= config.patience)
            finished = stopped or epoch + 1 == config.epochs
            if accelerator.is_main_process:
                progress.epoch(epoch, mean_loss, accuracy, peaks[0] * share)
                save_state(
                    file, model, ema, optimizer, accelerator.scaler, taught,
                    identity=identity, best=best, best_accuracy=best_accuracy,
                    best_epoch=best_epoch, history=history, finished=finished,
                )  # fmt: skip
                accelerator.log({"loss": mean_loss, "val_accuracy": accuracy}, step=epoch)
            if finished:
                break
    for tracker in accelerator.trackers:
        tracker.finish()  # not end_training: it dissolves the group that later stages need
    # Or autocast would stay in `forward`, and with it in what is exported.
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    if own:
        accelerator.unwrap_model(loss, keep_fp32_wrapper=False)
    for attribute in set(vars(model)) - own_attributes:
        delattr(model, attribute)
    accelerator.free_memory()
    model.to("cpu")
    model.load_state_dict(best)
    for parameter, learns in learning:  # what was frozen is so for this training alone
        parameter.grad = None
        parameter.requires_grad_(learns)
    return _result(history, best_epoch, best_accuracy)


def evaluate(
    model: nn.Module, context: Context, config: TrainConfig, split: str,
    accelerator: Accelerator | None = None,
) -> float:  # fmt: skip
    """Share of `split` that `model` gets right, over all processes; the mode is restored."""
    process_state()
    accelerator = accelerator or Accelerator()
    loader = context.data.loader(
        split, config.batch_size, workers=config.workers,
        rank=accelerator.process_index, world=accelerator.num_processes,
    )  # fmt: skip
    counts = torch.zeros(2, device=accelerator.device)
    with evaluating(model), torch.no_grad():
        for images, labels in loader:
            images = images.to(accelerator.device, memory_format=torch.channels_last)
            right = model(images).argmax(1) == labels.to(accelerator.device)
            counts += torch.tensor([right.sum(), len(right)], device=accelerator.device)
    right_total, total = accelerator.reduce(counts, "sum").tolist()
    return float(right_total / total)


def _without_gain(history: Sequence[Mapping[str, float]]) -> int:
    """Epochs since the validation accuracy was first as high as it has been."""
    accuracies = [entry["val_accuracy"] for entry in history]
    return len(accuracies) - 1 - accuracies.index(max(accuracies))


def _result(
    history: Iterable[Mapping[str, float]], best_epoch: int, best_accuracy: float
) -> dict[str, Any]:
    history = list(history)
    return {
        "epochs": len(history),
        "best_epoch": best_epoch,
        "val_accuracy": best_accuracy if history else None,
        "loss": [round(entry["loss"], 6) for entry in history],
    }


def _trackers(names: tuple[str, ...]) -> list[str] | None:
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise EnvironmentLacks(
                f"--track {name}: its package is not installed, or accelerate does not know it. "
                f"Installed: {', '.join(available) or 'none'}; tensorboard comes with "
                f"pip install 'vision-compress[track]'."
            )
    return list(names) or None


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Trackers take plain values only."""
    return {k: v if isinstance(v, (int, float, str, bool)) else str(v) for k, v in config.items()}
