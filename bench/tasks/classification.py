"""Classification accuracy in the runtime that was timed, and what changed between two models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..errors import UserError
from ..runtimes.session import Session

Int64s = NDArray[np.int64]
Batches = Iterable[tuple[NDArray[np.float32], Int64s]]


@dataclass(frozen=True)
class ClassScore:
    name: str
    n: int
    correct: int

    @property
    def share(self) -> float:
        return self.correct / self.n if self.n else float("nan")


@dataclass(frozen=True)
class Accuracy:
    """Shares are from 0 to 1."""

    n: int
    correct: int
    top1: float
    top1_interval: tuple[float, float]
    """95 %, Wilson."""
    top5: float | None
    """None where there are five classes or fewer."""
    top5_interval: tuple[float, float] | None
    per_class: tuple[ClassScore, ...]
    predictions: Int64s
    """[N] the class with the largest output; the first one of a tie, -1 where none is finite."""
    labels: Int64s
    """[N]"""
    nonfinite: int = 0
    """Images whose outputs held a NaN or an infinity; they count as wrong."""
    source: str = ""


def score(
    session: Session,
    batches: Batches,
    *,
    classes: Sequence[str] | None = None,
    source: str = "",
) -> Accuracy:
    """Run a classifier over labelled batches.

    `batches` yields images [B, C, H, W] float32 and labels [B] int64; `classes` names the outputs.
    A model with a fixed batch gets that many at once; the last batch is filled up with its last
    image and those results are dropped.

    Raises `UserError` for no images, and for labels or classes that do not fit the outputs.
    """
    if len(session.inputs) != 1:
        raise UserError(
            f"{session.path} takes {len(session.inputs)} inputs; accuracy is measured on models "
            "that take one batch of images."
        )
    spec = session.inputs[0]
    if "float" not in spec.dtype:
        raise UserError(f"{session.path}: the input {spec} is no float, so no preprocessed image.")
    scores: list[NDArray[Any]] = []
    targets: list[Int64s] = []
    for images, labels in batches:
        scores.append(logits(session, images))
        targets.append(labels)
    if not targets or not sum(map(len, targets)):
        raise UserError("There are no images to measure the accuracy on. Look at --data.")
    return summarise(
        np.concatenate(scores), np.concatenate(targets), classes, source, str(session.path)
    )


def logits(session: Session, images: NDArray[np.float32]) -> NDArray[Any]:
    """Class scores [B, K] of a batch of any size."""
    spec = session.inputs[0]
    fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else None
    size = fixed or len(images)
    out = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        short = size - len(part)
        if short:
            part = np.concatenate([part, np.repeat(part[-1:], short, axis=0)])
        found = _class_output(session, session.run({spec.name: part.astype(spec.dtype)}))
        out.append(found[: size - short])
    return np.concatenate(out)


def _class_output(session: Session, outputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    for array in outputs.values():
        if array.ndim == 2 and array.dtype.kind == "f":
            return array
    shapes = ", ".join(f"{name} {list(a.shape)} {a.dtype}" for name, a in outputs.items())
    raise UserError(
        f"{session.path} is no classifier: expected an output [batch, classes] of floats, got "
        f"{shapes}. Leave --data away to time it alone."
    )


def summarise(
    scores: NDArray[Any], labels: Int64s, classes: Sequence[str] | None = None, source: str = "",
    model: str = "the model",
) -> Accuracy:  # fmt: skip
    """Accuracy of class scores [N, K] against labels [N]."""
    n, k = scores.shape
    if classes is not None and len(classes) != k:
        raise UserError(
            f"{model} has {k} outputs and the data {len(classes)} classes. Give the data that "
            "the model was trained for."
        )
    if labels.min() < 0 or labels.max() >= k:
        raise UserError(
            f"The labels go from {labels.min()} to {labels.max()}, but {model} has {k} outputs."
        )
    finite = np.isfinite(scores).all(axis=1)
    order = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :5]
    order[~finite] = -1
    right = order[:, 0] == labels
    correct = int(right.sum())
    top1 = stats.wilson(correct, n)
    top5 = None if k <= 5 else stats.wilson(int((order == labels[:, None]).any(1).sum()), n)
    names = tuple(classes) if classes is not None else tuple(str(i) for i in range(k))
    counts = np.bincount(labels, minlength=k)
    hits = np.bincount(labels[right], minlength=k)
    return Accuracy(
        n=n, correct=correct, top1=top1.value, top1_interval=(top1.low, top1.high),
        top5=top5.value if top5 else None, top5_interval=(top5.low, top5.high) if top5 else None,
        per_class=tuple(
            ClassScore(name, int(c), int(h))
            for name, c, h in zip(names, counts, hits, strict=True)
        ),
        predictions=order[:, 0].astype(np.int64), labels=labels,
        nonfinite=int((~finite).sum()), source=source,
    )  # fmt: skip


@dataclass(frozen=True)
class AccuracyChange:
    """From A, the baseline, to B, on the same images."""

    n: int
    difference: float
    """B's top-1 minus A's."""
    difference_interval: tuple[float, float]
    """95 %, paired."""
    only_a: int
    only_b: int
    p_value: float
    """McNemar's exact test that both are right equally often."""
    negative_flips: float
    """Share of the images that A had right and B has wrong."""
    negative_flips_interval: tuple[float, float]
    agreement: float
    """Share of the images on which both predict the same class, right or wrong."""
    lost: tuple[tuple[str, int, int, int], ...]
    """Classes that lost most: name, images, right in A, right in B."""


def compare(a: Accuracy, b: Accuracy, worst: int = 5) -> AccuracyChange:
    """What B lost and gained against A. Raises `UserError` for different images."""
    if a.n != b.n or not np.array_equal(a.labels, b.labels):
        raise UserError(
            f"The two accuracies are of different images ({a.n} and {b.n}); measure both on the "
            "same data."
        )
    right_a, right_b = a.predictions == a.labels, b.predictions == b.labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    change = stats.paired_difference(only_a, only_b, a.n)
    flips = stats.wilson(only_a, a.n)
    pairs = [
        (x.name, x.n, x.correct, y.correct)
        for x, y in zip(a.per_class, b.per_class, strict=True)
        if y.correct < x.correct
    ]
    pairs.sort(key=lambda c: (c[3] - c[2]) / c[1])
    return AccuracyChange(
        n=a.n, difference=change.value, difference_interval=(change.low, change.high),
        only_a=only_a, only_b=only_b, p_value=stats.mcnemar(only_a, only_b),
        negative_flips=flips.value, negative_flips_interval=(flips.low, flips.high),
        agreement=float((a.predictions == b.predictions).mean()), lost=tuple(pairs[:worst]),
    )  # fmt: skip
