"""What class a network gives each image, in the forms that exported classifiers have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .outputs import check_width, flat, float_output
from .task import Array, Outputs

BEST = 5
UNKNOWN = -1


def best_classes(outputs: Outputs, names: Sequence[str] | None, model: str) -> NDArray[np.int64]:
    """The likeliest classes of each image, the best first, `[B, n]`, n at most 5.

    Read are, in this order: scores `[B, K]` or `[B, K, 1, 1]` for the K classes; probabilities by
    the name of the class; the class itself, as a whole number or by its name. `-1` stands where a
    score is NaN or positive infinity, or none is finite (minus infinity masks a class), and where
    a class has no such name.

    Raises:
        UserError: no output has one of these forms.
    """
    named = list(names or ())
    for values in outputs.values():
        if maps := _maps(values, named):
            return _ranked(np.array([[row[key] for key in maps] for row in values], np.float32))
    whole = {name: flat(a) for name, a in outputs.items() if isinstance(a, np.ndarray)}
    if not any(_is_scores(a, len(named)) for a in whole.values()):
        for array in whole.values():
            if (chosen := _chosen(array, named)) is not None:
                return chosen
    scores = float_output(whole, model, "classifier", len(named) or None)
    check_width(scores.shape[1], names, model)
    return _ranked(scores)


def lone_output(outputs: Outputs, names: Sequence[str] | None) -> Array | None:
    """The one number `[B]` that a classifier of two classes gives each image; None where it gives
    something else. It is of the second class: a probability, or a logit."""
    if names is None or len(names) != 2:
        return None
    found = [flat(a) for a in outputs.values() if isinstance(a, np.ndarray)]
    alone = [a for a in found if a.dtype.kind == "f" and a.shape[1:] in ((), (1,))]
    if len(alone) != 1 or any(_is_scores(a, 2) for a in found):
        return None
    return alone[0].reshape(-1)


def of_lone_output(values: Array) -> NDArray[np.int64]:
    """The class of each number of `lone_output` for a whole set of images, `[N, 1]`.

    They are probabilities, split at a half, where all lie from 0 to 1; else logits, split at 0.
    """
    known = values[np.isfinite(values)]
    half = 0.5 if known.size and known.min() >= 0 and known.max() <= 1 else 0.0
    chosen = (values > half).astype(np.int64)
    chosen[np.isnan(values)] = UNKNOWN
    return chosen[:, None]


def _ranked(scores: Array) -> NDArray[np.int64]:
    order: NDArray[np.int64] = np.argsort(-scores.astype(np.float32), axis=1, kind="stable")
    order = order[:, :BEST]
    bad = np.isnan(scores) | np.isposinf(scores)
    order[bad.any(axis=1) | ~np.isfinite(scores).any(axis=1)] = UNKNOWN
    return order


def _is_scores(array: Array, classes: int) -> bool:
    return array.dtype.kind == "f" and array.ndim == 2 and classes in (0, array.shape[1])


def _maps(values: object, names: list[str]) -> list[object] | None:
    """The keys of maps from classes to probabilities in the order of the names, or of numbers."""
    if not isinstance(values, list) or not values or not isinstance(values[0], dict):
        return None
    keys = list(values[0])
    if set(keys) == set(names):
        return list(names)
    if all(isinstance(key, int) for key in keys) and sorted(keys) == list(range(len(keys))):
        return sorted(keys) if not names or len(names) == len(keys) else None
    return None


def _chosen(array: Array, names: list[str]) -> NDArray[np.int64] | None:
    """The class that an output of whole numbers or names says, `[B, 1]`."""
    if array.shape[1:] not in ((), (1,)):
        return None
    said = array.reshape(-1)
    if array.dtype.kind in "iu":
        return said.astype(np.int64)[:, None]
    if array.dtype.kind in "OU" and names:
        number = {name: i for i, name in enumerate(names)}
        return np.array([[number.get(str(name), UNKNOWN)] for name in said], np.int64)
    return None
