"""What calibration keeps of a tensor, and the range that each method finds in it."""

from __future__ import annotations

import pytest
import torch

from vcompress.compress.quantization.observers import LEAST, PER_IMAGE, Observer, find_range


@pytest.mark.parametrize("shape", [(64, 256, 7, 7), (64, 1280, 7, 7), (64, 49, 768), (3, 5, 100)])
def test_the_sample_sees_all_places_of_a_map_and_all_channels(shape: tuple[int, ...]) -> None:
    for dim in range(1, len(shape)):
        sizes = [-1 if d == dim else 1 for d in range(len(shape))]
        place = torch.arange(float(shape[dim])).view(sizes).expand(shape)
        observer = Observer("x")
        observer.update(place)
        (sample,) = observer.samples
        seen = sample.long().bincount()
        wanted = max(PER_IMAGE * shape[0], LEAST)
        assert len(sample) > min(place.numel(), wanted) / 2
        assert len(seen) == shape[dim]
        each = len(sample) / shape[dim]
        assert 0.7 * each <= int(seen.min()) <= int(seen.max()) <= 1.3 * each


def test_extremes_are_kept_exactly() -> None:
    values = torch.zeros(64, 256, 7, 7)
    values[3, 100, 2, 5], values[60, 7, 6, 6] = 9.0, -4.0
    observer = Observer("x")
    observer.update(values)
    kept = observer.values()
    assert (float(kept.min()), float(kept.max())) == (-4.0, 9.0)


@pytest.mark.parametrize(
    ("observer", "symmetric", "least", "most"),
    [
        ("minmax", False, 100.0, 100.0),
        ("percentile", False, 3.0, 5.0),
        ("mse", False, 3.0, 90.0),
        ("entropy", False, 3.0, 60.0),
        ("mse", True, 3.0, 60.0),
    ],
)
def test_an_outlier_sets_the_range_of_minmax_only(
    observer: str, symmetric: bool, least: float, most: float
) -> None:
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    values[0] = 100.0
    low, high = find_range(values, observer, 255, symmetric)
    assert least <= high <= most
    assert low < -3.0 if not symmetric else low == -high


def test_as_many_values_are_kept_of_the_same_images_in_smaller_batches() -> None:
    values = torch.randn(64, 64, 24, 24, generator=torch.Generator().manual_seed(0))
    counts = []
    for size in (64, 16):
        observer = Observer("x")
        for batch in values.split(size):
            observer.update(batch)
        counts.append(len(observer.values()))
    assert counts[0] == pytest.approx(64 * PER_IMAGE, rel=0.01)
    assert counts[1] == pytest.approx(counts[0], rel=0.01)
