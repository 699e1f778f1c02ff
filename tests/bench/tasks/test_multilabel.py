"""Mean average precision and F1 equal scikit-learn's; intervals cover; comparisons are paired."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from vcompress.bench.errors import UserError
from vcompress.bench.tasks.multilabel import TASK, average_precision
from vcompress.bench.tasks.scoring import evaluated
from vcompress.bench.tasks.task import Score

NAMES = ("cat", "dog", "bird", "none")


def score_outputs(*given: Any) -> Score:
    return evaluated(TASK, *given).compute()


def outputs(n: int = 200, seed: int = 0, noise: float = 1.0) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 4)) < (0.5, 0.2, 0.05, 0.0)).astype(np.int8)
    logits = (2 * labels - 1 + noise * rng.standard_normal((n, 4))).astype(np.float32)
    return np.round(logits, 1), labels  # rounded, so that many are equal


def test_average_precision_and_f1_are_scikit_learns() -> None:
    logits, labels = outputs()
    found = score_outputs(logits, labels, NAMES)
    shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
    each = [average_precision_score(labels[:, k], shares[:, k]) for k in range(3)]
    assert found.values["mAP"].value == pytest.approx(np.mean(each), abs=1e-12)
    assert [p.value for p in found.parts[:3]] == pytest.approx(each, abs=1e-12)
    assert (found.parts[3].n, found.parts[3].note) == (0, "0 of 200")  # no image has it
    said = logits > 0
    assert found.values["f1_micro"].value == pytest.approx(
        f1_score(labels, said, average="micro"), abs=1e-12
    )
    assert found.values["f1_macro"].value == pytest.approx(
        f1_score(labels, said, average="macro", zero_division=1.0), abs=1e-12
    )
    assert found.values["exact_match"].value == np.mean((said == labels).all(1))
    assert found.metric.name == "mAP"


def test_weights_count_an_image_as_often_as_it_was_drawn() -> None:
    logits, labels = outputs(30, noise=2.0)
    weights = np.random.default_rng(1).integers(0, 3, (2, 30))
    found = average_precision(logits, labels, weights.astype(float))
    for row, times in enumerate(weights):
        again = np.repeat(np.arange(30), times)
        expected = average_precision_score(labels[again, 0], logits[again, 0])
        assert found[row, 0] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[:, 3]).all()


def test_the_interval_holds_the_value_of_a_larger_set_about_as_often_as_it_says() -> None:
    truth = score_outputs(*outputs(20_000, seed=99)).value
    inside = 0
    for seed in range(60):
        low, high = score_outputs(*outputs(300, seed=seed)).interval
        inside += low <= truth <= high
    assert 51 <= inside <= 60  # 95 % of 60 is 57


def test_what_changed_is_measured_on_the_same_images() -> None:
    logits, labels = outputs(noise=0.3)
    worse = logits.copy()
    worse[:40, 0] *= -1  # forty decisions about cats turn
    a, b = (score_outputs(x, labels, NAMES) for x in (logits, worse))
    found = TASK.compare(a, b)
    assert found.difference == pytest.approx(b.value - a.value)
    assert found.difference_interval[0] < found.difference < found.difference_interval[1] < 0
    right = ((logits > 0) == labels).all(1)
    assert found.only_a == int(right[:40].sum())
    assert found.agreement == pytest.approx(1 - 40 / labels.size)
    assert found.lost[0][0] == "cat"
    other = score_outputs(logits, 1 - labels, NAMES)
    with pytest.raises(UserError, match="different images"):
        TASK.compare(a, other)


def test_decisions_that_were_close_are_no_disagreement_beyond_noise() -> None:
    reference = np.array([[4.0, -4.0], [0.001, -4.0]])
    other = np.array([[4.0, -4.0], [-0.001, -4.0]])
    found = TASK.agreement(reference, other, 40)
    assert found is not None
    assert (found.share, found.beyond, found.what) == (0.75, 0, "labels")
    turned = TASK.agreement(reference, -reference, 40)
    assert turned is not None
    assert turned.beyond == 3


def test_labels_above_the_threshold_are_named_the_likeliest_first() -> None:
    numbers = TASK.numbers({"output": np.array([[0.0, 2.0, -2.0, 1.0]])}, NAMES, "net")[0]
    found = TASK.predict(numbers, NAMES, top=1, threshold=0.5)
    assert [p.label for p in found] == ["dog", "none"]
    assert found[0].score == pytest.approx(1 / (1 + np.exp(-2)))
    assert TASK.predict(numbers, NAMES, 1, 0.9) == ()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.array([0, 1]), "expected 0 or 1 for each label"),
        (np.array([[0, 2, 0, 0]] * 2), "expected 0 or 1 for each label"),
        (np.zeros((2, 4)), "None of the images has a label"),
    ],
)
def test_targets_of_another_kind_are_refused(targets: NDArray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_outputs(np.zeros((2, 4), np.float32), targets)


def test_an_output_that_is_not_a_number_finds_nothing_and_is_counted() -> None:
    logits, labels = outputs(10)
    logits[3] = np.nan
    assert score_outputs(logits, labels).nonfinite == 1


def test_the_value_alone_is_the_mean_average_precision_of_scikit_learn() -> None:
    logits, labels = outputs()
    found = evaluated(TASK, logits, labels, NAMES).value()
    each = [average_precision_score(labels[:, k], logits[:, k]) for k in range(3)]
    assert found == pytest.approx(np.mean(each), abs=1e-12)
    with pytest.raises(UserError, match="None of the images has a label"):
        evaluated(TASK, logits, 0 * labels).value()
