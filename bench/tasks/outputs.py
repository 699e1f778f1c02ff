"""What a network gives, read and checked: the messages for what does not fit a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UserError
from .task import Array, Outputs


def flat(array: Array) -> Array:
    """`[B, K]` of `[B, K, 1, 1]`, and so on: without the axes of size 1 behind the second one."""
    kept = array.shape[:2] + tuple(size for size in array.shape[2:] if size != 1)
    return array.reshape(kept)


def float_output(outputs: Outputs, model: str, what: str, width: int | None = None) -> Array:
    """An output `[B, K]` of floats: the first of `width` columns, else the first.

    Raises:
        UserError: there is none; `what` says what was expected.
    """
    arrays = {name: a for name, a in outputs.items() if isinstance(a, np.ndarray)}
    found = [flat(a) for a in arrays.values() if a.dtype.kind == "f" and flat(a).ndim == 2]
    if found:
        return next((a for a in found if a.shape[1] == width), found[0])
    raise no_such_output(outputs, model, what, f"[batch, {what} outputs] of floats")


def no_such_output(outputs: Outputs, model: str, what: str, expected: str) -> UserError:
    """What a task says of a network that gives none of the outputs that it takes."""
    shapes = ", ".join(
        f"{name} {list(a.shape)} {a.dtype}" if isinstance(a, np.ndarray)
        else f"{name} {type(a).__name__}"
        for name, a in outputs.items()
    )  # fmt: skip
    return UserError(
        f"{model} is no {what}: expected an output {expected}, got {shapes}. Omit --data to time "
        "it alone."
    )


def check_width(k: int, names: Sequence[str] | None, model: str) -> tuple[str, ...]:
    """Names for `k` outputs. Raises UserError where another number is known."""
    if names is None:
        return tuple(map(str, range(k)))
    if len(names) != k:
        raise UserError(
            f"{model} has {k} outputs and the data {len(names)} classes. Give the data that "
            "the model was trained for, or --classes FILE with the names of the outputs."
        )
    return tuple(names)


def finite_numbers(outputs: Outputs, names: Sequence[str], model: str) -> Array:
    """The first output, `[B, K]` for `K` names, all finite.

    Raises:
        UserError: it has another shape, or holds a NaN or an infinity.
    """
    found = next(iter(outputs.values()))
    if found.ndim != 2 or found.shape[1] != len(names):
        raise UserError(
            f"{model}: its output is {list(found.shape)}, and the bundle has {len(names)} labels; "
            f"expected [batch, {len(names)}]. Export the bundle again."
        )
    if not np.isfinite(found).all():
        raise UserError(f"{model}: the model gives NaN or infinity for this image.")
    return found
