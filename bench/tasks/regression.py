"""Regression, one or more numbers an image: errors in the unit of the targets, and R squared."""

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
from . import task as tasks
from .metrics import metric
from .outputs import check_width, finite_numbers, float_output
from .task import Array, Outputs, Part, Score


def errors(predicted: Array, targets: Array, weights: Array) -> Array:
    """MAE, RMSE and R squared, the means over the outputs, then each output's MAE, `[R, 3 + K]`.

    Args:
        predicted, targets: `[N, K]`.
        weights: `[R, N]`, how often each image counts; R replicates at once.
    """
    total = weights.sum(1, keepdims=True)
    difference = predicted - targets
    squares = weights @ np.square(difference)
    moved = targets - targets.mean(0)  # far from 0 the squares would lose the spread
    centre = (weights @ moved) / total
    spread = weights @ np.square(moved) - total * np.square(centre)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = np.where(spread > 0, 1 - squares / spread, np.nan)
    each = weights @ np.abs(difference) / total
    means = [each.mean(1), np.sqrt(squares / total).mean(1), explained.mean(1)]
    return np.column_stack([*means, each])


@dataclass
class _Evaluator:
    names: Sequence[str] | None
    model: str
    predicted: list[Array] = field(default_factory=list)
    targets: list[Array] = field(default_factory=list)

    def update(self, outputs: Outputs, targets: Array) -> None:
        found = float_output(outputs, self.model, "regression").astype(np.float64)
        check_width(found.shape[1], self.names, self.model)
        if np.shape(targets) != found.shape:
            raise UserError(
                f"The targets are {list(np.shape(targets))} and the outputs of {self.model} "
                f"{list(found.shape)}; expected a number for each output of each image."
            )
        self.predicted.append(found)
        self.targets.append(np.asarray(targets, dtype=np.float64))

    def value(self) -> float:
        predicted, targets, _ = self._all()
        return float(np.abs(predicted - targets).mean())

    def compute(self, source: str = "") -> Score:
        predicted, targets, nonfinite = self._all()
        n, names = len(targets), check_width(predicted.shape[1], self.names, self.model)
        reached = errors(predicted, targets, np.ones((1, n)))[0]
        drawn = stats.bootstrap(lambda w: errors(predicted, targets, w), n)
        found = [stats.percentile_interval(float(x), drawn[:, i]) for i, x in enumerate(reached)]
        # Where all targets are the same there is no variance to explain, and no R squared.
        named = zip(("mae", "rmse", "r2"), found[:3], strict=True)
        values = {name: x for name, x in named if np.isfinite(x.value)}
        parts = tuple(
            Part(x, n, y.value, y.low, y.high, f"targets {of.min():.4g} to {of.max():.4g}")
            for x, y, of in zip(names, found[3:], targets.T, strict=True)
        )
        return Score(
            "regression", n, values, parts,
            {"predictions": predicted, "labels": targets}, nonfinite, source,
        )  # fmt: skip

    def _all(self) -> tuple[Array, Array, int]:
        """Outputs and targets `[N, K]`, and how many images got no number."""
        if not sum(map(len, self.targets)):
            raise tasks.no_images()
        predicted, targets = np.concatenate(self.predicted), np.concatenate(self.targets)
        finite = np.isfinite(predicted).all(1)
        # An image without a number is as wrong as one that was given the mean of all.
        predicted[~finite] = targets.mean(0)
        return predicted, targets, int((~finite).sum())


class Regression(tasks.WholeImages):
    """The target is a number for each output, `[N, K] float32`; the network gives `[B, K]`."""

    name = "regression"
    metrics = tuple(map(metric, ("mae", "rmse", "r2")))
    decides = ""
    answers: tuple[str, ...] = ()
    read_targets = staticmethod(own_targets.number_targets)

    def open(self, source: str, root: str | None, seed: int, download: bool) -> Dataset:
        """`digits` (what two of them form), a folder with `targets.csv`, or own code."""
        if is_own_data(source):
            return own.open_own(source, root, seed, self.read_targets)
        digits = source == "digits"
        return composed.two_digits(seed) if digits else tables.numbers_dataset(source, seed)

    def evaluator(self, names: Sequence[str] | None, model: str = "the model") -> _Evaluator:
        return _Evaluator(names, model)

    def compare(self, a: Score, b: Score) -> tasks.ScoreChange:
        tasks.same_images(a, b)
        wrong_a, wrong_b = (
            np.abs(x.evidence["predictions"] - x.evidence["labels"]).mean(1) for x in (a, b)
        )
        drawn = stats.bootstrap(lambda w: w @ (wrong_b - wrong_a) / w.sum(1), a.n)
        change = stats.percentile_interval(b.value - a.value, drawn)
        return tasks.ScoreChange(
            n=a.n, metric="mae", difference=change.value,
            difference_interval=(change.low, change.high),
            lost=tuple((x.name, x.n, x.value, y.value) for x, y in tasks.lost_most(a, b)),
        )  # fmt: skip

    def decisions(self, outputs: Array) -> Array | None:
        return None

    def agreement(self, reference: Array, other: Array, limit_db: float) -> tasks.Agreement | None:
        """None: a number decides nothing; the signal-to-error ratio says all."""
        return None

    def describe(self, target: Any, names: Sequence[str]) -> str:
        return ", ".join(f"{x} {v:.4g}" for x, v in zip(names, target, strict=True))

    def numbers(self, outputs: Outputs, names: Sequence[str], model: str) -> NDArray[np.float32]:
        """The values as they are."""
        return finite_numbers(outputs, names, model).astype(np.float32)

    def predict(
        self, numbers: Array, names: Sequence[str], top: int, threshold: float, geometry: Any = None
    ) -> tasks.Predictions:
        """Every output with its value."""
        values = enumerate(names)
        return tasks.Predictions(tasks.Prediction(x, float(numbers[i]), i) for i, x in values)


TASK: tasks.Task = Regression()
