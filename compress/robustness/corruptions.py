"""Five common corruptions in five severities, on the pixels that the network is shown.

Hendrycks and Dietterich: Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, ICLR 2019, arXiv:1903.12261. The severities are those of ImageNet-C; up to 64 px,
where these would leave nothing to see, those of CIFAR-10-C.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

CORRUPTIONS = ("noise", "blur", "jpeg", "brightness", "contrast")
SEVERITIES = (1, 2, 3, 4, 5)
_SMALL_PIXELS = 64
_LARGE: Mapping[str, tuple[float, ...]] = {
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation, pixels from 0 to 1
    "blur": (1, 2, 3, 4, 6),  # standard deviation of the Gaussian, pixels
    "jpeg": (25, 18, 15, 10, 7),  # quality
    "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to the value of HSV
    "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # share of the distance to the mean that is left
}
_SMALL: Mapping[str, tuple[float, ...]] = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "jpeg": (80, 65, 58, 50, 40),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}

Pixels = npt.NDArray[np.uint8]


def corrupt(pixels: Pixels, kind: str, severity: int, seed: int = 0) -> Pixels:
    """An image `[H, W]` or `[H, W, 3]` of 8 bits, changed in one of `CORRUPTIONS`.

    Args:
        severity: 1 to 5.
        seed: of the noise.
    """
    table = _SMALL if max(pixels.shape[:2]) <= _SMALL_PIXELS else _LARGE
    amount = table[kind][severity - 1]
    if kind == "jpeg":
        stream = BytesIO()
        Image.fromarray(pixels).save(stream, "jpeg", quality=int(amount))
        return np.asarray(Image.open(stream, formats=("JPEG",)))
    x = pixels.astype(np.float64) / 255
    if kind == "noise":
        x = x + np.random.default_rng(seed).normal(0, amount, x.shape)
    elif kind == "blur":
        from scipy.ndimage import gaussian_filter

        x = gaussian_filter(x, (amount, amount, 0)[: x.ndim], mode="nearest")
    elif kind == "brightness":
        x = _brighter(x, amount)
    else:
        mean = x.mean((0, 1), keepdims=True)
        x = (x - mean) * amount + mean
    return (255 * x.clip(0, 1)).astype(np.uint8)


def _brighter(x: npt.NDArray[Any], amount: float) -> Any:
    """The value of HSV, the largest channel, raised; hue and saturation stay, black turns grey."""
    if x.ndim == 2:
        return x + amount
    value = x.max(2, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)
