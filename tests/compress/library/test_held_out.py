"""Data that a user holds in code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench import Preprocess
from vcompress.bench.data.preprocess import apply
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
