"""Which losses a distillation adds up, and what they need: a task, a teacher, features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from vcompress.bench.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..tasks.task import TrainingTask
    from .features import Pair

# A loss to the weight that it has alone, so that it stands beside the labels as kd does.
WEIGHTS = {
    "kd": 1.0, "dkd": 1.0, "dist": 1.0, "lskd": 1.0,
    "cwd": 3.0, "skd": 10.0, "fitnet": 5.0, "at": 50.0, "infonce": 1.0, "srd": 1.0, "self": 1.0,
}  # fmt: skip
ON_MAPS = ("fitnet", "at")
"""Losses that compare feature maps, at every pair of modules."""
ON_FEATURES = (*ON_MAPS, "skd", "infonce", "srd")
"""Those and the losses that compare structure or embeddings, which the last pair gives."""


def check_task(terms: Collection[str], task: TrainingTask) -> None:
    """Raise a UserError where a loss is none of those that `task` is distilled by."""
    for name in terms:
        if name not in task.distils:
            raise UserError(
                f"method = {name!r}: {task.deployed.name} is distilled by "
                f"{', '.join(task.distils)}.{nearest(name, task.distils)}"
            )


def needs_teacher(terms: Collection[str]) -> bool:
    """Whether a loss needs another network; `self` alone has the student's own average."""
    return set(terms) != {"self"}


def on_features(terms: Collection[str]) -> tuple[str, ...]:
    """The losses that compare features."""
    return tuple(name for name in terms if name in ON_FEATURES)


def pairs_for(
    terms: Collection[str], student: nn.Module, example: Tensor, teacher: nn.Module,
    teacher_example: Tensor, features: Sequence[str],
) -> list[Pair]:  # fmt: skip
    """The modules whose outputs the losses compare; see `features.find_pairs`."""
    from .features import find_pairs

    wanted = on_features(terms)
    if not wanted:
        return []
    found = find_pairs(student, example, teacher, teacher_example, features)
    return list(found if set(wanted) & set(ON_MAPS) else found[-1:])
