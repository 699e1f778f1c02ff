"""Semantic segmentation, a class for each pixel: mIoU, pixel accuracy, and how well edges are met.

Counts are kept of each image, and of all pixels one compressed map: no set of logits is in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..data import masks, own, own_targets, scenes
from ..data.dataset import IGNORED, Dataset
from ..errors import UserError
from ..own_code import is_own_data
from . import pixels
from . import task as tasks
from .metrics import metric
from .outputs import check_width, no_such_output
from .task import Agreement, Array, Outputs, Part, Prediction, Predictions, Score

_FAST = 1
"""Level of zlib: maps are smooth, so more effort gains little."""


def iou(hits: Array, unions: Array, weights: Array) -> Array:
    """Intersection over union of each class, pooled over the images, `[R, K]`; NaN for a class
    that no counted pixel has, in truth or prediction.

    Args:
        hits, unions: pixels, `[N, K]`.
        weights: `[R, N]`, how often each image counts; R replicates at once.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (weights @ hits) / (weights @ unions)
    return found


def mean_iou(hits: Array, unions: Array, weights: Array) -> Array:
    """Mean of `iou` over the classes that some counted pixel has, in truth or prediction, `[R]`.
    torchmetrics' convention (`MulticlassJaccardIndex`, macro)."""
    return _mean_known(iou(hits, unions, weights))


def boundary_f1(edges: Array, weights: Array) -> Array:
    """F1 of the edges, `[R]`: the mean over the classes that have edges in truth or prediction.

    Args:
        edges: `[N, 4, K]`, as `pixels.edges_in_common` counts them.
        weights: `[R, N]`.

    Csurka et al., 2013, with the counts pooled over the images, as mIoU pools them.
    """
    pooled = np.tensordot(weights, edges, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        recall, precision = pooled[:, 1] / pooled[:, 0], pooled[:, 3] / pooled[:, 2]
        f1 = 2 * precision * recall / (precision + recall)
    # With edges on one side alone, or none that meet, nothing was found; without any, no word.
    f1 = np.where((pooled[:, 0] + pooled[:, 2] > 0) & ~np.isfinite(f1), 0.0, f1)
    return _mean_known(f1)


def _mean_known(values: Array) -> Array:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        found: Array = np.where(known, values, 0.0).sum(1) / known.sum(1)
    return found


def class_maps(outputs: Outputs, classes: int | None, model: str) -> Array:
    """The output that says the class of each pixel: logits `[B, K, h, w]` in floats, or numbers of
    classes `[B, h, w]`.

    One output of floats for two classes is taken as the second one's logit, as `[B, 2, h, w]`.

    Raises:
        UserError: no output has one of these forms.
    """
    arrays = [a for a in outputs.values() if isinstance(a, np.ndarray)]
    floats = [a for a in arrays if a.dtype.kind == "f" and a.ndim == 4]
    whole = [a for a in arrays if a.dtype.kind in "iub"]
    whole = [a[:, 0] if a.ndim == 4 and a.shape[1] == 1 else a for a in whole]
    whole = [a for a in whole if a.ndim == 3]
    if classes is None:
        floats = floats[:1]
    for a in floats:
        if classes in (None, a.shape[1]):
            return a
    if whole:
        return whole[0]
    for a in floats:
        if classes == 2 and a.shape[1] == 1:
            return np.concatenate([np.zeros_like(a), a], 1)
        if a.shape[3] == classes:  # as TensorFlow has them
            return a.transpose(0, 3, 1, 2)
    if floats:
        check_width(floats[0].shape[1], range(classes or 0), model)  # type: ignore[arg-type]
    raise no_such_output(
        outputs, model, "segmenter",
        "[batch, classes, height, width] of floats or [batch, height, width] of whole numbers",
    )  # fmt: skip


@dataclass
class _Evaluator:
    names: Sequence[str] | None
    model: str
    rows: list[tuple[Array, ...]] = field(default_factory=list)
    """For each image `[K]` truth, predicted, hits and union; then `[4, K]` edges."""
    pixels: list[bytes] = field(default_factory=list)
    """For each image two compressed maps: the classes, then which of them are right."""
    nonfinite: int = 0

    def update(self, outputs: Outputs, targets: Array) -> None:
        found = class_maps(outputs, len(self.names) if self.names else None, self.model)
        if self.names is None and found.ndim == 3:
            raise UserError(
                f"{self.model} gives classes and no logits, so the number of classes must be known:"
                " give --classes FILE."
            )
        width = len(self.names) if self.names is not None else found.shape[1]
        self.names = check_width(width, self.names, self.model)
        if width > pixels.MOST_CLASSES:
            raise UserError(f"{width} classes; at most {pixels.MOST_CLASSES} fit into a mask.")
        targets = np.asarray(targets)
        if targets.ndim != 3 or len(targets) != len(found) or targets.dtype.kind not in "iu":
            raise UserError(
                f"The masks are {list(targets.shape)} {targets.dtype} and the output of "
                f"{self.model} {list(found.shape)}; expected a mask for each image."
            )
        most = int(targets[targets != IGNORED].max(initial=0))
        if most >= width or targets.min(initial=0) < 0:
            raise UserError(
                f"The masks hold class {most}, but {self.model} has {width} classes, from 0."
            )
        for one, mask in zip(found, targets.astype(np.uint8), strict=True):
            self._add(one, mask, width)

    def _add(self, output: Array, mask: NDArray[np.uint8], width: int) -> None:
        said, finite = _classes(output, (mask.shape[0], mask.shape[1]), width)
        self.nonfinite += not finite
        counts = pixels.confusion(mask, said, width)
        counted = counts[:width]
        hits, truth, given = counted.diagonal(), counted.sum(1), counted[:, :width].sum(0)
        self.rows.append(
            (truth, counts[:, :width].sum(0), hits.copy(), truth + given - hits,
             pixels.edges_in_common(mask, said, width))
        )  # fmt: skip
        for kept in (np.where(mask == IGNORED, mask, said), np.packbits(said == mask)):
            self.pixels.append(zlib.compress(kept.tobytes(), _FAST))

    def value(self) -> float:
        _, _, hits, unions, _ = self._all()
        return float(mean_iou(hits, unions, np.ones((1, len(hits))))[0])

    def compute(self, source: str = "") -> Score:
        truth, given, hits, unions, edges = self._all()
        n, names = len(truth), self.names or ()

        def every(w: Array) -> Array:
            """mIoU, pixel accuracy, boundary F1, then the IoU of each class."""
            each = iou(hits, unions, w)
            with np.errstate(invalid="ignore"):
                accuracy = (w @ hits.sum(1)) / (w @ truth.sum(1))
            return np.column_stack([_mean_known(each), accuracy, boundary_f1(edges, w), each])

        reached, drawn = every(np.ones((1, n)))[0], stats.bootstrap(every, n)
        found = [stats.percentile_interval(float(x), drawn[:, i]) for i, x in enumerate(reached)]
        there, share = (unions > 0).sum(0), truth.sum(0) / max(truth.sum(), 1)
        parts = tuple(
            Part(x, int(c), y.value, y.low, y.high, f"{s:.1%} of the pixels")
            for x, c, y, s in zip(names, there, found[3:], share, strict=True)
        )
        shown = [m.name for m in TASK.metrics]
        values = {k: x for k, x in zip(shown, found, strict=False) if np.isfinite(x.value)}
        return Score(
            "segmentation", n, values, parts,
            {"predictions": given, "labels": truth, "hits": hits, "unions": unions,
             "pixels": np.frombuffer(b"".join(self.pixels), np.uint8),
             "ends": np.cumsum(list(map(len, self.pixels)))},
            self.nonfinite, source,
        )  # fmt: skip

    def _all(self) -> tuple[Array, ...]:
        if not self.rows:
            raise tasks.no_images()
        found = tuple(np.stack(column) for column in zip(*self.rows, strict=True))
        if not found[0].any():
            raise UserError("No pixel of the masks has a class, so there is nothing to measure.")
        return found


def _classes(output: Array, size: tuple[int, int], width: int) -> tuple[NDArray[np.uint8], bool]:
    """The class of each pixel `[H, W]` from one image's map, `width` where there is none."""
    if output.ndim == 2:
        found = pixels.nearest(output, size)
        odd = (found < 0) | (found >= width)
        return np.where(odd, width, found).astype(np.uint8), not odd.any()
    same = [
        None if n == m else pixels.places(n, m) for n, m in zip(output.shape[1:], size, strict=True)
    ]
    return pixels.best_classes(output, *same)


class Segmentation:
    """The target is a mask, `[H, W] uint8` of classes with 255 for pixels that do not count; the
    network gives logits `[B, K, h, w]` at its input's size or a smaller one, or their classes."""

    name = "segmentation"
    metrics = tuple(map(metric, ("mIoU", "pixel_accuracy", "boundary_f1")))
    decides = "pixel class"
    maps = True
    answers: tuple[str, ...] = ("resize_in_graph", "argmax")
    read_targets = staticmethod(own_targets.mask_targets)

    def open(self, source: str, root: str | None, seed: int, download: bool) -> Dataset:
        """`scenes` (also called `digits`: several of them over each other on a textured ground), a
        folder of images and masks, COCO's JSON, or own code."""
        if source in ("scenes", "digits"):
            return scenes.segmentation_scenes(seed)
        if is_own_data(source):
            return own.open_own_masks(source, root, seed)
        return masks.open_masks(source, seed)

    def prepare(self, preprocess: Any, image: Any, target: Any = None) -> tasks.Prepared:
        from ..data.preprocess import apply, apply_to_mask, geometry

        mask = None if target is None else apply_to_mask(preprocess, target)
        return tasks.Prepared(
            apply(preprocess, image), mask, geometry(preprocess, (image.height, image.width))
        )

    def evaluator(self, names: Sequence[str] | None, model: str = "the model") -> _Evaluator:
        return _Evaluator(names, model)

    def compare(self, a: Score, b: Score) -> tasks.ScoreChange:
        tasks.same_images(a, b)
        (hits_a, unions_a), (hits_b, unions_b) = (
            (x.evidence["hits"], x.evidence["unions"]) for x in (a, b)
        )
        drawn = stats.bootstrap(
            lambda w: mean_iou(hits_b, unions_b, w) - mean_iou(hits_a, unions_a, w), a.n
        )
        change = stats.percentile_interval(b.value - a.value, drawn)
        counted = a.evidence["labels"].sum(1)
        lost, same = _pixels_in_common(a, b)
        flips = stats.percentile_interval(
            float(lost.sum() / counted.sum()),
            stats.bootstrap(lambda w: (w @ lost) / (w @ counted), a.n),
        )
        return tasks.ScoreChange(
            n=a.n, metric="mIoU", difference=change.value,
            difference_interval=(change.low, change.high),
            negative_flips=flips.value, negative_flips_interval=(flips.low, flips.high),
            agreement=float(same.sum() / counted.sum()),
            lost=tuple((x.name, x.n, x.value, y.value) for x, y in tasks.lost_most(a, b)),
        )  # fmt: skip

    def decisions(self, outputs: Array) -> Array | None:
        """The class in each place."""
        if outputs.dtype.kind != "f":
            return outputs
        if outputs.ndim < 3:
            return None
        found: Array = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(1)
        return found

    def agreement(self, reference: Array, other: Array, limit_db: float) -> Agreement | None:
        first, second = self.decisions(reference), self.decisions(other)
        if first is None or second is None:
            return None
        share = float((first == second).mean())
        if reference.dtype.kind != "f":  # whole numbers have no margin
            return Agreement(share, 0, self.decides)
        if reference.shape[1] == 1:
            margin = np.where(first == second, 0.0, np.abs(reference[:, 0]))
        else:
            best, chosen = (np.take_along_axis(reference, x[:, None], 1) for x in (first, second))
            margin = best - chosen
        beyond = int((margin > tasks.clear_margin(reference, limit_db)).sum())
        return Agreement(share, beyond, self.decides)

    def masks(self, score: Score) -> tasks.Maps:
        return _Maps(score)

    def describe(self, target: Any, names: Sequence[str]) -> str:
        """The classes of a mask, the largest first: `road 61 %, sky 20 %`."""
        counts = np.bincount(np.asarray(target).ravel(), minlength=256)[: len(names)]
        order = (-counts).argsort(kind="stable")[: int((counts > 0).sum())]
        total = max(int(counts.sum()), 1)
        return ", ".join(f"{names[int(k)]} {counts[k] / total:.0%}" for k in order[:4])

    def numbers(self, outputs: Outputs, names: Sequence[str], model: str) -> Array:
        """The network's logits `[B, K, h, w] float32`, or its classes `[B, h, w]`."""
        found = class_maps(outputs, len(names), model)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise UserError(f"{model}: the model gives NaN or infinity for this image.")
        return found

    def predict(
        self, numbers: Array, names: Sequence[str], top: int, threshold: float,
        geometry: Any = None,
    ) -> Predictions:  # fmt: skip
        """The classes with the share of the pixels that each has, the largest first, and the mask
        at the image's own size."""
        mask = pixels.at_size_of_image(numbers, geometry, len(names))
        counts = np.bincount(mask.ravel(), minlength=256)[: len(names)]
        order = (-counts).argsort(kind="stable")[: int((counts > 0).sum())]
        total = max(int(counts.sum()), 1)
        return Predictions(
            (Prediction(names[int(k)], float(counts[k] / total), int(k)) for k in order), mask
        )


def _pixels_in_common(a: Score, b: Score) -> tuple[Array, Array]:
    """For each image the pixels that A had right and B has wrong, and those that both say alike."""
    lost, same = [], []
    for (said_a, right_a), (said_b, right_b) in zip(_Maps(a), _Maps(b), strict=True):
        lost.append(int((right_a & ~right_b).sum()))
        same.append(int(((said_a == said_b) & (said_a != IGNORED)).sum()))
    return np.array(lost), np.array(same)


class _Maps(Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]]):
    """The maps of a score, unpacked when they are asked for."""

    def __init__(self, score: Score) -> None:
        self._held, self._ends = score.evidence["pixels"], score.evidence["ends"]

    def __len__(self) -> int:
        return len(self._ends) // 2

    def __getitem__(self, n: Any) -> Any:
        if not 0 <= n < len(self):
            raise IndexError(n)
        said, right = (self._part(2 * n + k) for k in range(2))
        return said, np.unpackbits(right, count=len(said)).view(np.bool_)

    def _part(self, number: int) -> NDArray[np.uint8]:
        start = int(self._ends[number - 1]) if number else 0
        return np.frombuffer(
            zlib.decompress(self._held[start : int(self._ends[number])].tobytes()), np.uint8
        )


TASK: tasks.Task = Segmentation()
