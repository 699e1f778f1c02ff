"""The corruptions against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vcompress.compress.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt

RNG = np.random.default_rng(0)


def flat(value: int | tuple[int, int, int], side: int) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_severity_changes_the_image_more_than_the_one_before(kind: str, side: int) -> None:
    y, x = np.mgrid[:side, :side]
    image = np.stack([127 + 80 * np.sin(x / 3), 127 + 80 * np.cos(y / 4), (x * y) % 256], -1)
    image = image.astype(np.uint8)
    changes = []
    for severity in SEVERITIES:
        found = corrupt(image, kind, severity)
        assert found.shape == image.shape and found.dtype == np.uint8
        assert np.array_equal(found, corrupt(image, kind, severity))
        changes.append(float(np.abs(found.astype(float) - image).mean()))
    assert changes == sorted(changes) and changes[0] > 0
    grey = corrupt(image[..., 0], kind, 3)
    assert grey.shape == (side, side)


def test_noise_has_the_deviation_of_the_paper_and_a_seed() -> None:
    for side, deviation in ((64, 0.08), (65, 0.18)):  # severity 3 of CIFAR-10-C and ImageNet-C
        found = corrupt(flat(128, side), "noise", 3) / 255
        assert found.std() == pytest.approx(deviation, rel=0.05)
    assert not np.array_equal(
        corrupt(flat(9, 8), "noise", 1, 0), corrupt(flat(9, 8), "noise", 1, 1)
    )


def test_brightness_raises_the_largest_channel_and_keeps_the_hue() -> None:
    found = corrupt(flat((100, 50, 0), 96), "brightness", 2)[0, 0] / 255
    value = 100 / 255 + 0.2
    assert found.tolist() == pytest.approx([value, value / 2, 0], abs=1 / 255)
    assert corrupt(flat(0, 96), "brightness", 1)[0, 0].tolist() == [25] * 3  # black turns grey
    assert corrupt(flat((250, 125, 0), 96), "brightness", 5)[0, 0].tolist() == [255, 127, 0]


def test_contrast_draws_each_channel_to_its_mean() -> None:
    image = flat(0, 96)
    image[:, :48] = (200, 100, 40)
    found = corrupt(image, "contrast", 1)  # 0.4 of the distance is left
    assert found[0, 0].tolist() == [140, 70, 28]
    assert found[0, 60].tolist() == [60, 30, 12]


def test_blur_spreads_a_line_as_a_gaussian() -> None:
    image = flat(0, 97)
    image[:, 48] = 255
    found = corrupt(image, "blur", 2)[48, :, 0] / 255  # deviation of 2 pixels
    by_hand = np.exp(-((np.arange(97) - 48) ** 2) / 8) / np.sqrt(8 * np.pi)
    assert found == pytest.approx(by_hand, abs=1.5 / 255)
    assert corrupt(flat(77, 97), "blur", 5)[0, 0, 0] in (76, 77)  # an edge is no black border
