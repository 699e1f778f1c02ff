"""Maps of classes against torch and against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.preprocess import Geometry, geometry
from vcompress.bench.tasks.pixels import (
    _between,
    at_size_of_image,
    best_classes,
    confusion,
    edges_in_common,
    nearest,
    places,
    tolerance,
)


@pytest.mark.parametrize(
    ("small", "large"), [((8, 16), (64, 128)), ((7, 9), (50, 31)), ((33, 20), (20, 33))]
)
def test_resized_logits_decide_as_torchs_do(small: tuple[int, int], large: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        logits = rng.normal(size=(11, *small)).astype(np.float32)
        rows, columns = (places(n, m) for n, m in zip(small, large, strict=True))
        found, finite = best_classes(logits, rows, columns)
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(logits)[None], size=large, mode="bilinear", align_corners=False
        )[0]
        two = resized.topk(2, 0).values
        clear = (two[0] - two[1]).numpy() > 1e-5
        assert finite
        assert clear.mean() > 0.99
        assert (found == resized.argmax(0).numpy())[clear].all()


def test_classes_that_cannot_win_are_left_out_and_change_nothing() -> None:
    rng = np.random.default_rng(5)
    for n in range(100):
        classes, *sides = (int(x) for x in rng.integers(2, 20, 3))
        size = [int(rng.integers(2, 5) * side + 1) for side in sides]
        logits = rng.normal(size=(classes, *sides)) * rng.choice([0.001, 1, 100])
        logits += 4 * rng.normal(size=(classes, 1, 1)) * (n % 2)
        logits = (np.round(logits) if n % 3 == 0 else logits).astype(np.float32)  # with ties
        rows, columns = (places(a, b) for a, b in zip(sides, size, strict=True))
        whole = _between(_between(logits, columns, 2), rows, 1)
        assert (best_classes(logits, rows, columns)[0] == whole.argmax(0)).all()


def test_of_equal_logits_the_lower_class_is_taken_and_nan_is_none() -> None:
    logits = np.zeros((3, 2, 2), np.float32)
    logits[2, 0, 0] = 1
    logits[1, 1, 1] = np.nan
    logits[0, 0, 1] = np.inf
    found, finite = best_classes(logits, None, None)
    assert found.tolist() == [[2, 3], [0, 3]]
    assert not finite
    halves = logits.astype(np.float16)
    assert best_classes(halves[:, :1, :1], None, None)[0].tolist() == [[2]]


def test_a_large_map_is_decided_in_strips_as_argmax_does() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 301, 700)).astype(np.float32)
    assert (best_classes(logits, None, None)[0] == logits.argmax(0)).all()


def test_a_map_at_the_size_of_its_image_is_torchs() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(6, 16, 24)).astype(np.float32)
    whole = geometry(Preprocess(size=(64, 96)), (90, 120))
    found = at_size_of_image(logits, whole, 6)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size=(90, 120), mode="bilinear", align_corners=False
    )[0]
    assert (found == resized.argmax(0).numpy()).mean() > 0.9999
    classes = rng.integers(0, 6, (45, 60)).astype(np.uint8)
    doubled = at_size_of_image(classes, geometry(Preprocess(size=(45, 60)), (90, 120)), 6)
    assert (doubled == classes.repeat(2, 0).repeat(2, 1)).all()


def test_what_a_centre_crop_left_out_is_ignored() -> None:
    cut = geometry(Preprocess(size=(8, 8), resize=8), (16, 32))
    assert cut == Geometry((16, 32), (8, 16), (8, 8), (0, 4))
    classes = np.arange(64).reshape(8, 8) % 5
    found = at_size_of_image(classes.astype(np.uint8), cut, 5)
    assert (found[:, :8] == 255).all()
    assert (found[:, 24:] == 255).all()
    assert (found[:, 8:24] == classes.repeat(2, 0).repeat(2, 1)).all()
    logits = (classes == np.arange(5)[:, None, None]).astype(np.float32)
    sharp = at_size_of_image(logits, cut, 5)
    assert (sharp[:, :8] == 255).all()
    assert (sharp[::2, 8:24:2] == classes).all()


def test_the_nearest_pixel_is_the_one_whose_square_holds_the_place() -> None:
    values = np.arange(6).reshape(2, 3)
    assert nearest(values, (4, 6)).tolist() == values.repeat(2, 0).repeat(2, 1).tolist()
    assert nearest(values, (1, 1)).tolist() == [[4]]


def test_confusion_counts_every_pixel_but_the_ignored() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, (40, 50)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    said = rng.integers(0, 5, (40, 50)).astype(np.uint8)
    counts = confusion(truth, said, 4)
    for i in range(4):
        for j in range(5):
            assert counts[i, j] == ((truth == i) & (said == j)).sum()
    assert counts[4].tolist() == np.bincount(said[truth == 255], minlength=5).tolist()


def by_hand(truth: np.ndarray, said: np.ndarray, classes: int) -> np.ndarray:
    """Edges and those that are met, pixel by pixel."""
    height, width = truth.shape
    said = np.where(truth == 255, 255, said)
    reach = tolerance((height, width))

    def edge(map_: np.ndarray, y: int, x: int) -> bool:
        return map_[y, x] != 255 and any(
            0 <= v < height and 0 <= u < width and map_[v, u] not in (255, map_[y, x])
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        )

    on = [
        {(y, x, int(m[y, x])) for y in range(height) for x in range(width) if edge(m, y, x)}
        for m in (truth, said)
    ]
    found = np.zeros((4, classes), int)
    for row, mine, other in ((0, on[0], on[1]), (2, on[1], on[0])):
        for y, x, k in mine:
            if k < classes:
                near = range(-reach, reach + 1)
                found[row, k] += 1
                found[row + 1, k] += any((y + v, x + u, k) in other for v in near for u in near)
    return found


def test_edges_are_met_within_three_quarters_of_a_per_cent_of_the_diagonal() -> None:
    assert [tolerance(s) for s in ((128, 128), (512, 1024), (4, 4))] == [1, 9, 1]
    rng = np.random.default_rng(4)
    for size, cell in (((40, 30), 5), ((240, 200), 40)):
        assert tolerance(size) == (1 if size[0] == 40 else 2)
        coarse = rng.integers(0, 12, (size[0] // cell, size[1] // cell)).astype(np.uint8)
        truth = coarse.repeat(cell, 0).repeat(cell, 1)
        said = np.roll(truth, 2, 1)
        said[:, : size[1] // 2] = truth[:, : size[1] // 2]
        truth[3:9, 2:20] = 255
        found = edges_in_common(truth, said, 12)
        assert (found == by_hand(truth, said, 12)).all()
        assert found[1].sum() < found[0].sum() or size[0] != 40


def test_a_map_without_edges_has_none() -> None:
    flat = np.zeros((20, 20), np.uint8)
    assert not edges_in_common(flat, flat, 3).any()
