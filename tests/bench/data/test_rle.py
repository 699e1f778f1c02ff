"""COCO's shapes, against its own tools where they are installed."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vcompress.bench.data.rle import classes_of, polygon_pixels, run_lengths, shape
from vcompress.bench.errors import UserError


def polygon(rng: np.random.Generator, kind: int, height: int, width: int) -> NDArray[np.float64]:
    """Corners that cross each other and the frame, a star, or whole numbers."""
    count = int(rng.integers(3, 30))
    if kind == 0:
        return np.round(rng.uniform(-0.3, 1.3, (count, 2)) * [width, height], 2)
    if kind == 1:
        angle, radius = np.sort(rng.uniform(0, 2 * np.pi, count)), rng.uniform(0.1, 0.6, count)
        star = np.stack([np.cos(angle) * width, np.sin(angle) * height], 1) * radius[:, None]
        return np.round(star + np.array([width, height]) / 2, 2)
    return rng.integers(0, max(height, width), (count, 2)).astype(np.float64)


def test_shapes_are_those_of_cocos_tools() -> None:
    tools = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for n in range(300):
        height, width = (int(x) for x in rng.integers(5, 120, 2))
        corners = polygon(rng, n % 3, height, width)
        theirs = tools.frPyObjects([corners.ravel().tolist()], height, width)
        want = tools.decode(theirs)[..., 0].astype(bool)
        assert (polygon_pixels(corners, (height, width)) == want).all()
        text = {"counts": theirs[0]["counts"].decode(), "size": [height, width]}
        assert (shape(text, (height, width), "here") == want).all()
        noise = rng.random((height, width)) < 0.4
        coded = tools.encode(np.asfortranarray(noise.astype(np.uint8)))
        text = {"counts": coded["counts"].decode(), "size": [height, width]}
        assert (shape(text, (height, width), "here") == noise).all()


def test_a_rectangle_holds_the_pixels_whose_middles_it_holds() -> None:
    corners = np.array([[2, 1], [7, 1], [7, 4], [2, 4]], np.float64)
    found = polygon_pixels(corners, (6, 9))
    want = np.zeros((6, 9), bool)
    want[1:4, 2:7] = True
    assert (found == want).all()
    assert not polygon_pixels(corners + 100, (6, 9)).any()


def test_run_lengths_go_down_the_columns() -> None:
    runs = {"counts": [2, 3, 1], "size": [3, 2]}
    assert shape(runs, (3, 2), "here").tolist() == [[False, True], [False, True], [True, False]]
    # 6 and then the differences to the run before the last; -1 has its sign in the fifth bit.
    assert run_lengths("63O12") == [6, 3, 31 - 32 + 0, 1 + 3, 2 - 1]


def test_shapes_that_are_none_are_refused() -> None:
    for given, said in (
        ({"counts": [1, 2], "size": [2, 2]}, "run lengths of 3 pixels; the image has 4"),
        ({"counts": "!!", "size": [2, 2]}, "run lengths of"),
        ({"counts": None}, "run lengths of no pixels"),
        ([[1, 2, 3, 4]], "a polygon of 4 values"),
        ([[1, 2, 3, 4, 5, "6"]], "a polygon of 6 values"),
        ([1, 2], "expected polygons or RLE"),
        ("x", "expected polygons or RLE"),
    ):
        with pytest.raises(UserError, match=said):
            shape(given, (2, 2), "here")


def test_the_smaller_object_lies_above() -> None:
    large, small = np.ones((3, 4), bool), np.zeros((3, 4), bool)
    small[1, 1:3] = True
    for shapes in ([(1, large), (2, small)], [(2, small), (1, large)]):
        assert (classes_of(shapes, (3, 4), 0) == np.where(small, 2, 1)).all()
