"""What a network is for: how its outputs are decoded, scored and compared. Needs no torch.

A new task is a file here, a file of the same name in `compress/tasks/`, and a line in `TABLE`.
Nothing heavy is imported before a task is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UserError, nearest

if TYPE_CHECKING:
    from ..data.dataset import Dataset, OnBadImage
    from .task import Task

CLASSIFICATION = "classification"
TABLE = {
    "classification": "one class an image",
    "multilabel": "any number of labels an image",
    "regression": "one or more numbers an image",
    "segmentation": "a class for each pixel",
}
"""What each task is, by its name, which is that of its file."""


def load(name: str) -> Task:
    """The numpy half of a task.

    Raises:
        UserError: there is none of this name.
    """
    if name not in TABLE:
        raise UserError(
            f"unknown task {name!r:.80}.{nearest(name, TABLE)} Known: {', '.join(TABLE)}."
        )
    found: Task = import_module(f"{__name__}.{name}").TASK
    return found


def open_dataset(
    source: str,
    root: str | None = None,
    seed: int = 0,
    on_bad_image: OnBadImage = "fail",
    task: str = CLASSIFICATION,
) -> Dataset:
    """The images and targets of `source`, which the user names, as `task` takes them.

    Args:
        source: `digits`, a folder, what else the task knows, or the user's own `module:factory`,
            which is run.
        root: where the files of a library's data set are, or shall go.
        seed: fixes the splits.

    Raises:
        UserError: the source is unknown or its images cannot be used.
        EnvironmentLacks: a package or a download is missing.
    """
    from ..data import named

    found = load(task).open(source, root, seed, True)
    named.note(source, root)
    return replace(found, on_bad_image=on_bad_image, task=task)


def open_recorded(
    record: Mapping[str, Any], task: str, trust: str | None, where: str,
    labels: Sequence[str] | None = None,
) -> Dataset:  # fmt: skip
    """The images and targets that a bundle records, which may have changed since.

    Nothing is downloaded or made: the bundle, and not the user, names the files and their folder,
    which must be in the working folder or the bundle, or one that the user has named before.

    Args:
        trust: the names of own code that the user allows to be run.
        where: the bundle's path.
        labels: the bundle's. Its data may have some of its classes alone, or in another order.

    Raises:
        UserError: as `open_dataset`, or the record names code that is not trusted, or a place that
            the user has not named.
    """
    from ..data import named  # not needed for help
    from ..own_code import check_trusted, is_own_data

    source, root = record["source"], record.get("root")
    if is_own_data(source):
        check_trusted(source, trust, f"{where}: its data are made by your own code")
    else:
        named.check(source, root, where)
    found = load(task).open(source, root, int(record.get("seed", 0)), False)
    found = replace(found, on_bad_image=record.get("on_bad_image", "fail"), task=task)
    of_classes = task == CLASSIFICATION or found.mask is not None
    if labels is None or not of_classes or found.classes == tuple(labels):
        return found
    from ..data.classes import fits, with_outputs

    numbers = bool(record.get("numbered"))
    return with_outputs(found, labels, where, numbers) if fits(found, labels, numbers) else found
