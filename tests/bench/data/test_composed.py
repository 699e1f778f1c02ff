"""Composed pictures: the targets say what stands there, and no digit is in two splits."""

from __future__ import annotations

import numpy as np

from vcompress.bench.data.composed import several_digits, two_digits
from vcompress.bench.data.sources import digits


def test_the_labels_are_those_of_one_to_four_digits() -> None:
    found = several_digits(0)
    counts = found.targets.sum(1)
    assert found.targets.shape == (1797, 10)
    assert (counts.min(), counts.max()) == (1, 4)
    assert [len(found.splits[name]) for name in ("train", "val", "test")] == [1259, 179, 359]
    assert found.image(0).size == (32, 32)
    assert several_digits(0).fingerprint == found.fingerprint
    assert several_digits(1).fingerprint != found.fingerprint


def test_the_number_is_read_from_left_to_right() -> None:
    found = two_digits(0)
    assert found.classes == ("number",)
    assert (found.targets.min(), found.targets.max()) == (0.0, 99.0)
    # The left half holds the tens: pictures with the same tens are alike there, and not right.
    tens = found.targets[:600, 0] // 10
    shares = []
    for place in (0, 16):
        half = [np.asarray(found.image(i), np.float64)[:, place : place + 16] for i in range(600)]
        means = np.stack([np.stack(half)[tens == k].mean(0) for k in range(10)])
        nearest = ((np.stack(half)[:, None] - means) ** 2).sum((2, 3)).argmin(1)
        shares.append((nearest == tens).mean())
    assert shares[0] > 0.4
    assert shares[1] < 0.25


def test_pictures_of_two_splits_share_no_digit() -> None:
    # A picture of one digit shows it whole: its pixels, made smaller again, are that digit's.
    pixels, labels, splits = digits(0)
    found = several_digits(0)
    owner = {name: set(part.tolist()) for name, part in splits.items()}
    assert not owner["train"] & owner["test"]
    single = [i for i in found.splits["test"] if found.targets[i].sum() == 1][:20]
    assert len(single) == 20
    for i in single:
        label = int(found.targets[i].argmax())
        assert label in labels[list(owner["test"])]
    assert pixels.shape == (1797, 8, 8)
