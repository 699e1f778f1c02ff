"""Batches of a user's loader: tensors, tuples, dictionaries, or what `transform` makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vcompress.bench.errors import UserError

Batches: TypeAlias = Iterable[Any]
"""A loader: it yields tensors, tuples, dictionaries, or anything that a `transform` takes."""
Transform: TypeAlias = Callable[[Any], Any]

INPUTS = ("pixel_values", "image", "images", "img", "input", "inputs", "x")
TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys of a dictionary, the first that is there."""
BATCH = 64
"""Images in a part of one tensor that holds them all."""


def pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch, or of one item; None where there are no targets.

    A tensor is inputs alone; of a tuple the first two; of a dictionary what stands under the keys
    `INPUTS` and `TARGETS`, or its only tensor of floats.

    Raises:
        UserError: something else.
    """
    if isinstance(batch, Mapping):
        inputs = next((batch[key] for key in INPUTS if key in batch), None)
        if inputs is None:
            floats = [v for v in batch.values() if isinstance(v, Tensor) and v.is_floating_point()]
            inputs = floats[0] if len(floats) == 1 else None
        if inputs is None:
            raise UserError(
                f"The loader gives a dictionary with {', '.join(map(str, batch))}; expected images "
                f"under one of {', '.join(INPUTS)}. Give transform=, from a batch to its images."
            )
        return inputs, next((batch[key] for key in TARGETS if key in batch), None)
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise UserError("The loader gives an empty tuple; expected images first.")
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def batches(
    data: Batches | Tensor, transform: Transform | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Images `[B, ...]` of floats with targets, which are None where the loader gives none.

    Raises:
        UserError: something that cannot be iterated, or no floating-point tensor in a batch.
    """
    if isinstance(data, Tensor):
        data = torch.split(data, BATCH)
    if isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise UserError(
            f"data: got a {type(data).__name__}; expected a loader of batches, such as a "
            "torch.utils.data.DataLoader."
        )
    for number, batch in enumerate(data):
        inputs, targets = pair(transform(batch) if transform is not None else batch)
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim < 2:
            raise UserError(
                f"data: batch {number} has {_said(inputs)} for images; expected a tensor of floats "
                "[B, C, H, W], preprocessed. Give transform=, from a batch to its images, or to "
                "its images and targets."
            )
        if len(inputs):
            yield inputs, targets


def take(data: Batches | Tensor, transform: Transform | None, images: int) -> Tensor:
    """The first images of a loader, up to so many, `[N, ...]` on the CPU.

    Raises:
        UserError: the loader gives nothing.
    """
    found: list[Tensor] = []
    count = 0
    for inputs, _ in batches(data, transform):
        found.append(inputs[: images - count].detach().cpu())
        count += len(found[-1])
        if count >= images:
            break
    if not found:
        raise nothing()
    return torch.cat(found)


def nothing() -> UserError:
    """The error for a loader without a batch."""
    return UserError(
        "data: the loader gives nothing; expected batches of images. A generator that was read "
        "once is empty: give the loader itself."
    )


def labelled(
    data: Batches | Tensor, transform: Transform | None, count: int
) -> list[tuple[Tensor, Tensor]]:
    """The first batches of a loader with their targets.

    Raises:
        UserError: the loader gives nothing, or no targets.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for inputs, targets in batches(data, transform):
        if targets is None:
            raise UserError(
                "data: the batches have no targets, which a loss needs; expected tuples (images, "
                f"targets), or dictionaries with one of {', '.join(TARGETS)}."
            )
        found.append((inputs, torch.as_tensor(targets)))
        if len(found) >= count:
            break
    if not found:
        raise nothing()
    return found


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return f"a {type(value).__name__}"
