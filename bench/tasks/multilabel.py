"""Multi-label classification, any number of labels an image: mean average precision and F1.

The network gives a logit for each label; a label counts as predicted above the probability 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..data import composed, own, own_targets, tables
from ..data.dataset import Dataset
from ..errors import UserError
from ..own_code import is_own_data
from .metrics import metric
from .outputs import check_width, finite_numbers, float_output
from .task import (
    Agreement,
    Array,
    Outputs,
    Part,
    Prediction,
    Predictions,
    Score,
    ScoreChange,
    Task,
    WholeImages,
    clear_margin,
    lost_most,
    no_images,
    right_and_wrong,
    same_images,
)

THRESHOLD = 0.5


def average_precision(scores: Array, labels: Array, weights: Array) -> Array:
    """Area under precision against recall, a step for each distinct score, `[R, K]`.

    Args:
        scores, labels: `[N, K]`, labels 0 or 1.
        weights: `[R, N]`, how often each image counts; R replicates at once.

    Returns:
        NaN for a label that no counted image has.
    """
    found = np.full((len(weights), scores.shape[1]), np.nan)
    for k in range(scores.shape[1]):
        order = np.argsort(-scores[:, k], kind="stable")
        ranked, hit = scores[order, k], labels[order, k]
        last = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are taken together
        counted = weights[:, order]
        hits = np.cumsum(counted * hit, axis=1)[:, last]
        seen = np.cumsum(counted, axis=1)[:, last]
        gained = np.diff(hits, axis=1, prepend=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(seen > 0, hits / seen, 0.0)
            found[:, k] = (precision * gained).sum(1) / hits[:, -1]
    return found


def f1(scores: Array, labels: Array, weights: Array) -> tuple[Array, Array]:
    """F1 over all decisions together (micro) and as the mean of the labels' (macro), `[R]` each."""
    predicted = (scores > THRESHOLD).astype(np.float64)
    both, either = weights @ (predicted * labels), weights @ (predicted + labels)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(either > 0, 2 * both / either, 1.0)
        micro = np.where(either.sum(1) > 0, 2 * both.sum(1) / either.sum(1), 1.0)
    return micro, each.mean(1)


def _all(scores: Array, labels: Array, weights: Array) -> Array:
    """mAP, micro F1 and macro F1, `[R, 3]`."""
    precisions = average_precision(scores, labels, weights)
    return np.stack([_mean_present(precisions), *f1(scores, labels, weights)], axis=1)


def _mean_present(precisions: Array) -> Array:
    """Mean over the labels that some image has, `[R]`."""
    present = np.isfinite(precisions)
    found: Array = np.where(present, precisions, 0.0).sum(1) / np.maximum(present.sum(1), 1)
    return found


@dataclass
class _Evaluator:
    names: Sequence[str] | None
    model: str
    scores: list[Array] = field(default_factory=list)
    labels: list[Array] = field(default_factory=list)
    nonfinite: int = 0

    def update(self, outputs: Outputs, targets: Array) -> None:
        logits = float_output(outputs, self.model, "classifier of labels").astype(np.float64)
        check_width(logits.shape[1], self.names, self.model)
        targets = np.asarray(targets)
        if targets.shape != logits.shape or not np.isin(targets, (0, 1)).all():
            raise UserError(
                f"The labels are {list(targets.shape)} and the outputs of {self.model} "
                f"{list(logits.shape)}; expected 0 or 1 for each label of each image."
            )
        finite = np.isfinite(logits).all(1)
        self.nonfinite += int((~finite).sum())
        logits[~finite] = -np.inf  # nothing was found
        self.scores.append(_sigmoid(logits))
        self.labels.append(targets.astype(np.int8))

    def value(self) -> float:
        scores, labels = self._all()
        return float(_mean_present(average_precision(scores, labels, np.ones((1, len(labels)))))[0])

    def compute(self, source: str = "") -> Score:
        scores, labels = self._all()
        names = check_width(scores.shape[1], self.names, self.model)
        return _score(scores, labels, names, self.nonfinite, source)

    def _all(self) -> tuple[Array, Array]:
        """Probabilities and labels `[N, K]`."""
        if not sum(map(len, self.labels)):
            raise no_images()
        labels = np.concatenate(self.labels)
        if not labels.any():
            raise UserError("None of the images has a label, so there is no precision to measure.")
        return np.concatenate(self.scores), labels


def _score(
    scores: Array, labels: Array, names: Sequence[str], nonfinite: int, source: str
) -> Score:
    n, once = len(labels), np.ones((1, len(labels)))
    reached = _all(scores, labels, once)[0]
    drawn = stats.bootstrap(lambda w: _all(scores, labels, w), n)
    values = {
        name: stats.percentile_interval(float(value), drawn[:, i])
        for i, (name, value) in enumerate(
            zip(("mAP", "f1_micro", "f1_macro"), reached, strict=True)
        )
    }
    right = int(((scores > THRESHOLD) == labels).all(1).sum())
    values["exact_match"] = stats.wilson(right, n)
    each = average_precision(scores, labels, once)[0]
    parts = tuple(
        Part(name, n if count else 0, float(value), float("nan"), float("nan"), f"{count} of {n}")
        for name, value, count in zip(names, each, labels.sum(0, dtype=int), strict=True)
    )
    return Score(
        "multilabel", n, values, parts,
        {"predictions": scores.astype(np.float32), "labels": labels}, nonfinite, source,
    )  # fmt: skip


class MultiLabel(WholeImages):
    """The target is 0 or 1 for each label, `[N, K] int8`; the network gives logits `[B, K]`."""

    name = "multilabel"
    metrics = tuple(map(metric, ("mAP", "f1_micro", "f1_macro", "exact_match")))
    decides = "labels"
    answers: tuple[str, ...] = ("sigmoid",)
    read_targets = staticmethod(own_targets.label_targets)

    def open(self, source: str, root: str | None, seed: int, download: bool) -> Dataset:
        """`digits` (which of them stand in a picture of several), or a folder with `labels.csv`
        (columns image and labels) or `labels.jsonl`, or own code."""
        if is_own_data(source):
            return own.open_own(source, root, seed, self.read_targets)
        if source == "digits":
            return composed.several_digits(seed)
        return tables.labels_dataset(source, seed)

    def evaluator(self, names: Sequence[str] | None, model: str = "the model") -> _Evaluator:
        return _Evaluator(names, model)

    def compare(self, a: Score, b: Score) -> ScoreChange:
        same_images(a, b)
        labels = a.evidence["labels"]
        first, second = (x.evidence["predictions"].astype(np.float64) for x in (a, b))
        drawn = stats.bootstrap(
            lambda w: (_all(second, labels, w) - _all(first, labels, w))[:, 0], a.n
        )
        change = stats.percentile_interval(b.value - a.value, drawn)
        said_a, said_b = first > THRESHOLD, second > THRESHOLD
        return ScoreChange(
            n=a.n, metric="mAP", difference=change.value,
            difference_interval=(change.low, change.high),
            **right_and_wrong((said_a == labels).all(1), (said_b == labels).all(1)),
            agreement=float((said_a == said_b).mean()),
            lost=tuple((x.name, x.n, x.value, y.value) for x, y in lost_most(a, b)),
        )  # fmt: skip

    def decisions(self, outputs: Array) -> Array | None:
        """The labels above the probability 0.5."""
        return (outputs > 0).astype(np.int8)

    def agreement(self, reference: Array, other: Array, limit_db: float) -> Agreement | None:
        differ = (reference > 0) != (other > 0)
        beyond = int((differ & (np.abs(reference) > clear_margin(reference, limit_db))).sum())
        return Agreement(float(1 - differ.mean()), beyond, self.decides)

    def describe(self, target: Any, names: Sequence[str]) -> str:
        return ", ".join(names[int(k)] for k in np.flatnonzero(target)) or "nothing"

    def numbers(self, outputs: Outputs, names: Sequence[str], model: str) -> NDArray[np.float32]:
        """The probability of each label."""
        return _sigmoid(finite_numbers(outputs, names, model).astype(np.float64)).astype(np.float32)

    def predict(
        self, numbers: Array, names: Sequence[str], top: int, threshold: float, geometry: Any = None
    ) -> Predictions:
        """The labels above `threshold`, the likeliest first; `top` does not limit them."""
        order = [i for i in (-numbers).argsort(kind="stable") if numbers[i] > threshold]
        return Predictions(Prediction(names[int(i)], float(numbers[i]), int(i)) for i in order)


def _sigmoid(logits: Array) -> Array:
    with np.errstate(over="ignore"):
        shares: Array = 1 / (1 + np.exp(-logits))
    return shares


TASK: Task = MultiLabel()
