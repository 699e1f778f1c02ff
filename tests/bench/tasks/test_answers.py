"""The forms in which exported classifiers say a class."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.tasks.answers import best_classes, of_lone_output
from vcompress.bench.tasks.classification import TASK

NAMES = ["cat", "dog", "owl"]
LOGITS = np.array([[0.1, 2.0, 1.0], [3.0, 0.0, 1.0]], np.float32)
MAPS = [dict(zip(NAMES, row, strict=True)) for row in LOGITS.tolist()]


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": LOGITS},
        {"y": LOGITS[:, :, None, None]},
        {"features": np.ones((2, 8), np.float32), "logits": LOGITS},
        {"label": np.array(["dog", "cat"], object), "map": MAPS},
        {"map": [{i: row[i] for i in (2, 0, 1)} for row in LOGITS.tolist()]},
    ],
)
def test_scores_are_ranked(outputs: Any) -> None:
    assert best_classes(outputs, NAMES, "net").tolist() == [[1, 2, 0], [0, 2, 1]]


@pytest.mark.parametrize(
    "chosen",
    [np.array([1, 0]), np.array([[1], [0]], np.int32), np.array([["dog"], ["cat"]], object)],
)
def test_a_class_itself_is_read_where_there_are_no_scores(chosen: Any) -> None:
    assert best_classes({"y": chosen}, NAMES, "net").tolist() == [[1], [0]]
    features = np.ones((2, 8), np.float32)
    assert best_classes({"f": features, "y": chosen}, NAMES, "net").tolist() == [[1], [0]]


def test_minus_infinity_masks_a_class_and_other_values_that_are_not_finite_are_no_answer() -> None:
    inf, nan = np.inf, np.nan
    rows = [[-inf, 1, 0], [-inf, -inf, -inf], [inf, 0, 0], [nan, 0, 0]]
    found = best_classes({"y": np.array(rows, np.float32)}, NAMES, "net")
    assert found[:, 0].tolist() == [1, -1, -1, -1]


def test_one_number_for_two_classes_is_a_probability_or_a_logit_of_the_second() -> None:
    assert of_lone_output(np.array([0.1, 0.6, 0.5, np.nan])).ravel().tolist() == [0, 1, 0, -1]
    assert of_lone_output(np.array([0.1, 0.6, -3.0])).ravel().tolist() == [1, 1, 0]
    evaluator = TASK.evaluator(["day", "night"], "net")
    evaluator.update({"y": np.array([[0.2], [0.4]], np.float32)}, np.array([0, 1]))
    evaluator.update({"y": np.array([[2.0], [-1.0]], np.float32)}, np.array([1, 0]))
    score = evaluator.compute()  # one is beyond 1, so all are logits
    assert score.evidence["predictions"].tolist() == [1, 1, 1, 0]
    assert score.value == 0.75
    assert score.parts[1].note == "2 of 2"


@pytest.mark.parametrize(
    "outputs",
    [{"y": np.zeros((2, 4, 5), np.float32)}, {"y": [{"mouse": 1.0}] * 2}, {"y": LOGITS[:, :2]}],
)
def test_another_form_is_refused(outputs: Any) -> None:
    with pytest.raises(UserError, match=r"is no classifier|has 2 outputs"):
        best_classes(outputs, NAMES, "net")
