"""The torch half of each task: loss, distillation, attack, initial head.

The numpy half is in `bench/tasks/` under the same name, with the table of all tasks. Nothing heavy
is imported before a task is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vcompress.bench.data.dataset import Dataset
    from vcompress.bench.tasks.task import Array

    from .task import TrainingTask


def training_task(dataset: Dataset) -> TrainingTask:
    """The torch half of the task of a data set, fitted to its training targets.

    Raises:
        UserError: there is no such task.
    """
    return task_half(dataset.task, dataset.targets[dataset.splits["train"]])


def task_half(name: str, targets: Array | None = None) -> TrainingTask:
    """The torch half of a task, fitted to training targets `[N, ...]` where it depends on them.

    Raises:
        UserError: there is no such task, or it needs targets.
    """
    from vcompress.bench.tasks import load

    module = import_module(f"{__name__}.{load(name).name}")
    found: TrainingTask = module.fitted(targets)
    return found
