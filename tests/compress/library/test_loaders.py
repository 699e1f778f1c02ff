"""Batches as users have them."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress.library.loaders import batches, labelled, pair, take

IMAGES, LABELS = torch.zeros(4, 3, 8, 8), torch.arange(4)


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, LABELS), [IMAGES, LABELS], {"pixel_values": IMAGES, "labels": LABELS},
        UserDict(image=IMAGES, label=LABELS), {"anything": IMAGES, "target": LABELS},
    ],
)  # fmt: skip
def test_images_and_targets_are_found_in_tuples_and_dictionaries(batch: Any) -> None:
    images, targets = pair(batch)
    assert images is IMAGES
    assert targets is LABELS


def test_a_tensor_is_images_alone_and_one_that_holds_all_is_divided() -> None:
    found = list(batches(torch.zeros(100, 3, 8, 8)))
    assert [len(images) for images, _ in found] == [64, 36]
    assert all(targets is None for _, targets in found)


def test_a_transform_makes_images_of_any_batch() -> None:
    found = list(batches([{"a": IMAGES, "b": IMAGES}], lambda batch: batch["a"] + 1))
    assert float(found[0][0].mean()) == 1.0
    both = list(batches([("id", IMAGES, LABELS)], lambda batch: batch[1:]))
    assert both[0][1] is LABELS


def test_no_more_is_read_than_is_asked_for() -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield IMAGES, LABELS

    assert take(endless(), None, 10).shape == (10, 3, 8, 8)
    assert len(read) == 3
    assert len(labelled(endless(), None, 2)) == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "gives nothing"),
        (iter(()), "gives nothing"),
        ([torch.zeros(0, 3, 8, 8)], "gives nothing"),
        (7, "got a int; expected a loader"),
        ("digits", "got a str; expected a loader"),
        ([IMAGES.byte()], r"batch 0 has \[4, 3, 8, 8\] uint8"),
        ([["a", "b"]], "batch 0 has a str for images"),
        ([{"a": IMAGES, "b": IMAGES}], "a dictionary with a, b; expected images under"),
        ([()], "an empty tuple"),
    ],
)
def test_what_holds_no_images_is_one_message(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        take(data, None, 4)


def test_a_loss_needs_targets() -> None:
    with pytest.raises(UserError, match="the batches have no targets"):
        labelled([IMAGES], None, 4)
    with pytest.raises(UserError, match="gives nothing"):
        labelled([], None, 4)
