"""Fine-tune a backbone on labelled images; from a name it starts with random or given weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from vcompress.bench.errors import UserError

from ..training.config import Context, TrainConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Options of `vcompress finetune`."""

    layer_decay: float = 1.0
    """Each layer group learns with this share of the rate of the one behind it; 1 is off."""
    unfreeze_every: int = 0
    """Train the last layer group alone, and one more after each so many epochs; 0 trains all."""
    freeze_bn: bool = False
    """Keep the running averages of batch norms as they are."""
    lora: int = 0
    """Rank of adapters to train instead of the weights of a ViT, merged at the end; 0 is off."""
    mixup: float = 0.0
    """Parameter of the Beta distribution that images are mixed by (0.2 is usual); 0 is off."""
    cutmix: float = 0.0
    """Parameter of the Beta distribution of pasted rectangles (1 is usual); 0 is off."""
    balanced: bool = False
    """Show each class equally often."""
    focal: float = 0.0
    """Gamma of the focal loss (2 is usual); 0 is cross entropy."""
    adversarial: Literal["none", "fgsm", "pgd"] = "none"
    """Train on images that an attack has changed."""
    epsilon: float = 0.03
    """Largest change of a pixel by the attack, on a scale of 0 to 1."""
    attack_steps: int = 5
    """Of pgd."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (
            ("unfreeze_every", self.unfreeze_every), ("lora", self.lora), ("mixup", self.mixup),
            ("cutmix", self.cutmix), ("focal", self.focal),
        ):  # fmt: skip
            if not value >= 0:
                raise UserError(f"{name} = {value}: it must be 0 or more.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay = {self.layer_decay}: it must be above 0, at most 1.")
        if not 0 < self.epsilon <= 1:
            raise UserError(f"epsilon = {self.epsilon}: it must be above 0, at most 1.")
        if self.attack_steps < 1:
            raise UserError(f"attack_steps = {self.attack_steps}: it must be 1 or more.")
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

    from ..training.loop import fit

    data = replace(context.data, mixup=config.mixup, cutmix=config.cutmix, balanced=config.balanced)
    context = replace(context, data=data)
    details: dict[str, Any] = {}
    adapted = None
    if config.lora:
        from ..training.lora import adapt

        torch.manual_seed(context.seed)  # the adapters start at random
        adapted = adapt(model, config.lora, data.example, len(data.classes))
        details["lora"] = {
            "rank": config.lora, "layers": len(adapted.layers), "trained": adapted.trained
        }  # fmt: skip
    hooks = _hooks(model, config, context)
    details |= fit(model, config, context, _loss(config), name="finetune", **hooks)
    if adapted is not None:
        details["lora"]["merge_error"] = adapted.merge(data.images("val", 8))
    return Outcome(model, details)


def _loss(config: Config) -> Any:
    if not config.focal:
        return None
    from ..training.focal import focal

    def loss(logits: Tensor, _: Tensor, labels: Tensor) -> Tensor:
        return focal(logits, labels, config.focal, config.label_smoothing)

    return loss


def _hooks(model: nn.Module, config: Config, context: Context) -> dict[str, Any]:
    """What the training loop is told: rates of layers, what stands still, the attack."""
    from ..quantization import freeze_bn
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
            freeze_bn(live)

    if config.unfreeze_every or config.freeze_bn:
        hooks["on_epoch"] = on_epoch
    if config.adversarial != "none":
        preprocess = context.data.preprocess
        hooks["on_batch"] = partial(
            attacked, kind=config.adversarial, epsilon=config.epsilon, steps=config.attack_steps,
            mean=preprocess.mean, std=preprocess.std,
        )  # fmt: skip
    return hooks


STAGE = Stage(Config, apply, roles=(Role("model", Kind.FRESH, changed=True),))
