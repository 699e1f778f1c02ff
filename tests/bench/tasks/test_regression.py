"""MAE, RMSE and R squared equal scikit-learn's; an error has the unit of the targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from vcompress.bench.errors import UserError
from vcompress.bench.tasks.regression import TASK, errors
from vcompress.bench.tasks.scoring import evaluated
from vcompress.bench.tasks.task import Score

NAMES = ("height", "weight")


def score_outputs(*given: Any) -> Score:
    return evaluated(TASK, *given).compute()


def outputs(n: int = 200, seed: int = 0) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(seed)
    targets = rng.normal((170, 70), (10, 15), (n, 2)).astype(np.float32)
    return targets + rng.normal(0, (2, 3), (n, 2)).astype(np.float32), targets


def test_the_errors_are_scikit_learns() -> None:
    predicted, targets = outputs()
    found = score_outputs(predicted, targets, NAMES)
    assert found.values["mae"].value == pytest.approx(mean_absolute_error(targets, predicted))
    assert found.values["rmse"].value == pytest.approx(root_mean_squared_error(targets, predicted))
    far = np.float64(1e6)  # also where the spread is small beside the numbers
    moved = score_outputs(predicted + far, targets + far, NAMES)
    expected = r2_score(targets.astype(np.float64), predicted.astype(np.float64))
    assert found.values["r2"].value == pytest.approx(expected, abs=1e-9)
    assert moved.values["r2"].value == pytest.approx(expected, abs=1e-9)
    each = mean_absolute_error(targets, predicted, multioutput="raw_values")
    assert [p.value for p in found.parts] == pytest.approx(list(each))
    assert all(p.low < p.value < p.high for p in found.parts)
    assert not found.metric.higher_is_better


def test_weights_count_an_image_as_often_as_it_was_drawn() -> None:
    predicted, targets = outputs(20)
    times = np.random.default_rng(1).integers(0, 4, 20)
    again = np.repeat(np.arange(20), times)
    found = errors(predicted, targets.astype(float), times[None].astype(float))[0]
    assert found[0] == pytest.approx(mean_absolute_error(targets[again], predicted[again]))
    assert found[2] == pytest.approx(r2_score(targets[again], predicted[again]), rel=1e-6)


def test_a_worse_network_has_a_larger_error_with_a_paired_interval() -> None:
    predicted, targets = outputs()
    a = score_outputs(predicted, targets, NAMES)
    b = score_outputs(predicted + np.array([1.0, 0], np.float32), targets, NAMES)
    found = TASK.compare(a, b)
    assert found.metric == "mae"
    assert found.difference == pytest.approx(b.value - a.value)
    low, high = found.difference_interval
    assert low < found.difference < high
    assert high - low < a.interval[1] - a.interval[0]  # pairing narrows it
    assert (found.p_value, found.negative_flips, found.agreement) == (None, None, None)
    assert found.lost[0][0] == "height"


def test_an_image_without_a_number_counts_as_the_mean_and_is_counted() -> None:
    predicted, targets = outputs(50)
    predicted[0] = np.nan
    found = score_outputs(predicted, targets, NAMES)
    assert found.nonfinite == 1
    filled = predicted.copy()
    filled[0] = targets.mean(0)
    assert found.value == pytest.approx(mean_absolute_error(targets, filled), rel=1e-6)


def test_every_output_is_predicted_with_its_value() -> None:
    numbers = TASK.numbers({"output": np.array([[1.5, -2.0]])}, NAMES, "net")[0]
    found = TASK.predict(numbers, NAMES, 1, 0.5)
    assert [(p.label, p.score) for p in found] == [("height", 1.5), ("weight", -2.0)]
    assert TASK.agreement(np.zeros((1, 2)), np.ones((1, 2)), 40) is None


def test_targets_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match="a number for each output"):
        score_outputs(np.zeros((2, 3), np.float32), np.zeros((2, 2)))
    with pytest.raises(UserError, match="3 outputs and the data 2"):
        score_outputs(np.zeros((2, 3), np.float32), np.zeros((2, 3)), NAMES)


def test_the_value_alone_is_that_of_the_whole_score() -> None:
    predicted, targets = outputs(50)
    predicted[3] = np.inf
    found = evaluated(TASK, predicted, targets, NAMES)
    assert found.value() == pytest.approx(found.compute().value, rel=1e-12)
    with pytest.raises(UserError, match="no images"):
        TASK.evaluator(NAMES).value()


def test_the_interval_of_an_output_is_that_of_its_own_score() -> None:
    predicted, targets = outputs()
    both = score_outputs(predicted, targets, NAMES)
    for k, name in enumerate(NAMES):
        alone = score_outputs(predicted[:, k : k + 1], targets[:, k : k + 1], (name,))
        part = both.parts[k]
        assert (part.name, part.n) == (name, 200)
        assert (part.value, part.low, part.high) == pytest.approx((alone.value, *alone.interval))


@pytest.mark.parametrize("n", [1, 5])
def test_targets_that_are_all_the_same_have_errors_and_no_r_squared(n: int) -> None:
    found = score_outputs(np.full((n, 1), 3.5), np.full((n, 1), 3.0))
    assert {name: (x.value, x.low, x.high) for name, x in found.values.items()} == {
        "mae": (0.5, 0.5, 0.5), "rmse": (0.5, 0.5, 0.5),
    }  # fmt: skip
