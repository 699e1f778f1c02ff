"""Grad-CAM of two networks on images about which they disagree.

Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
ICCV 2017, arXiv:1610.02391.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.preprocess import crop, to_mode
from vcompress.bench.text import escape

from ..data.loader import Data, spread

if TYPE_CHECKING:
    from ..tasks.task import TrainingTask

_MOST_ASKED = 1000
"""Both networks run on the CPU here: a large validation split would take longer than training."""
_MOST_IMAGES = 6
_SIDE = 160


@dataclass(frozen=True)
class Viewer:
    """A network with what it takes and the order of its classes."""

    name: str
    model: nn.Module
    preprocess: Preprocess
    order: tuple[int, ...] | None = None
    """Where each class of the data stands in its logits; None where they are in that order."""


def last_convolution(model: nn.Module, example: Tensor) -> str | None:
    """Name of the last convolution with more than one pixel of output, as one pass meets them; None
    where there is none.

    Args:
        example: `[1, C, H, W]`.
    """
    met: list[str] = []

    def noted(name: str, output: Tensor) -> None:
        if output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            met.append(name)

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: noted(name, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for hook in hooks:
            hook.remove()
    return met[-1] if met else None


def grad_cam(model: nn.Module, layer: str, images: Tensor, classes: Tensor) -> Tensor:
    """How much each place speaks for a class, `[B, H, W]` from 0 to 1, at the images' size.

    Args:
        layer: a convolution of `model`.
        images: `[B, C, H, W]`.
        classes: `[B] int64`, one for each image.
    """
    kept: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_hook(lambda *parts: kept.append(parts[-1]))
    try:
        with torch.enable_grad():
            logits = model.eval()(images.clone().requires_grad_())
            chosen = logits.gather(1, classes[:, None]).sum()
            (slope,) = torch.autograd.grad(chosen, kept[0])
    finally:
        hook.remove()
    maps = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    maps = F.interpolate(maps, size=images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return (maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)).detach()


def disagreements_section(task: TrainingTask, first: Viewer, second: Viewer, data: Data) -> str:
    """HTML with both networks' Grad-CAM side by side, on validation images about which they
    disagree, the surest ones first (of numbers the ones farthest apart); or a sentence that there
    are none. Of many validation images a thousand are asked about, spread over the split.

    Test images are left alone: they are only ever measured on.
    """
    whole = len(data.dataset.splits["val"])
    indices = spread(data.dataset.splits["val"], _MOST_ASKED)
    data = replace(data, dataset=replace(data.dataset, splits={"val": indices}))
    outputs = [_outputs(viewer, data) for viewer in (first, second)]
    readable = [int(i) for i in indices if int(i) not in data.dataset.bad_images]
    heading = "<h2>Where they disagree</h2>"
    asked = f"{len(readable):,} validation images"
    if len(indices) < whole:
        asked += f", spread over {whole:,},"
    numbers, how_much = task.apart(*outputs)
    apart = (how_much > 0).nonzero()[:, 0]
    if not len(apart):
        return (
            f"{heading}<p>On all {asked} {escape(first.name)} and {escape(second.name)} agree.</p>"
        )
    count = len(apart)
    apart = apart[how_much[apart].argsort(descending=True, stable=True)][:_MOST_IMAGES]
    said = [task.numbers(found) for found in outputs]
    names, unit = data.classes, task.deployed.metrics[0].unit
    figures = []
    for place in apart.tolist():
        index = readable[place]
        cells = [_picture(_shown(data, index, first.preprocess), "image")]
        for viewer, values, chosen in zip((first, second), said, numbers, strict=True):
            number = int(chosen[place])
            value = float(values[place, number])
            shown = f"{100 * value:.0f} %" if unit else f"{value:.4g}"
            caption = f"{viewer.name}: {names[number]}, {shown}"
            cells.append(_picture(_seen(viewer, data, index, number), caption))
        label = task.deployed.describe(data.dataset.targets[index], names)
        figures.append(f"<p>Labelled {escape(label)}</p><div>{''.join(cells)}</div>")
    return (
        f'{heading}<p class="soft">On {count:,} of {asked} {escape(first.name)} and '
        f"{escape(second.name)} disagree. Red is what spoke for what "
        f"each gave (Grad-CAM of its last convolution).</p>{''.join(figures)}"
    )


def _outputs(viewer: Viewer, data: Data) -> Tensor:
    """Outputs on the validation images, `[N, K]`, names as the data have them."""
    own = replace(data, preprocess=viewer.preprocess, views=())
    viewer.model.eval()
    with torch.no_grad():
        found = [viewer.model(images) for images, _ in own.loader("val", 64)]
    outputs = torch.cat(found)
    if viewer.order is not None:
        outputs = outputs[:, list(viewer.order)]
    return outputs.float()


def _shown(data: Data, index: int, preprocess: Preprocess) -> Image.Image:
    """What the network sees of an image, in colour."""
    image = to_mode(data.dataset.image(index), preprocess.channels)
    return crop(preprocess, image).convert("RGB")


def _seen(viewer: Viewer, data: Data, index: int, number: int) -> Image.Image | None:
    """The image under its heat; None where the network has no convolution."""
    values = data.dataset.values(index, viewer.preprocess)
    assert values is not None
    images = torch.from_numpy(values)[None]
    layer = last_convolution(viewer.model, images)
    if layer is None:
        return None
    own = number if viewer.order is None else viewer.order[number]
    heat = grad_cam(viewer.model, layer, images, torch.tensor([own]))[0].numpy()
    grey = np.asarray(_shown(data, index, viewer.preprocess).convert("L"), np.float64)[..., None]
    colour = np.array([255.0, 40.0, 0.0])
    share = 0.65 * heat[..., None]
    return Image.fromarray((grey * (1 - share) + colour * share).astype(np.uint8))


def _picture(image: Image.Image | None, caption: str) -> str:
    if image is None:
        return f"<figure><figcaption>{escape(caption)}: no convolution</figcaption></figure>"
    smooth = Image.Resampling.NEAREST if max(image.size) < _SIDE else Image.Resampling.BILINEAR
    stream = BytesIO()
    image.resize((_SIDE, _SIDE), smooth).save(stream, "png")
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{_SIDE}" height="{_SIDE}" '
        f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )
