"""How often each class stands in the masks of the training images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcompress.bench.data.dataset import IGNORED
from vcompress.bench.errors import UserError
from vcompress.bench.working import working

from .loader import Data


def class_weights(data: Data) -> NDArray[np.float32]:
    """Weights of the classes `[K]`: the inverse square root of each one's share of the training
    pixels, with the mean 1 over those pixels. A class that no pixel has weighs as the rarest.

    Raises:
        UserError: no pixel has a class, or a mask cannot be read.
    """
    mask, counts = data.dataset.mask, np.zeros(256, np.int64)
    assert mask is not None
    train = data.dataset.splits["train"]
    with working("counting the classes of pixels", len(train)) as work:
        for i in train:
            counts += np.bincount(np.asarray(mask(int(i))).ravel(), minlength=256)
            work.done()
    counts[IGNORED] = 0
    own = counts[: len(data.classes)]
    if not own.any():
        raise UserError("No pixel of the training masks has a class, so none can be weighed.")
    shares = own / own.sum()
    weights = 1 / np.sqrt(np.where(own, shares, shares[own > 0].min()))
    found: NDArray[np.float32] = (weights / (weights * shares).sum()).astype(np.float32)
    return found
