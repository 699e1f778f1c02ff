"""Make weights 2:4 sparse and recover by distillation; TensorRT runs them on sparse cores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..training.config import Context, TaughtConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Config(TaughtConfig):
    """Options of `vcompress sparsify`."""

    protect: tuple[str, ...] = ()
    """Layers that stay dense: paths (all inside is meant), or patterns such as 'layer4.*'."""


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Zero two of four weights of `model` in place and train the others."""
    import copy

    from ..models.folding import fold_told
    from ..pruning.refusals import refuse_quantised
    from ..pruning.sparsity import sparse_layers, sparsify
    from ..tasks import training_task
    from ..training.loop import fit
    from ..training.recovery import from_teacher

    refuse_quantised(model)
    fold_told(model, "sparsify")
    teacher = context.teacher if context.teacher is not None else copy.deepcopy(model)
    recovery = from_teacher(teacher, config, training_task(context.data.dataset))

    layers, left_alone = sparsify(model, config.protect)
    training = fit(model, config, context, recovery, name="sparsify")
    lost = sorted(set(layers) - set(sparse_layers(model)))
    if lost:
        raise RuntimeError(f"training filled the zeros of {', '.join(lost[:3])}")
    details = {
        "layers": layers, "left_alone": left_alone, "training": training,
        "teacher": context.teacher_name or "the dense network",
    }  # fmt: skip
    return Outcome(model, details)


STAGE = Stage(
    Config, apply,
    roles=(Role("teacher", Kind.OPTIONAL), Role("model", Kind.TRAINED, changed=True)),
)  # fmt: skip
