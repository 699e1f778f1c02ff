"""Scenes of digits: exact masks, boxes and labels, drawn by the seed, no digit in two splits."""

from __future__ import annotations

import numpy as np

from vcompress.bench.data.scenes import COUNTS, SIDE, open_scenes, segmentation_scenes
from vcompress.bench.data.sources import digits


def test_masks_boxes_and_labels_are_of_the_same_instances() -> None:
    scenes = open_scenes(0)
    hidden = 0
    for i in range(60):
        scene = scenes.scene(i)
        assert scene.pixels.shape == (SIDE, SIDE, 3)
        assert 1 <= len(scene.labels) <= 6
        assert scene.masks.shape == (len(scene.labels), SIDE, SIDE)
        assert (scene.masks.sum(0) == (scene.instances > 0)).all()  # no pixel is of two
        for mask, box, label in zip(scene.masks, scene.boxes, scene.labels, strict=True):
            left, top, right, bottom = (int(x) for x in box)
            ys, xs = np.nonzero(mask)
            assert (left, top, right, bottom) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert (scene.mask[mask] == label + 1).all()
        assert (scene.mask[scene.instances == 0] == 0).all()
        boxes = scene.boxes
        hidden += any(
            (np.minimum(a[2:], b[2:]) > np.maximum(a[:2], b[:2])).all()
            for n, a in enumerate(boxes) for b in boxes[:n]
        )  # fmt: skip
    assert hidden > 20  # they lie over each other


def test_a_scene_is_drawn_by_the_seed_and_its_number() -> None:
    one, again, other = (segmentation_scenes(seed) for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    for i in (0, 1999, 2000, 2599):
        assert (np.asarray(one.image(i)) == np.asarray(again.image(i))).all()
        assert (np.asarray(one.image(i)) != np.asarray(other.image(i))).any()
    assert (np.asarray(one.image(0)) != np.asarray(one.image(1))).any()


def test_a_data_set_of_scenes_has_a_mask_for_each_image() -> None:
    found = segmentation_scenes(3)
    assert found.classes == ("background", *"0123456789")
    assert {name: len(part) for name, part in found.splits.items()} == COUNTS
    assert found.targets.shape == (2600, 0)
    assert found.mask is not None
    assert (found.image(7).mode, found.mask(7).mode) == ("RGB", "L")
    pair = found.both(7, found.default_preprocess)
    assert pair is not None
    assert pair[0].shape == (3, SIDE, SIDE)
    assert (pair[1] == np.asarray(found.mask(7))).all()
    record = found.record()
    assert record is not None
    assert (record["source"], record["seed"]) == ("scenes", 3)


def test_every_digit_stands_in_scenes_of_one_split_alone() -> None:
    scenes, (_, labels, parts) = open_scenes(0), digits(0)
    assert {k: v.tolist() for k, v in scenes.parts.items()} == {
        k: v.tolist() for k, v in parts.items()
    }
    # With the digits of the test split made white squares, no training scene changes.
    white = scenes.pixels.copy()
    white[parts["test"]] = 255
    changed = type(scenes)(0, white, labels, parts)
    for i in range(20):
        assert (scenes.scene(i).pixels == changed.scene(i).pixels).all()
    assert any(
        (scenes.scene(i).pixels != changed.scene(i).pixels).any() for i in scenes.splits["test"][:5]
    )
    # All ten classes, about as many pixels of each.
    counts = np.bincount(
        np.concatenate([scenes.scene(i).mask.ravel() for i in range(200)]), minlength=11
    )
    assert 0.7 < counts[0] / counts.sum() < 0.9
    assert counts[1:].min() > 0.5 * counts[1:].max()
