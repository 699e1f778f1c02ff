"""The classes of pixels on test images, as pictures, and the score of each class as bars."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import IGNORED, Dataset
from vcompress.bench.data.preprocess import apply_to_mask, crop, to_mode
from vcompress.bench.device.pictures import colours, overlay
from vcompress.bench.tasks import load
from vcompress.bench.tasks.task import Score
from vcompress.bench.text import escape

_MOST_IMAGES = 6
_WIDTH = 174
"""Pixels of a picture, across."""
_RED = np.array([230, 30, 30], np.uint8)


def masks_section(
    dataset: Dataset, preprocess: Preprocess, found: Score, before: Score | None = None
) -> str:
    """HTML with the test images that changed most against `before`, the float network; without it
    with those on which most pixels are wrong. Then the score of each class. Empty where the network
    gives no classes of pixels.
    """
    task = load(dataset.task)
    maps, first = task.masks(found), task.masks(before) if before is not None else None
    numbers = [int(i) for i in dataset.splits["test"] if int(i) not in dataset.bad_images]
    if maps is None or dataset.mask is None or len(numbers) != len(maps):
        return ""
    if before is None or first is None:
        heading, what, networks = "Where most pixels are wrong", "a wrong class", {"found": maps}
    else:
        heading, what = "Where the classes changed most", "another class than in float"
        networks = {"float": first, "quantised": maps}

    def apart(n: int) -> NDArray[np.bool_]:
        said, right = maps[n]
        differs = ~right if first is None else np.not_equal(said, first[n][0])
        found: NDArray[np.bool_] = np.logical_and(differs, said != IGNORED)
        return found

    shares = [float(apart(n).mean()) for n in range(len(maps))]
    order = sorted(range(len(maps)), key=lambda n: -shares[n])[:_MOST_IMAGES]
    shown = [n for n in order if shares[n]]
    rows, present = [], set[int]()
    for n in shown:
        image = crop(preprocess, to_mode(dataset.image(numbers[n]), preprocess.channels))
        truth = apply_to_mask(preprocess, dataset.mask(numbers[n]))
        size = truth.shape
        cells = [_figure(image.convert("RGB"), "image")]
        cells.append(_figure(overlay(image, truth, dataset.classes), "truth"))
        present |= set(np.unique(truth).tolist())
        for name, these in networks.items():
            said, right = these[n]
            counted = max(int((truth != IGNORED).sum()), 1)
            caption = f"{name}: {right.sum() / counted:.1%} right"
            cells.append(_figure(overlay(image, said.reshape(size), dataset.classes), caption))
            present |= set(np.unique(said).tolist())
        grey = np.asarray(image.convert("L").convert("RGB")) // 2 + 96
        where = Image.fromarray(np.where(apart(n).reshape(size)[..., None], _RED, grey))
        cells.append(_figure(where, f"{what}: {shares[n]:.1%}"))
        rows.append(f"<div>{''.join(cells)}</div>")
    sentence = f"The {len(shown)} of {found.n} test images with most pixels of {what}."
    if not shown:
        sentence = f"None of {found.n} test images has a pixel of {what}."
    return (
        f'<h2>{heading}</h2><p class="soft">{sentence}</p>{_legend(dataset.classes, present)}'
        f"{''.join(rows)}{_bars(found, before)}"
    )


def _legend(names: Sequence[str], present: set[int]) -> str:
    """The colours of the classes that the pictures show."""
    table = colours(names)
    return "".join(
        _figure(Image.new("RGB", (24, 12), tuple(table[k].tolist())), names[k], width=24)
        for k in sorted(present)
        if k < len(names)
    )


def _figure(image: Image.Image, caption: str, width: int = _WIDTH) -> str:
    height = max(round(width * image.height / image.width), 1)
    smooth = Image.Resampling.NEAREST if image.width < width else Image.Resampling.BILINEAR
    stream = BytesIO()
    # A page of photographs as PNG would be ten times as large.
    image.resize((width, height), smooth).save(stream, "jpeg", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" '
        f'alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _bars(found: Score, before: Score | None) -> str:
    """The score of each class, now and before, the one that lost most first."""
    shown = found.metric
    scores = [("float", before), ("quantised", found)] if before is not None else [("", found)]
    parts = [n for n, part in enumerate(found.parts) if part.n]
    if before is not None:
        old = before.parts
        parts = [n for n in parts if old[n].n]
        parts.sort(key=lambda n: -shown.loss(old[n].value, found.parts[n].value))
    head = "".join(f"<th>{name}</th>" for name, _ in scores)
    lines = []
    for n in parts:
        cells = "".join(
            f'<td><meter value="{score.parts[n].value:.4f}"></meter> '
            f"{shown.text(score.parts[n].value)}</td>"
            for _, score in scores
            if score is not None
        )
        lines.append(f'<tr><td class="left">{escape(found.parts[n].name)}</td>{cells}</tr>')
    return (
        f"<h2>{escape(shown.of_one or shown.title)} by {shown.parts}</h2><table>"
        f'<tr><th class="left">{shown.parts}</th>{head}</tr>{"".join(lines)}</table>'
    )
