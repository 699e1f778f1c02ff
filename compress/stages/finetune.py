"""Fine-tune a backbone on labelled images, from random or given weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import at_least, share

from ..training.config import Context, TrainConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..data.loader import Data
    from ..distillation.losses import Parts
    from ..tasks.task import TrainingTask


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Options of `vcompress finetune`."""

    layer_decay: Annotated[float, share(zero=False)] = 1.0
    """Ratio of each layer group's learning rate to that of the group behind it, above 0, at most 1;
    1 is off."""
    unfreeze_every: Annotated[int, at_least(0)] = 0
    """Number of epochs after which one more layer group learns, from the last group on; 0 trains
    all from the start."""
    freeze_bn: bool = False
    """Keep the running averages of batch norms as they are."""
    lora: Annotated[int, at_least(0)] = 0
    """Rank of the adapters that are trained in place of a ViT's weights and merged at the end; 0 is
    off."""
    mixup: Annotated[float, at_least(0)] = 0.0
    """Parameter of the Beta distribution that images are mixed by, 0 or more (0.2 is usual); 0 is
    off."""
    cutmix: Annotated[float, at_least(0)] = 0.0
    """Parameter of the Beta distribution of pasted rectangles, 0 or more (1 is usual); 0 is off."""
    balanced: bool = False
    """Show each class equally often."""
    focal: Annotated[float, at_least(0)] = 0.0
    """Gamma of the focal loss, 0 or more (2 is usual); 0 is cross entropy."""
    dice: Annotated[float, at_least(0)] = 0.0
    """Weight of the Dice loss beside the cross entropy of pixels, 0 or more (1 is usual); 0 is
    off."""
    class_weights: Literal["none", "frequency"] = "none"
    """Weights of the classes of pixels. frequency: the inverse square root of each one's share."""
    adversarial: Literal["none", "fgsm", "pgd"] = "none"
    """Attack that changes the training images."""
    epsilon: Annotated[float, share(zero=False)] = 0.03
    """Largest change of a pixel by the attack, on a scale of 0 to 1; above 0, at most 1."""
    attack_steps: Annotated[int, at_least(1)] = 5
    """Number of PGD steps, 1 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [
            name
            for name, given in (
                ("freeze", self.freeze != "none"), ("lora", self.lora > 0),
                ("layer_decay", self.layer_decay != 1),
            )
            if given
        ]  # fmt: skip
        if self.unfreeze_every and self.layer_decay == 1:
            chosen.append("unfreeze_every")
        if len(chosen) > 1:
            raise UserError(
                f"{' and '.join(chosen)} each say what learns; give one (layer_decay and "
                f"unfreeze_every go together)."
            )


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Train `model` on the labels; the best validation epoch is kept.

    Raises:
        UserError: gradual unfreezing in several processes.
        EnvironmentLacks: LoRA without peft.
    """
    import torch

    from ..distillation.losses import Parts
    from ..tasks import training_task
    from ..training.loop import fit

    task = training_task(context.data.dataset)
    _check(config, task)
    data = replace(context.data, mixup=config.mixup, cutmix=config.cutmix, balanced=config.balanced)
    context = replace(context, data=data)
    details: dict[str, Any] = {}
    adapted = None
    if config.lora:
        from ..training.lora import adapt

        if context.rehearse is not None:  # the adapters will be gone when the network is written
            context.rehearse(copy.deepcopy(model), math.nan)
            context = replace(context, rehearse=None)
        torch.manual_seed(context.seed)  # the adapters start at random
        adapted = adapt(model, config.lora, data.example, len(data.classes))
        details["lora"] = {
            "rank": config.lora, "layers": len(adapted.layers), "trained": adapted.trained
        }  # fmt: skip
    hooks = _hooks(model, config, context, task)
    loss, parts = _loss(config), Parts()
    if task.deployed.maps:
        loss = _loss_of_maps(config, data, details, parts)
    details |= fit(model, config, context, loss, name="finetune", parts=parts, **hooks)
    if adapted is not None:
        details["lora"]["merge_error"] = adapted.merge(data.images("val", 8))
    return Outcome(model, details)


def _check(config: Config, task: TrainingTask) -> None:
    """Raise a UserError for an option that the task has no use for."""
    name = task.deployed.name
    for option, given, suits in (
        ("mixup", config.mixup > 0, task.mixes),
        ("cutmix", config.cutmix > 0, task.mixes),
        ("focal", config.focal > 0, task.has_classes or task.deployed.maps),
        ("dice", config.dice > 0, task.deployed.maps),
        ("class-weights", config.class_weights != "none", task.deployed.maps),
        ("balanced", config.balanced, task.has_classes),
    ):
        if given and not suits:
            raise UserError(f"--{option}: the task {name} has no such thing; omit it.")


def _loss(config: Config) -> Any:
    if not config.focal:
        return None
    from ..training.focal import focal

    def loss(logits: Tensor, _: Tensor, labels: Tensor) -> Tensor:
        return focal(logits, labels, config.focal, config.label_smoothing)

    return loss


def _loss_of_maps(config: Config, data: Data, details: dict[str, Any], parts: Parts) -> Any:
    """Cross entropy, or the focal loss, of each pixel, and the Dice loss, as the options weigh
    them, noted in `parts`; None for cross entropy alone."""
    if not (config.focal or config.dice or config.class_weights != "none"):
        return None
    import torch

    from ..distillation.map_losses import dice, resized
    from ..training.focal import focal_of_pixels

    weights = None
    if config.class_weights == "frequency":
        from ..data.frequencies import class_weights

        weights = class_weights(data)
        details["class_weights"] = [round(float(w), 4) for w in weights]

    def loss(logits: Tensor, _: Tensor, masks: Tensor) -> Tensor:
        logits = resized(logits, masks.shape[1:])
        each = None if weights is None else torch.as_tensor(weights, device=logits.device)
        found = focal_of_pixels(logits, masks, config.focal, config.label_smoothing, each)
        named = {"focal" if config.focal else "cross_entropy": found}
        if config.dice:
            named["dice"] = config.dice * dice(logits, masks)
        return parts.add(named)

    return loss


def _hooks(
    model: nn.Module, config: Config, context: Context, task: TrainingTask
) -> dict[str, Any]:
    """What the training loop is told: rates of layers, what stands still, the attack."""
    from ..distillation.losses import total
    from ..quantization import freeze_norms
    from ..robustness.attacks import attacked
    from ..training.layer_groups import decayed_rates, layer_groups, unfreeze
    from ..training.processes import process_state

    if config.unfreeze_every and process_state().num_processes > 1:
        raise UserError(
            "--unfreeze-every works in one process: several agree at the start on what learns."
        )
    hooks: dict[str, Any] = {}
    groups = layer_groups(model)
    if config.layer_decay != 1:
        hooks["extra_groups"] = decayed_rates(
            groups, config.lr, config.layer_decay, config.weight_decay
        )

    def on_epoch(epoch: int, live: nn.Module) -> None:
        if config.unfreeze_every:
            unfreeze(groups, epoch, config.unfreeze_every)
        if config.freeze_bn:
            freeze_norms(live)

    if config.unfreeze_every or config.freeze_bn:
        hooks["on_epoch"] = on_epoch
    if config.adversarial != "none":
        preprocess = context.data.preprocess
        hooks["on_batch"] = partial(
            attacked, kind=config.adversarial, epsilon=config.epsilon, steps=config.attack_steps,
            mean=preprocess.mean, std=preprocess.std,
            loss=lambda outputs, targets: total(task.loss(outputs, targets)),
        )  # fmt: skip
    return hooks


STAGE = Stage(Config, apply, roles=(Role("model", Kind.FRESH, changed=True),))
