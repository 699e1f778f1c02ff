"""Data that a user holds in code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench import Preprocess
from vcompress.bench.data.preprocess import apply
from vcompress.bench.errors import UserError
from vcompress.compress.library.held_out import data_in_code, named_data

PRE = Preprocess(size=(8, 8))


class Items(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Any:
        if i >= 5:
            raise IndexError
        return Image.new("RGB", (20, 10), (40 * i, 0, 0)), i % 2


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return (Items()[i] for i in range(5))


@pytest.mark.parametrize(
    "data",
    [
        Items(), Stream(), [Items()[i] for i in range(5)],
        [{"image": Items()[i][0], "label": i % 2} for i in range(5)],
    ],
)  # fmt: skip
def test_pictures_are_prepared_as_on_the_device(data: Any) -> None:
    found = data_in_code(data, "classification", ("a", "b"), PRE)
    assert found.targets.tolist() == [0, 1, 0, 1, 0]
    assert len(found.splits["test"]) == len(found.splits["val"]) == 5
    values = found.values(2, PRE)
    assert values is not None
    np.testing.assert_array_equal(values, apply(PRE, Items()[2][0]))
    assert found.image(2).size == (20, 10)
    assert found.record() is None


def test_tensors_are_taken_as_they_are_and_loaders_apart() -> None:
    images, labels = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 2)
    found = data_in_code(loader, "classification", ("a", "b"), PRE)
    assert found.targets.tolist() == labels.tolist()
    values = found.values(3, PRE)
    assert values is not None
    np.testing.assert_array_equal(values, images[3].numpy())


def test_one_number_an_image_may_be_a_plain_number() -> None:
    found = data_in_code([(torch.zeros(3, 8, 8), 0.5)] * 2, "regression", ("height",), PRE)
    assert found.targets.shape == (2, 1)


def test_only_names_are_opened_by_name() -> None:
    digits = named_data("digits", "classification", None, 0)
    assert digits is not None and len(digits.classes) == 10
    assert named_data(digits, "classification", None, 0) is digits
    assert named_data(Items(), "classification", None, 0) is None
    assert named_data(None, "classification", None, 0) is None


class Listed(Items):
    """As torchvision's data sets: the targets stand in an attribute too."""

    def __init__(self, count: int, targets: list[int]) -> None:
        self.count, self.targets, self.decoded = count, targets, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        self.decoded += 1
        return Image.new("RGB", (8, 8)), i % 2


def test_no_image_is_decoded_for_a_target_that_is_listed() -> None:
    data = Listed(500, [i % 2 for i in range(500)])
    part = torch.utils.data.Subset(data, list(range(1, 500, 3)))
    for held, expected in ((data, np.arange(500) % 2), (part, np.arange(1, 500, 3) % 2)):
        data.decoded = 0
        found = data_in_code(held, "classification", ("a", "b"), PRE)
        assert found.targets.tolist() == expected.tolist()
        assert data.decoded <= 17  # the first one, and 16 that are held against the list


def test_a_list_of_targets_that_contradicts_the_items_is_refused() -> None:
    data = Listed(50, [0] * 50)
    with pytest.raises(UserError, match="attribute `targets` says something else than the items"):
        data_in_code(data, "classification", ("a", "b"), PRE)


def test_masks_in_code_are_asked_for_image_by_image() -> None:
    names, size = ("ground", "red"), Preprocess(size=(8, 8))
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (4, 8, 8))
    masks[0, 0] = 255
    photos = [Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(4)]
    pairs = [(p, Image.fromarray(m.astype(np.uint8))) for p, m in zip(photos, masks, strict=True)]
    found = data_in_code(pairs, "segmentation", names, size)
    assert found.targets.shape == (4, 0)
    assert found.classes == names
    both = found.both(0, size)
    assert both is not None
    assert (both[1] == masks[0]).all()
    # A loader of tensors gives batches, whose masks are at the network's size.
    loader = [(torch.zeros(2, 3, 8, 8), torch.from_numpy(masks[:2]))]
    prepared = data_in_code(loader, "segmentation", names, size)
    both = prepared.both(1, size)
    assert both is not None
    assert (both[1] == masks[1]).all()
    small = data_in_code([(torch.zeros(3, 8, 8), masks[0][:4])], "segmentation", names, size)
    with pytest.raises(UserError, match=r"the mask of item 0 is \[4, 8\]; expected \[8, 8\]"):
        small.both(0, size)
    with pytest.raises(UserError, match="the mask of item 1 holds 7; expected classes from 0 to 1"):
        data_in_code([pairs[0], (photos[1], masks[1] * 0 + 7)], "segmentation", names, size)
    with pytest.raises(UserError, match="item 0 has no target"):
        data_in_code([photos[0:1]], "segmentation", names, size)
