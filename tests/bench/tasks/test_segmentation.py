"""mIoU, edges, intervals, comparison and predictions of segmenters."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vcompress.bench.bundle import Preprocess
from vcompress.bench.config import plain
from vcompress.bench.data.preprocess import geometry
from vcompress.bench.errors import UserError
from vcompress.bench.reports.json import _score, score_from
from vcompress.bench.tasks import load, open_dataset
from vcompress.bench.tasks.scoring import evaluated
from vcompress.bench.tasks.segmentation import TASK, class_maps
from vcompress.bench.tasks.task import Score

NAMES = ("road", "sky", "car", "never")
SIDE = 24


def example(n: int = 12, noise: float = 0.3, seed: int = 0) -> tuple[NDArray, NDArray]:
    """Logits `[N, 4, 24, 24]` and masks; the last class is nowhere."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 3, (n, 4, 4)).repeat(6, 1).repeat(6, 2).astype(np.uint8)
    shown = np.where(rng.random(masks.shape) < noise, rng.integers(0, 3, masks.shape), masks)
    logits = (shown[:, None] == np.arange(4)[:, None, None]).astype(np.float32) * 5
    logits += rng.random(logits.shape).astype(np.float32)
    masks[:, :2] = 255
    return logits, masks


def scored(logits: NDArray, masks: NDArray) -> Score:
    return evaluated(TASK, logits, masks, NAMES).compute("here")


def by_sets(said: NDArray, masks: NDArray) -> tuple[list[float], float]:
    """IoU of the classes that are somewhere, and the pixel accuracy."""
    counted = masks != 255
    each = []
    for k in range(4):
        a, b = (said == k) & counted, masks == k
        if (a | b).any():
            each.append((a & b).sum() / (a | b).sum())
    return each, float((said == masks)[counted].mean())


def test_miou_leaves_out_classes_that_are_nowhere_and_pixels_that_are_ignored() -> None:
    logits, masks = example()
    found = scored(logits, masks)
    each, accuracy = by_sets(logits.argmax(1), masks)
    assert len(each) == 3
    assert found.value == pytest.approx(np.mean(each), abs=1e-12)
    assert found.values["pixel_accuracy"].value == pytest.approx(accuracy, abs=1e-12)
    assert [p.value for p in found.parts[:3]] == pytest.approx(each, abs=1e-12)
    assert np.isnan(found.parts[3].value)
    assert (found.metric.name, found.n, found.parts[3].n) == ("mIoU", 12, 0)
    low, high = found.interval
    assert low < found.value < high < low + 0.2
    assert 0 < found.values["boundary_f1"].value < 1
    assert not found.says_one_thing
    assert found.record().metric == "mIoU"
    assert set(found.record().values) == {"pixel_accuracy", "boundary_f1"}


def test_miou_is_torchmetrics() -> None:
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(0)
    for classes in (2, 5, 30):
        truth = rng.integers(0, max(classes - 2, 2), (4, 40, 30)).astype(np.uint8)
        said = np.where(rng.random(truth.shape) < 0.5, truth, rng.integers(0, classes, truth.shape))
        truth[rng.random(truth.shape) < 0.1] = 255
        found = evaluated(TASK, said, truth, list(map(str, range(classes)))).compute()
        pair = torch.from_numpy(said).long(), torch.from_numpy(truth).long()
        counts = classification.MulticlassConfusionMatrix(classes, ignore_index=255)(*pair).double()
        unions = counts.sum(0) + counts.sum(1) - counts.diag()
        each = (counts.diag() / unions)[unions > 0]
        assert found.value == pytest.approx(float(each.mean()), abs=1e-9)
        # Its own result is divided in float32.
        reported = classification.MulticlassJaccardIndex(classes, ignore_index=255)(*pair)
        assert found.value == pytest.approx(float(reported), abs=1e-6)
        accuracy = classification.MulticlassAccuracy(classes, average="micro", ignore_index=255)
        assert found.values["pixel_accuracy"].value == pytest.approx(
            float(accuracy(*pair)), abs=1e-6
        )


def test_a_class_that_is_predicted_and_nowhere_true_counts_as_nought() -> None:
    logits, masks = example()
    logits[0, 3, 10, 10] = 99
    found = scored(logits, masks)
    each, _ = by_sets(logits.argmax(1), masks)
    assert len(each) == 4
    assert each[3] == 0
    assert found.value == pytest.approx(np.mean(each), abs=1e-12)
    assert (found.parts[3].value, found.parts[3].n) == (0.0, 1)


def test_a_perfect_map_has_one_everywhere() -> None:
    logits, masks = example(noise=0)
    found = scored(logits, masks)
    assert {x.value for x in found.values.values()} == {1.0}


def test_batches_and_a_smaller_stride_change_nothing_but_the_size() -> None:
    logits, masks = example()
    evaluator = TASK.evaluator(NAMES)
    for i in range(0, 12, 5):
        evaluator.update({"out": logits[i : i + 5]}, masks[i : i + 5])
    assert evaluator.value() == scored(logits, masks).value
    small = np.zeros((1, 4, 3, 3), np.float32)
    small[0, 1, :, 0] = 3
    wide = scored(small, masks[:1])
    columns = wide.evidence["predictions"][0] // SIDE
    assert columns.tolist() == [12, 12, 0, 0]  # halfway between the first and the second column


def test_classes_in_place_of_logits_are_taken() -> None:
    logits, masks = example()
    best = logits.argmax(1)
    want = scored(logits, masks).value
    for form in (best, best[:, None], best.astype(np.uint8), best.astype(np.int32)):
        assert scored(form, masks).value == want
    y, x = np.argwhere(best[0] == masks[0])[0]
    best[0, y, x] = 77  # no such class: wrong, and nothing more
    found = scored(best, masks)
    assert found.nonfinite == 1
    assert found.value < want


def test_one_logit_is_enough_for_two_classes() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (3, 8, 8)).astype(np.uint8)
    logit = np.where(masks == 1, 0.4, -0.4).astype(np.float32)[:, None]
    assert evaluated(TASK, logit, masks, ("ground", "crack")).value() == 1.0
    last = np.concatenate([-logit, logit], 1).transpose(0, 2, 3, 1)
    assert evaluated(TASK, last, masks, ("ground", "crack")).value() == 1.0


def test_the_output_with_the_classes_is_chosen_among_several() -> None:
    logits, _ = example()
    outputs = {"aux": np.zeros((12, 9, 24, 24), np.float32), "out": logits}
    assert class_maps(outputs, 4, "m") is logits
    with pytest.raises(UserError, match="m has 9 outputs and the data 3 classes"):
        class_maps(outputs, 3, "m")
    with pytest.raises(UserError, match=r"expected an output \[batch, classes, height, width\]"):
        class_maps({"y": np.zeros((2, 4), np.float32)}, 4, "m")


def test_outputs_without_a_number_are_no_class_and_said() -> None:
    logits, masks = example()
    logits[3] = np.nan
    found = scored(logits, masks)
    assert found.nonfinite == 1
    assert found.evidence["hits"][3].sum() == 0
    assert found.evidence["unions"][3].sum() == found.evidence["labels"][3].sum()


def test_masks_that_do_not_fit_are_refused() -> None:
    logits, masks = example()
    with pytest.raises(UserError, match="hold class 4, but the model has 4 classes"):
        scored(logits, np.where(masks == 2, 4, masks))
    with pytest.raises(UserError, match="expected a mask for each image"):
        scored(logits, masks[:, 0])
    with pytest.raises(UserError, match="nothing to measure"):
        scored(logits, np.full_like(masks, 255))
    with pytest.raises(UserError, match="no images"):
        TASK.evaluator(NAMES).compute()
    with pytest.raises(UserError, match="--classes FILE"):
        TASK.evaluator(None).update({"y": logits.argmax(1)}, masks)


def test_a_network_that_says_one_class_everywhere_says_one_thing() -> None:
    logits, masks = example()
    assert scored(np.ones_like(logits), masks).says_one_thing


def test_the_change_counts_the_pixels_that_flipped() -> None:
    logits, masks = example()
    worse, _ = example(noise=0.4)
    a, b = scored(logits, masks), scored(worse, masks)
    change = TASK.compare(a, b)
    first, second, counted = logits.argmax(1), worse.argmax(1), masks != 255
    flips = ((first == masks) & (second != masks))[counted].mean()
    assert change.negative_flips == pytest.approx(flips, abs=1e-12)
    assert change.agreement == pytest.approx((first == second)[counted].mean(), abs=1e-12)
    assert change.difference == b.value - a.value
    low, high = change.difference_interval
    assert low < change.difference < high < 0  # paired: clear, though the intervals overlap
    assert change.negative_flips_interval is not None
    assert change.negative_flips_interval[0] < flips < change.negative_flips_interval[1]
    assert change.lost[0][0] in NAMES
    same = TASK.compare(a, a)
    assert (same.difference, same.negative_flips, same.agreement) == (0, 0, 1)
    with pytest.raises(UserError, match="different images"):
        TASK.compare(a, scored(logits[:11], masks[:11]))
    with pytest.raises(UserError, match="different images"):
        TASK.compare(replace(a, images_sha256="1"), replace(a, images_sha256="2"))


def test_a_score_goes_through_json_and_compares_as_before() -> None:
    logits, masks = example()
    worse, _ = example(noise=0.4)
    a, b = scored(logits, masks), scored(worse, masks)
    again = score_from(json.loads(json.dumps(plain(_score(a)))))
    assert again.values == a.values
    assert TASK.compare(again, b) == TASK.compare(a, b)


def test_decisions_that_were_clear_count_when_they_differ() -> None:
    logits, _ = example(n=2)
    other = logits.copy()
    other[0, :, 0, 0] = np.roll(other[0, :, 0, 0], 1)
    found = TASK.agreement(logits, other, 40.0)
    assert found is not None
    assert found.share == 1 - 1 / (2 * SIDE * SIDE)
    assert (found.beyond, found.what) == (1, "pixel class")
    best = TASK.decisions(logits)
    assert best is not None
    assert (best == logits.argmax(1)).all()
    whole = TASK.agreement(best, best, 40.0)
    assert whole is not None
    assert (whole.share, whole.beyond) == (1.0, 0)
    one = logits[:, :1] - 2
    flipped = TASK.agreement(one, -one, 20.0)
    assert flipped is not None
    assert flipped.share == 0
    assert TASK.agreement(logits[:, :, 0, 0], logits[:, :, 0, 0], 20.0) is None


def test_a_prediction_names_the_classes_by_their_share_and_holds_the_mask() -> None:
    logits, _ = example(n=1)
    rows = TASK.numbers({"out": logits}, NAMES, "m")
    found = TASK.predict(rows[0], NAMES, 5, 0.5, geometry(Preprocess(size=(24, 24)), (48, 72)))
    assert found.mask is not None
    assert (found.mask.shape, found.mask.dtype) == ((48, 72), np.uint8)
    shares = [p.score for p in found]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    for one in found:
        assert one.score == (found.mask == one.index).mean()
        assert one.label == NAMES[one.index]
    with pytest.raises(UserError, match="NaN or infinity"):
        TASK.numbers({"out": logits * np.nan}, NAMES, "m")


def test_a_mask_is_described_by_its_largest_classes() -> None:
    mask = np.array([[0, 0, 0, 2], [255, 255, 1, 0]], np.uint8)
    assert TASK.describe(mask, NAMES) == "road 67%, sky 17%, car 17%"


def test_the_embedded_scenes_are_opened() -> None:
    for name in ("scenes", "digits"):
        found = open_dataset(name, task="segmentation")
        assert (found.source, found.task) == ("scenes", "segmentation")
    assert load("segmentation") is TASK
