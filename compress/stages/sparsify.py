"""Make weights 2:4 sparse and recover by distillation; TensorRT runs them on sparse cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vcompress.bench.errors import UserError

from ..stage import Context, Outcome, TrainConfig
from .prune import refuse_quantised

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    """Options of `vcompress sparsify`."""

    protect: tuple[str, ...] = ()
    """Patterns of layers that stay dense."""
    temperature: float = 4.0
    """Softens the outputs of student and teacher."""
    alpha: float = 0.7
    """Weight of the teacher (the dense network, unless one is named) against the labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"temperature = {self.temperature}: it must be above 0 (4 is usual).")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha = {self.alpha}: it must be from 0 to 1.")


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Zero two of four weights of `model` in place and train the others."""
    import copy

    import torch

    from ..losses import distillation
    from ..pruning.sparsity import held_sparse, sparse_layers, sparsify
    from ..train import fit

    refuse_quantised(model)
    teacher = context.teacher if context.teacher is not None else copy.deepcopy(model)
    teacher.eval()

    def recovery(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher.to(images.device)(images)
        return distillation(
            logits, target, labels, temperature=config.temperature, alpha=config.alpha
        )

    layers, left_alone = sparsify(model, config.protect)
    with held_sparse(model):
        training = fit(model, config, context, recovery, name="sparsify")
    lost = sorted(set(layers) - set(sparse_layers(model)))
    if lost:
        raise RuntimeError(f"training filled the zeros of {', '.join(lost[:3])}")
    return Outcome(model, {"layers": layers, "left_alone": left_alone, "training": training})
