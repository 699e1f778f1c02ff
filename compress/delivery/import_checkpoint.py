"""`vcompress import`: a checkpoint from elsewhere becomes a bundle, and is measured at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vcompress.bench.bundle import Bundle, Preprocess, is_bundle
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.bundle.atomic import claimed
from vcompress.bench.config import plain
from vcompress.bench.data.classes import fits, read_names, some, with_outputs
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION, load, open_dataset

from ..bundles import licences
from ..bundles.entry import record_entry
from ..bundles.recorded import noise
from ..bundles.store import Network
from ..data.loader import Data, split_of
from ..models import huggingface
from ..models.catalogue import ModelSpec, build, make_spec
from ..models.checkpoints import infer_classes, load_into
from ..models.head import heads
from ..models.outputs import check_forward, run
from ..models.pretrained import classes as classes_of
from ..models.pretrained import settle_transform
from ..options import Options
from ..pipeline.finish import finish
from ..pipeline.resolve import (
    choose_preprocess,
    default_preprocess,
    free_name,
    short_name,
    with_output,
)

log = logging.getLogger(__name__)

DEFAULT = "default"
_IMAGES_SEEN = 64
_PROBE = 1237
"""A number of classes that no checkpoint has."""


def import_checkpoint(
    name: str, weights: str, labels_file: Path | None, out: Path | None, options: Options
) -> Bundle:
    """Load `weights` into the architecture `name` and write a bundle.

    Args:
        weights: path of a checkpoint, or `default` for the weights in the folder of an `hf:FOLDER`.

    Raises:
        UserError: a checkpoint that does not fit, labels or data with another number of classes.
    """
    target = out or free_name(short_name(name) if weights == DEFAULT else Path(weights).stem)
    _check_target(target, options)
    task = options.task or CLASSIFICATION
    dataset = None
    if options.data:
        dataset = open_dataset(options.data, options.data_root, options.seed, task=task)
        if dataset.left_out:
            log.warning("%s", dataset.left_out)
    usual = default_preprocess([name], weights, dataset)
    preprocess = choose_preprocess(options, usual)
    if options.preprocess is None:
        log.info("no --preprocess given: taking %s", preprocess)
    clock = time.monotonic()
    if weights == DEFAULT:
        found = _from_folder(name, preprocess, options)
    else:
        data = None if dataset is None else Data(dataset, preprocess)
        found = _from_file(name, Path(weights), preprocess, options, data)
    network = found.network
    labels = _labels(labels_file, network.spec, found.labels, dataset)
    network.model.eval()
    check_forward(
        network.model, noise(1, preprocess), network.spec.classes, network.spec.name,
        maps=load(task).maps,
    )  # fmt: skip
    entry = replace(
        record_entry("import", network.spec, {"weights": found.file.name}, options),
        inputs={"weights": {"path": str(found.file), "sha256": bundles.sha256(found.file)}},
        licences=licences.record(options, dataset),
        seconds=round(time.monotonic() - clock, 1),
        details=found.details,
    )
    if dataset is not None:
        dataset = _as_outputs(dataset, labels, name, numbers=labels_file is not None)
    with claimed(target):
        _check_target(target, options)  # another run may have finished since
        return finish(
            network, target, entry, (), labels=labels, preprocess=preprocess, dataset=dataset,
            task=task,
        )  # fmt: skip


def _check_target(target: Path, options: Options) -> None:
    if is_bundle(target) and not options.overwrite:
        raise UserError(f"{target}: there is a bundle already. Give --overwrite or another --out.")
    bundles.check_target(target)


@dataclass(frozen=True)
class _Found:
    """A network with its weights, and where they came from."""

    network: Network
    file: Path
    details: dict[str, Any]
    labels: tuple[str, ...] | None = None
    """Names of the classes, where the source has them."""


def _from_file(
    name: str, file: Path, preprocess: Preprocess, options: Options, data: Data | None
) -> _Found:
    example = noise(1, preprocess)
    # A probe of another number of classes tells what the head is called.
    spec = make_spec(
        name, _PROBE, preprocess.size, weights=str(file), in_chans=len(preprocess.mean)
    )
    probe = with_output(build(spec), spec, example, options.output)
    given = run(probe.model, example, spec.name).shape[-1]
    paths = (options.head,) if options.head is not None else _heads(probe, given, example)
    classes = infer_classes(file, probe.model, paths, options.checkpoint_key)
    if classes != given != _PROBE:
        raise UserError(
            f"{name} always gives {given} logits, and the head in {file} has {classes}. Let the "
            f"factory take num_classes, or return the network that the file is of."
        )
    spec = replace(probe.spec, classes=classes, head=options.head)
    network = replace(probe, model=build(spec), spec=spec)
    loaded = load_into(network.model, file, key=options.checkpoint_key)
    if "transform_input" in spec.kwargs:
        network = _settled(network, data)
    if classes == 1 and (options.task or CLASSIFICATION) == CLASSIFICATION:
        network = two_logits(network, paths, example)
    if loaded.left_over:
        log.warning(
            "%d tensors of %s were left over: %s",
            len(loaded.left_over), file, ", ".join(loaded.left_over[:6]),
        )  # fmt: skip
    return _Found(network, file, plain(vars(loaded)))


def _heads(probe: Network, classes: int, example: Tensor) -> tuple[str, ...]:
    try:
        return heads(probe.model, classes, example)
    except UserError:  # its message would speak of the probe's classes
        raise UserError(
            f"{probe.spec.name}: which layer gives the logits cannot be told. Name it: --head PATH."
        ) from None


def two_logits(network: Network, heads: Sequence[str], example: Tensor) -> Network:
    """A network with one logit, as it is trained with binary cross-entropy, as one with two.

    The first logit is nought, so that softmax gives what sigmoid gave, and the second class wins
    where the one logit is above nought.

    Args:
        heads: the layers that give the logit.
        example: `[1, C, H, W]`; the two networks are compared on noise like it.

    Raises:
        UserError: the architecture cannot be built for two classes, or computes something else.
    """
    spec = replace(network.spec, classes=2)
    both = build(spec)
    state = network.model.state_dict()
    for name, wanted in both.state_dict().items():
        tensor = state[name]
        if name.rpartition(".")[0] in heads and tensor.shape != wanted.shape:
            state[name] = torch.cat([torch.zeros_like(tensor), tensor])
    try:
        both.load_state_dict(state)
        images = torch.cat([example, torch.randn(7, *example.shape[1:])])
        one, two = run(network.model.eval(), images), run(both.eval(), images)
        same = two.shape == (len(images), 2) and torch.allclose(
            two[:, 1] - two[:, 0], one[:, 0], rtol=1e-3, atol=1e-4 * float(one.abs().max())
        )
    except RuntimeError:
        same = False
    if not same:
        raise UserError(
            f"{spec.name} gives one logit, and for two classes it computes something else. Let the "
            f"factory return a network with a logit for each class: nought and the one."
        )
    log.warning("one logit was made two, nought and itself: above nought is the second class")
    return Network(both, spec)


def _settled(network: Network, data: Data | None) -> Network:
    """A network whose images are transformed, or are not, as in its training."""
    spec, chosen = network.spec, True
    if data is None:
        said = "as torchvision's pretrained weights need it; --data checks it against the weights"
    else:
        images = data.images(split_of(data.dataset, "train"), _IMAGES_SEEN)
        chosen = settle_transform(network.model, images)
        said = "by the statistics in its first batch norm"
    log.warning("%s: transform_input is %s, %s", spec.name, "on" if chosen else "off", said)
    return replace(network, spec=replace(spec, kwargs={**spec.kwargs, "transform_input": chosen}))


def _from_folder(name: str, preprocess: Preprocess, options: Options) -> _Found:
    """The network of `hf:FOLDER` as it lies there."""
    named = huggingface.resolve(name) if name.startswith(huggingface.PREFIX) else None
    if named is None or named.folder is None:
        raise UserError(
            f"import --weights default is for a folder of transformers, hf:FOLDER; got {name}. "
            f"Give a checkpoint: --weights FILE."
        )
    if named.labels is None:
        raise UserError(
            f"{name}: config.json is of a network without a classifier. Train one: vcompress "
            f"finetune --model {name} --weights default."
        )
    spec = make_spec(
        name, len(named.labels), preprocess.size, options.head, in_chans=len(preprocess.mean)
    )
    network = with_output(build(spec, DEFAULT), spec, noise(1, preprocess), options.output)
    file = min(named.folder.glob("*.safetensors"))
    automatic = tuple(f"LABEL_{n}" for n in range(len(named.labels)))
    return _Found(network, file, {}, None if named.labels == automatic else named.labels)


def _labels(
    file: Path | None, spec: ModelSpec, own: tuple[str, ...] | None, dataset: Dataset | None
) -> tuple[str, ...]:
    """Names of the outputs: the user's, the source's own, those of ImageNet where the data are of
    it, else those of the data."""
    classes = spec.classes
    if file is not None:
        labels, source = read_names(file, "--labels"), f"--labels {file}"
    elif own is not None:
        return own
    elif dataset is not None:
        usual = classes_of(spec.name, classes) if dataset.task == CLASSIFICATION else None
        if usual is not None and fits(dataset, usual):
            return usual
        labels, source = dataset.classes, f"the data {dataset.source}"
    else:
        return tuple(str(n) for n in range(classes))
    if len(labels) != classes:
        raise UserError(
            f"{source} has {len(labels)} classes, the checkpoint's head has {classes}. "
            f"Give the labels and data that it was trained with; of data with some of its classes "
            f"say with --labels FILE what its outputs are."
        )
    return labels


def _as_outputs(dataset: Dataset, labels: tuple[str, ...], name: str, numbers: bool) -> Dataset:
    """The data with the network's outputs for classes."""
    if dataset.task == CLASSIFICATION:
        return with_outputs(dataset, labels, name, numbers)
    if dataset.classes != labels:
        raise UserError(
            f"the labels are {some(labels)}, and the data {dataset.source} have "
            f"{some(dataset.classes)}. Give the data that it was trained with, or omit --data."
        )
    return dataset
