from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.runtimes.session import TensorSpec
from vcompress.bench.tasks.classification import TASK
from vcompress.bench.tasks.scoring import evaluated, images_at_once, score
from vcompress.bench.tasks.task import Score


def score_outputs(*given: Any) -> Score:
    return evaluated(TASK, *given).compute()


def scores(rows: list[list[float]]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_shares_counts_and_classes_are_counted() -> None:
    found = score_outputs(
        scores([[3, 1, 0], [0, 2, 1], [5, 0, 0], [0, 0, 9]]), np.array([0, 1, 1, 2]),
        ("a", "b", "c"),
    )  # fmt: skip
    assert (found.n, found.facts["correct"], found.value) == (4, 3, 0.75)
    assert [(c.name, c.n, c.note) for c in found.parts] == [
        ("a", 1, "1 of 1"), ("b", 2, "1 of 2"), ("c", 1, "1 of 1"),
    ]  # fmt: skip
    assert list(found.values) == ["top1"]
    assert found.evidence["predictions"].tolist() == [0, 1, 0, 2]
    assert found.interval[0] < 0.75 < found.interval[1]


def test_top_five_of_ten_classes() -> None:
    rows = np.tile(np.arange(10, dtype=np.float32)[::-1], (10, 1))
    found = score_outputs(rows, np.arange(10))
    assert [x.value for x in found.values.values()] == [0.1, 0.5]


def test_a_tie_goes_to_the_first_class_as_argmax_has_it() -> None:
    assert score_outputs(scores([[1, 1, 1]]), np.array([0])).evidence["predictions"].tolist() == [0]


def test_an_output_that_is_not_a_number_is_wrong_and_counted() -> None:
    found = score_outputs(scores([[np.nan, 1], [2, 1]]), np.array([1, 0]))
    assert (found.facts["correct"], found.nonfinite) == (1, 1)
    assert found.evidence["predictions"].tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [([0, 3], None, "labels go from 0 to 3"), ([0, 1], ("a", "b"), "3 outputs and the data 2")],
)
def test_labels_that_do_not_fit_the_outputs_are_refused(
    labels: list[int], classes: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        score_outputs(scores([[1, 0, 0]] * 2), np.array(labels), classes)


def batches(n: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((n, 3, 32, 32)).astype(np.float32)
    labels = rng.integers(0, 10, n)
    for start in range(0, n, size):
        yield images[start : start + size], labels[start : start + size]


def test_a_fixed_batch_gives_the_same_predictions_as_a_free_one(models: Path) -> None:
    with (
        open_session(models / "classifier.onnx") as free,
        open_session(models / "fixed.onnx") as fixed,
    ):
        a = score(TASK, free, batches(10, 10))
        b = score(TASK, fixed, batches(10, 7))
    assert (a.n, b.n) == (10, 10)
    np.testing.assert_array_equal(a.evidence["predictions"], b.evidence["predictions"])


def test_as_many_images_go_through_the_model_at_once_as_were_asked_for(busy: Any) -> None:
    """What a model answers may depend on the batch: one that is quantised dynamically takes its
    scales from it, and another has a 1 in a Reshape."""

    class Counting(busy):  # type: ignore[misc]
        def run(self, inputs: Any) -> Any:
            (array,) = inputs.values()
            sizes.append(len(array))
            return {"y": np.zeros((len(array), 10), np.float32)}

    session = Counting(0)
    session.inputs = (TensorSpec("x", ("batch", 3, 32, 32), "float32"),)
    for asked, called in ((1, [1] * 10), (4, [4, 4, 4])):
        sizes: list[int] = []
        assert score(TASK, session, batches(10, 64), batch=asked).n == 10
        assert sizes == called
    assert [images_at_once(session, batch) for batch in (1, 48, 64, 100)] == [64, 48, 64, 100]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(("batch", 4, 6, 3), "float32"), ((1, 4, 6, 3), "uint8"), (("n", 3, 4, 6), "uint8")],
)
def test_a_model_gets_its_own_layout_and_type(
    busy: Any, shape: tuple[int | str, ...], dtype: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6))
    values = (pixels / 255 - 0) / np.float32(1 / 255)  # as preprocessing makes them for bytes

    class Reading(busy):  # type: ignore[misc]
        def run(self, inputs: Any) -> Any:
            got.append(inputs["x"])
            return {"y": np.zeros(10, np.float32)}  # one image, without the axis of the batch

    session, got = Reading(0), list[np.ndarray]()
    session.inputs = (TensorSpec("x", shape, dtype),)
    found = score(TASK, session, iter([(values.astype(np.float32), np.zeros(5, np.int64))]))
    assert (found.n, found.value) == (5, 1.0)
    right = pixels.transpose(0, 2, 3, 1) if shape[-1] == 3 else pixels
    assert np.concatenate(got).dtype == dtype
    np.testing.assert_allclose(np.concatenate(got), right, rtol=1e-5)


def test_a_half_precision_model_is_fed_half_precision_images(models: Path) -> None:
    with open_session(models / "half.onnx") as session:
        assert score(TASK, session, batches(8, 8)).n == 8


def test_no_images_and_models_that_are_no_classifiers_are_refused(busy: Any, models: Path) -> None:
    with pytest.raises(UserError, match="no images"):
        score(TASK, busy(0), iter(()))
    with (
        open_session(models / "two_inputs.onnx") as two,
        pytest.raises(UserError, match="2 inputs"),
    ):
        score(TASK, two, batches(2, 2))
    with pytest.raises(UserError, match="no classifier"):
        score(TASK, busy(0, output=np.zeros((2, 3, 4))), batches(2, 2))


def test_what_changed_between_two_models() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
    right = score_outputs(np.eye(3, dtype=np.float32)[labels], labels, ("a", "b", "c"))
    worse = labels.copy()
    worse[:3] = 1  # three of class a are lost
    b = score_outputs(np.eye(3, dtype=np.float32)[worse], labels, ("a", "b", "c"))
    found = TASK.compare(right, b)
    assert found.difference == pytest.approx(-0.3)
    assert (found.only_a, found.only_b) == (3, 0)
    assert found.p_value == pytest.approx(0.25)
    assert found.negative_flips == pytest.approx(0.3)
    assert found.agreement == pytest.approx(0.7)
    assert found.lost == (("a", 4, 4, 1),)
    assert found.difference_interval[0] < -0.3 < found.difference_interval[1]


def test_accuracies_of_different_images_are_not_compared() -> None:
    a = score_outputs(scores([[1, 0]]), np.array([0]))
    b = score_outputs(scores([[1, 0]]), np.array([1]))
    with pytest.raises(UserError, match="different images"):
        TASK.compare(a, b)


def test_the_value_alone_is_the_share_of_right_images() -> None:
    rows = scores([[3, 1, 0], [0, 2, 1], [5, 0, 0], [0, np.nan, 9]])
    assert evaluated(TASK, rows, np.array([0, 1, 1, 2])).value() == 0.5
