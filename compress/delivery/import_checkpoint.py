"""`vcompress import`: a checkpoint from elsewhere becomes a bundle, and is measured at once."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from vcompress.bench.bundle import IMAGENET, Bundle, is_bundle
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION, open_dataset

from ..bundles import licences
from ..bundles.entry import plain, record_entry
from ..bundles.recorded import noise
from ..bundles.store import Network
from ..models.catalogue import build, check_forward, make_spec
from ..models.foreign import infer_classes, load_into
from ..models.head import head
from ..options import Options
from ..pipeline.finish import finish
from ..pipeline.resolve import choose_preprocess, free_name

log = logging.getLogger(__name__)


def import_checkpoint(
    name: str, weights: Path, labels_file: Path | None, out: Path | None, options: Options
) -> Bundle:
    """Load `weights` into the architecture `name` and write a bundle.

    Raises:
        UserError: a checkpoint that does not fit, labels or data with another number of classes.
    """
    target = out or free_name(weights.stem)
    if is_bundle(target) and not options.overwrite:
        raise UserError(f"{target}: there is a bundle already. Give --overwrite or another --out.")
    bundles.check_target(target)
    task = options.task or CLASSIFICATION
    dataset = None
    if options.data:
        dataset = open_dataset(options.data, options.data_root, options.seed, task=task)
    preprocess = choose_preprocess(options, dataset.default_preprocess if dataset else IMAGENET)
    if options.preprocess is None:
        log.info("no --preprocess given: taking %s", preprocess)
    # A probe with a number of classes that no other layer has finds where the head is.
    probe_classes = 1237
    probe = build(make_spec(name, probe_classes, preprocess.size))
    classes = infer_classes(weights, probe, head(probe, probe_classes))
    labels = _labels(labels_file, classes, dataset)
    spec = make_spec(name, classes, preprocess.size)
    network = Network(build(spec), spec)
    clock = time.monotonic()
    loaded = load_into(network.model, weights)
    if loaded.left_over:
        log.warning(
            "%d tensors of %s were left over: %s",
            len(loaded.left_over), weights, ", ".join(loaded.left_over[:6]),
        )  # fmt: skip
    network.model.eval()
    check_forward(network.model, noise(1, preprocess), classes)
    entry = replace(
        record_entry("import", spec, {"weights": weights.name}, options),
        inputs={"weights": {"path": str(weights), "sha256": bundles.sha256(weights)}},
        licences=licences.record(options, dataset),
        seconds=round(time.monotonic() - clock, 1),
        details=plain(vars(loaded)),
    )
    if dataset is not None:
        _reorder_check(labels, dataset)
    return finish(
        network, target, entry, (), labels=labels, preprocess=preprocess, dataset=dataset, task=task
    )


def _labels(file: Path | None, classes: int, dataset: Dataset | None) -> tuple[str, ...]:
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--labels {file}: cannot be read ({error}).") from None
        labels = tuple(line.strip() for line in lines if line.strip())
        source = f"--labels {file}"
    elif dataset is not None:
        labels, source = dataset.classes, f"the data {dataset.source}"
    else:
        return tuple(str(n) for n in range(classes))
    if len(labels) != classes:
        raise UserError(
            f"{source} has {len(labels)} classes, the checkpoint's head has {classes}. "
            f"Give the labels and data that it was trained with."
        )
    return labels


def _reorder_check(labels: tuple[str, ...], dataset: Dataset) -> None:
    if len(labels) != len(dataset.classes):
        raise UserError(
            f"the checkpoint's head has {len(labels)} classes, the data {dataset.source} has "
            f"{len(dataset.classes)}. Give the data that it was trained with, or leave --data out."
        )
    if labels != dataset.classes:
        wrong = next((a, b) for a, b in zip(labels, dataset.classes, strict=True) if a != b)
        raise UserError(
            f"the labels and the data's classes differ in order or name: {wrong[0]!r} against "
            f"{wrong[1]!r}. The data's folders are taken in alphabetical order; rename them to the "
            f"labels, or leave --labels out where the order is the same."
        )
