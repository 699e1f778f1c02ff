"""Measures a network's accuracy under an attack and under common corruptions."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.bundle.history import Robustness
from vcompress.bench.data.preprocess import apply, crop, to_mode
from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.tasks import load
from vcompress.bench.tasks.scoring import score

from .. import quantization
from ..data.augment import seeded
from ..data.loader import Data, spread
from ..distillation.losses import total
from ..quantization.quantizers import ActivationQuantizer, WeightQuantizer
from ..tasks import training_task
from .attacks import attacked
from .corruptions import CORRUPTIONS, SEVERITIES, corrupt

log = logging.getLogger(__name__)


_BATCH = 64


@dataclass(frozen=True)
class Attack:
    """PGD, the reach on a scale of 0 to 1."""

    epsilon: float = 0.03
    steps: int = 10


def measure(
    model: nn.Module, file: Path, data: Data, count: int, attack: Attack | None = None,
    runtime: str = "onnxruntime",
) -> Robustness:  # fmt: skip
    """The task's metric on up to `count` test images, spread evenly: as they are, under PGD against
    `model` in torch (the gradient goes straight through quantisers), and under corruptions of the
    pixels that `file` is shown in `runtime`.

    Raises:
        UserError: none of the images can be read.
    """
    attack, task = attack or Attack(), load(data.dataset.task)
    pixels, targets, seeds = _pixels(data, count)
    with open_session(file, runtime=runtime) as session:

        def value(images: list[npt.NDArray[np.uint8]]) -> float:
            batches = (
                (_inputs(images[n : n + _BATCH], data.preprocess), targets[n : n + _BATCH])
                for n in range(0, len(images), _BATCH)
            )
            return score(task, session, batches, names=data.classes).value

        corrupted = {
            kind: tuple(
                value([corrupt(x, kind, severity, s) for x, s in zip(pixels, seeds, strict=True)])
                for severity in SEVERITIES
            )
            for kind in CORRUPTIONS
        }
        clean = value(pixels)
    return Robustness(
        n=len(pixels),
        clean=clean,
        pgd=under_attack(model, pixels, targets, data, attack),
        epsilon=attack.epsilon,
        steps=attack.steps,
        corruptions=corrupted,
        mean_corrupted=float(np.mean(list(corrupted.values()))),
        metric=task.metrics[0].name,
        runtime=runtime,
    )


def under_attack(
    model: nn.Module, pixels: list[npt.NDArray[np.uint8]], targets: npt.NDArray[Any],
    data: Data, attack: Attack,
) -> float:  # fmt: skip
    """The task's metric of `model` under PGD on images `[H, W(, 3)]`, the same start every time.

    A quantised network has to withstand two attacks on each image: straight through its quantisers,
    and on the same network with them switched off. Clipping has zero gradient, so the first
    attack finds no direction, and the network is no safer for it (Athalye et al.: Obfuscated
    Gradients Give a False Sense of Security, 2018, arXiv:1802.00420). What did more harm counts.
    """
    model.eval()
    task, preprocess = training_task(data.dataset), data.preprocess
    ways = (nullcontext, partial(_unquantised, model))
    evaluator = task.deployed.evaluator(data.classes)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return total(task.loss(outputs, wanted))

    with seeded(0):
        for start in range(0, len(pixels), _BATCH):
            images = torch.from_numpy(_inputs(pixels[start : start + _BATCH], preprocess))
            part = targets[start : start + _BATCH]
            wanted, worst = task.tensor(part), None
            for way in ways if quantization.is_quantized(model) else ways[:1]:
                with way():
                    found = attacked(
                        model, images, wanted, kind="pgd", epsilon=attack.epsilon,
                        steps=attack.steps, mean=preprocess.mean, std=preprocess.std, loss=loss,
                    )  # fmt: skip
                with torch.no_grad():
                    outputs = model(found)
                    if worst is not None:
                        more = task.harm(outputs, wanted) > task.harm(worst, wanted)
                        outputs = torch.where(more[:, None], outputs, worst)
                worst = outputs
            assert worst is not None
            evaluator.update({"output": worst.numpy()}, part)
    return evaluator.value()


@contextmanager
def _unquantised(model: nn.Module) -> Iterator[None]:
    """The network with its quantisers switched off for a while."""
    kinds = (ActivationQuantizer, WeightQuantizer)
    on = [m for m in model.modules() if isinstance(m, kinds) and m.enabled]
    for quantizer in on:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in on:
            quantizer.enabled = True


def _pixels(
    data: Data, count: int
) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[Any], list[int]]:
    """Test images at the network's size, their targets and numbers."""
    found, kept = [], []
    for index in spread(data.dataset.splits["test"], count).tolist():
        if data.dataset.values(index, data.preprocess) is None:
            continue
        image = to_mode(data.dataset.image(index), data.preprocess.channels)
        found.append(np.asarray(crop(data.preprocess, image)))
        kept.append(index)
    if not found:
        raise UserError("There are no images to measure robustness on. Look at --data.")
    return found, data.dataset.targets[kept], kept


def _inputs(pixels: list[npt.NDArray[np.uint8]], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """`[B, C, H, W] float32`; the pixels have the network's size already."""
    whole = replace(preprocess, resize=None)
    return np.stack([apply(whole, Image.fromarray(x)) for x in pixels])
