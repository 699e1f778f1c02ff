"""Scores a data set in an open session: its outputs go to the task's evaluator, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..apart import bounded
from ..bundle import Preprocess
from ..data.dataset import Dataset, batches
from ..errors import UserError
from ..runtimes.session import Session
from . import load
from .task import Array, Evaluator, Score, Task

READ = 64
"""Images that are read at once, where they are no larger than usual ones."""
_READ_PIXELS = 64 * 224 * 224
Batches = Iterable[tuple[NDArray[np.float32], Array]]
"""Images `[B, C, H, W] float32` and targets `[B, ...]`."""


def score(
    task: Task,
    session: Session,
    found: Batches,
    *,
    names: Sequence[str] | None = None,
    source: str = "",
    batch: int = 1,
) -> Score:
    """Run a model over images with targets.

    Args:
        names: of the classes, labels or numbers that the outputs stand for.
        source: where the images come from, for the record.
        batch: images in one call, where the model fixes none. It is part of what is measured: a
            dynamically quantised model takes its scales from the batch, and answers otherwise.

    Raises:
        UserError: no images, a model with another kind of input or output, targets that do not fit.
    """
    if len(session.inputs) != 1:
        raise UserError(
            f"{session.path} takes {len(session.inputs)} inputs; accuracy is measured on models "
            "that take one batch of images."
        )
    spec = session.inputs[0]
    if "float" not in spec.dtype and spec.dtype != "uint8":
        raise UserError(
            f"{session.path}: the input {spec} takes neither floats nor bytes, so no image."
        )
    evaluator = task.evaluator(names, str(session.path))
    size = call_size(session, batch)
    for images, targets in found:
        for start in range(0, len(images), size):  # the outputs of one call are in memory
            part = slice(start, start + size)
            evaluator.update(outputs(session, images[part], batch), targets[part])
    return evaluator.compute(source)


def score_split(
    session: Session,
    dataset: Dataset,
    split: str,
    preprocess: Preprocess,
    names: Sequence[str] | None = None,
) -> Score:
    """The score of a model on a split of a data set, by the data set's task."""
    found = batches(dataset, split, preprocess, images_at_once(session))
    return score(load(dataset.task), session, found, names=names or dataset.classes)


def evaluated(
    task: Task, found: Array, targets: Array, names: Sequence[str] | None = None
) -> Evaluator:
    """An evaluator of outputs `[N, ...]` that are at hand."""
    evaluator = task.evaluator(names)
    evaluator.update({"output": found}, targets)
    return evaluator


def images_at_once(session: Session, batch: int = 1) -> int:
    """How many images to read at once: about 64, fewer large ones, in whole calls of the model."""
    size = call_size(session, batch)
    sides = session.inputs[0].image_size if session.inputs else None
    fit = _READ_PIXELS // max(sides[0] * sides[1], 1) if sides else READ
    return size * max(min(READ, fit) // size, 1)


def call_size(session: Session, batch: int) -> int:
    """Images in one call: what the model fixes, else `batch`."""
    return max(session.inputs[0].images_in_call(batch), 1) if session.inputs else batch


def outputs(session: Session, images: NDArray[np.float32], batch: int = 1) -> dict[str, Any]:
    """What the model gives for any number of images, `[N, ...]` by the name of the output.

    A model with a fixed batch gets that many at once; the last part is filled up with its last
    image, and what comes of that is dropped. An output that is a list, such as one map an image,
    stays one.
    """
    spec, size = session.inputs[0], call_size(session, batch)
    parts: list[dict[str, Any]] = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        short = size - len(part)
        if short:
            part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
        with bounded():
            found = session.run({spec.name: spec.of_images(part)})
        parts.append({name: _rows(a, size, size - short) for name, a in found.items()})
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _rows(output: Any, size: int, kept: int) -> Any:
    """The first `kept` of `size` rows of an output, an array or a list. A call of one image may
    leave the axis of the batch out. What has no such axis, as a constant has none, stays as it is.
    """
    if isinstance(output, list):
        return output[:kept]
    if size == 1 and (not output.ndim or len(output) != 1):
        return output[None]
    return output[:kept] if output.ndim else output


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [row for part in parts for row in part]
    return np.concatenate(parts) if parts[0].ndim else parts[0]
