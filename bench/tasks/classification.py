"""Classification, one class an image: accuracy, and what changed between two models.

`top1` is the share of images whose largest output is the label's; Wilson intervals, McNemar's test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..data import own, own_targets, sources
from ..data.dataset import Dataset
from ..errors import UserError
from ..own_code import is_own_data
from . import answers
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


@dataclass
class _Evaluator:
    names: Sequence[str] | None
    model: str
    best: list[Array] = field(default_factory=list)
    """The best classes of each batch, `[B, n]`; -1 where an output says none."""
    alone: list[Array] = field(default_factory=list)
    """`[B]`: the one output of a classifier of two classes."""
    labels: list[Array] = field(default_factory=list)

    def update(self, outputs: Outputs, targets: Array) -> None:
        if self.names is None:
            columns = float_output(outputs, self.model, "classifier").shape[1]
            self.names = check_width(columns, None, self.model)
        one = answers.lone_output(outputs, self.names)
        if one is not None:
            self.alone.append(one)
        else:
            self.best.append(answers.best_classes(outputs, self.names, self.model))
        width = len(self.names)
        if len(targets) and (targets.min() < 0 or targets.max() >= width):
            raise UserError(
                f"The labels go from {targets.min()} to {targets.max()}, but {self.model} has "
                f"{width} outputs."
            )
        self.labels.append(np.asarray(targets, dtype=np.int64))

    def value(self) -> float:
        best, labels = self._all()
        return float((best[:, 0] == labels).mean())

    def compute(self, source: str = "") -> Score:
        best, labels = self._all()
        return _score(best, labels, self.names or (), source)

    def _all(self) -> tuple[Array, Array]:
        """The best classes `[N, n]` and the labels `[N]`."""
        if not sum(map(len, self.labels)):
            raise no_images()
        labels = np.concatenate(self.labels)
        if self.alone:
            return answers.of_lone_output(np.concatenate(self.alone)), labels
        return np.concatenate(self.best), labels


def _score(best: Array, labels: Array, names: Sequence[str], source: str) -> Score:
    n, right = len(labels), best[:, 0] == labels
    top1 = stats.wilson(int(right.sum()), n)
    values = {"top1": top1}
    if len(names) > 5 and best.shape[1] > 1:
        values["top5"] = stats.wilson(int((best == labels[:, None]).any(1).sum()), n)
    counts = np.bincount(labels, minlength=len(names))
    hits = np.bincount(labels[right], minlength=len(names))
    parts = tuple(_part(x, int(c), int(h)) for x, c, h in zip(names, counts, hits, strict=True))
    top5 = values.get("top5")
    return Score(
        "classification", n, values, parts,
        {"predictions": best[:, 0].astype(np.int64), "labels": labels},
        nonfinite=int((best[:, 0] < 0).sum()), source=source,
        facts={  # the words of schema 1
            "correct": int(right.sum()), "top1": top1.value, "top1_interval": (top1.low, top1.high),
            "top5": top5.value if top5 else None,
            "top5_interval": (top5.low, top5.high) if top5 else None,
            "per_class": [
                {"name": x, "n": int(c), "correct": int(h)}
                for x, c, h in zip(names, counts, hits, strict=True)
            ],
        },
    )  # fmt: skip


def _part(name: str, n: int, hits: int) -> Part:
    if n == 0:
        return Part(name, 0, float("nan"), float("nan"), float("nan"))
    share = stats.wilson(hits, n)
    return Part(name, n, share.value, share.low, share.high, f"{hits} of {n}")


class Classification(WholeImages):
    """The label is a class's number, `[N] int64`; the network gives logits `[B, K]`."""

    name = "classification"
    metrics = (metric("top1"), metric("top5"))
    decides = "best class"
    answers: tuple[str, ...] = ("softmax", "top_k")
    read_targets = staticmethod(own_targets.class_targets)

    def open(self, source: str, root: str | None, seed: int, download: bool) -> Dataset:
        """`digits`, a folder of class folders, `torchvision:NAME` with `root`, or own code."""
        if is_own_data(source):
            return own.open_own(source, root, seed, self.read_targets)
        return sources.open_classes(source, root, seed, download)

    def evaluator(self, names: Sequence[str] | None, model: str = "the model") -> _Evaluator:
        return _Evaluator(names, model)

    def compare(self, a: Score, b: Score) -> ScoreChange:
        same_images(a, b)
        labels = a.evidence["labels"]
        first, second = a.evidence["predictions"], b.evidence["predictions"]
        found = right_and_wrong(first == labels, second == labels)
        change = stats.paired_difference(found["only_a"], found["only_b"], a.n)
        return ScoreChange(
            n=a.n, metric="top1", difference=change.value,
            difference_interval=(change.low, change.high), **found,
            agreement=float((first == second).mean()),
            lost=tuple(
                (x.name, x.n, round(x.value * x.n), round(y.value * y.n))
                for x, y in lost_most(a, b)
            ),
        )  # fmt: skip

    def decisions(self, outputs: Array) -> Array | None:
        """The best class; in each place of a map."""
        found: Array = outputs.argmax(1)
        return found

    def agreement(self, reference: Array, other: Array, limit_db: float) -> Agreement | None:
        if reference.ndim < 2 or reference.shape[1] < 2:
            return None
        best, chosen = reference.argmax(1, keepdims=True), other.argmax(1, keepdims=True)
        margin = np.take_along_axis(reference, best, 1) - np.take_along_axis(reference, chosen, 1)
        beyond = int((margin > clear_margin(reference, limit_db)).sum())
        return Agreement(float((best == chosen).mean()), beyond, self.decides)

    def describe(self, target: Any, names: Sequence[str]) -> str:
        return names[int(target)]

    def numbers(self, outputs: Outputs, names: Sequence[str], model: str) -> NDArray[np.float32]:
        """Softmax probabilities."""
        values = finite_numbers(outputs, names, model).astype(np.float64)
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return shares.astype(np.float32)

    def predict(
        self, numbers: Array, names: Sequence[str], top: int, threshold: float, geometry: Any = None
    ) -> Predictions:
        """The `top` likeliest classes, the best first."""
        # Stable: of equal scores the lower class number is named first, on every machine.
        order = (-numbers).argsort(kind="stable")[:top]
        return Predictions(Prediction(names[int(i)], float(numbers[i]), int(i)) for i in order)


def from_schema_1(saved: Mapping[str, Any]) -> Score:
    """The accuracy of a result that was written before there were other tasks."""
    low, high = saved["top1_interval"]
    return Score(
        "classification", int(saved["n"]),
        {"top1": stats.Interval(float(saved["top1"]), float(low), float(high), "Wilson")},
        tuple(_part(str(c["name"]), int(c["n"]), int(c["correct"])) for c in saved["per_class"]),
        {k: np.asarray(saved[k], dtype=np.int64) for k in ("predictions", "labels")},
    )  # fmt: skip


TASK: Task = Classification()
