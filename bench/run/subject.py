"""A model on the command line: its file, its bundle, its inputs and its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..bundle import IMAGENET, MODEL, Bundle, Preprocess, find_bundle, is_bundle
from ..bundle.history import threads_of
from ..config import from_mapping
from ..data.classes import named_outputs, some, with_outputs
from ..data.dataset import Dataset
from ..data.named import NotNamed
from ..data.sources import is_there
from ..errors import UserError
from ..onnx_file import files_of, is_onnx
from ..own_code import is_own_data
from ..runtimes.tensorrt import SUFFIXES as ENGINES
from ..tasks import CLASSIFICATION, open_dataset, open_recorded
from ..timing import inputs as feeds
from ..timing.inputs import Feed

if TYPE_CHECKING:
    from ..runtimes.session import Session, TensorSpec
    from .options import Options


ALL = "all"
"""In place of a split: every image."""


@dataclass(frozen=True)
class Subject:
    """A model that is to be measured."""

    name: str
    path: Path
    bundle: Bundle | None
    sha256: str | None = None
    """Hash of the file, where it was checked against the bundle's manifest."""


@dataclass(frozen=True)
class Images:
    """Labelled images to score on."""

    dataset: Dataset
    split: str
    indices: np.ndarray
    """[N] int64"""
    explicit: bool
    """Asked for by --data, not taken from the bundle."""

    @property
    def source(self) -> str:
        return f"{self.dataset.source}, {self.part}, {len(self.indices)} images"

    @property
    def part(self) -> str:
        """`test split`, or `all images`."""
        return "all images" if self.split == ALL else f"{self.split} split"


def subjects(paths: Sequence[Path], runtime: str | None) -> tuple[Subject, ...]:
    """Resolve the paths: a bundle stands for its model.onnx unless torch runs it."""
    found = []
    for path in paths:
        if not is_there(path):
            raise UserError(f"{path}: no such file. Give a model (.onnx, .engine) or a bundle.")
        if path.is_dir():
            if not is_bundle(path):
                raise UserError(f"{path} is a folder and no bundle. Give a model's file.")
            opened = Bundle.open(path)
            bundle: Bundle | None = opened
            file = path if runtime == "torch" else path / MODEL
            if not file.exists():
                raise UserError(
                    f"{path}: the bundle has no {MODEL}; it has "
                    f"{', '.join(sorted(opened.files))}. Export it, or give --runtime torch."
                )
        else:
            bundle, file = find_bundle(path), path
        sha256 = _check(bundle, file) if bundle and file.is_file() else None
        name = (bundle.path.resolve().name if bundle else file.stem) or file.stem
        if bundle and file.is_file() and file.name != MODEL:
            name = f"{name}/{file.name}"
        found.append(Subject(name, file, bundle, sha256))
    if len({s.name for s in found}) < len(found):
        found = [replace(s, name=_longer(s)) for s in found]
    if len({s.name for s in found}) < len(found):
        found = [replace(s, name=f"{chr(65 + i)}: {s.name}") for i, s in enumerate(found)]
    return tuple(found)


def _longer(subject: Subject) -> str:
    path = subject.path.resolve()
    return f"{path.parent.name}/{path.name}"


def _check(bundle: Bundle, file: Path) -> str | None:
    """A file that the manifest names must be the one it names; gives its SHA-256."""
    name = file.resolve().relative_to(bundle.path.resolve()).as_posix()
    if name not in bundle.files:
        return None
    bundle.file(name)
    for beside in files_of(file)[1:]:  # its weights, which the manifest must name too
        bundle.file(beside.relative_to(bundle.path.resolve()).as_posix())
    return bundle.files[name].sha256


def stamps(found: Sequence[Subject]) -> list[tuple[int, ...]]:
    """What changes when someone writes to a file that is measured, or puts another in its place."""
    files = [file for subject in found for file in files_of(subject.path) if file.is_file()]
    read = [file.stat() for file in files]
    return [(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in read]


def runtime_for(options: Options, found: Sequence[Subject]) -> tuple[str | None, list[str]]:
    """The runtime asked for, else the one that bundles were quantised for; with notes.

    It is one for all models. None leaves the choice to the endings of the files: where they are not
    ONNX, where a device or an option of another runtime was asked for, where bundles differ, and
    where the runtime is not here.
    """
    from ..runtimes import module, names, suits

    wanted = sorted({s.bundle.ships_in for s in found if s.bundle and s.bundle.ships_in})
    onnx = all(is_onnx(s.path) for s in found)
    if options.runtime is not None or options.device not in (None, "cpu") or not onnx:
        return options.runtime, []
    if len(wanted) > 1:
        return None, [f"quantised for {' and '.join(wanted)}: --runtime chooses where to measure"]
    if not wanted or wanted[0] not in names() or wanted[0] == suits(found[0].path):
        return None, []
    (name,) = wanted
    other = f"quantised for {name}, but not measured in it: "
    if ".onnx" not in module(name).SUFFIXES:
        return None, [f"{other}it opens {', '.join(module(name).SUFFIXES)}"]
    try:
        options.session_options(name)
        module(name).library()
    except UserError as error:
        return None, [f"{other}{error}"]
    return name, [f"measured in {name}, which the network was quantised for; --runtime changes it"]


def threads_for(options: Options, found: Sequence[Subject]) -> tuple[int | None, list[str]]:
    """The threads asked for, else those that the bundles' latencies were measured with; with a
    note. It is one number for all models; None is the runtime's choice: where no bundle has a
    latency, where they differ, and on another device than the CPU.
    """
    engines = options.runtime == "tensorrt" or any(s.path.suffix in ENGINES for s in found)
    recorded = {threads_of(s.bundle.history) for s in found if s.bundle} - {None}
    cpu = options.device in (None, "cpu") and not engines
    if options.threads is not None or not cpu or len(recorded) != 1:
        return options.threads, []
    (threads,) = recorded
    plural = "s" if threads != 1 else ""
    return threads, [f"{threads} thread{plural}, as the bundle's latency; --threads changes it"]


def images_for(options: Options, found: Sequence[Subject]) -> tuple[Images | None, list[str]]:
    """The data asked for, or what the first bundle records; with notes on what was left out.

    Raises `UserError` where data that was asked for cannot be used. Recorded data that is not on
    this machine is only noted.
    """
    bundle = found[0].bundle
    task = options.task or (bundle.task if bundle else CLASSIFICATION)
    if options.data is not None:
        dataset = open_dataset(options.data, options.data_root, options.seed, task=task)
        given = options.split or (ALL if _is_new(dataset, found) else "test")
        return _images(dataset, options, given, explicit=True), []
    if bundle is None or not bundle.data or not bundle.data.get("source") or not options.accuracy:
        return None, []
    try:
        dataset = open_recorded(bundle.data, task, options.trust, str(bundle.path), bundle.labels)
    except UserError as error:
        if is_own_data(bundle.data["source"]) or isinstance(error, NotNamed):
            return None, [f"no accuracy: {error}"]
        return None, [f"no accuracy: the data that the bundle records is not here ({error})"]
    if bundle.data.get("fingerprint") not in (None, dataset.fingerprint):
        return None, [
            f"no accuracy: {dataset.source} has changed since the model was trained, so its "
            "held-out images may have been trained on. Give --data to use it all the same."
        ]
    return _images(dataset, options, options.split or "test", explicit=False), []


def for_outputs(images: Images, subject: Subject, classes: Path | None) -> Dataset:
    """The data with the classes that the subject's outputs stand for: those of the file `classes`,
    else its bundle's labels, else its own.

    Raises:
        UserError: another task, or classes that are none of the outputs.
    """
    dataset, bundle = images.dataset, subject.bundle
    if bundle and bundle.task != dataset.task:
        raise UserError(
            f"{subject.path}: its task is {bundle.task}, and {dataset.source} was "
            f"opened for {dataset.task}. Leave --task out to take the bundle's."
        )
    if classes is not None:
        found = named_outputs(dataset, classes)
        if bundle and len(bundle.labels) != len(found.classes):
            raise UserError(
                f"--classes {classes}: {len(found.classes):,} names, and {subject.path} has "
                f"{len(bundle.labels):,} outputs. Give a line for each output, in order."
            )
        return found
    if bundle is None or bundle.labels == dataset.classes:
        return dataset
    if dataset.task == CLASSIFICATION or dataset.mask is not None:
        return with_outputs(dataset, bundle.labels, str(subject.path))
    raise UserError(
        f"{subject.path}: its outputs are {some(bundle.labels)} and those of "
        f"{dataset.source} {some(dataset.classes)}. Give the data that it was trained for."
    )


def _is_new(dataset: Dataset, found: Sequence[Subject]) -> bool:
    """Whether nobody has divided the images: not their owner, and no training of these models."""
    records = [s.bundle.data for s in found if s.bundle is not None and s.bundle.data]
    return dataset.drawn and not any(
        record.get("fingerprint") == dataset.fingerprint
        or Path(str(record.get("source"))).resolve() == Path(dataset.source).resolve()
        for record in records
    )


def _images(dataset: Dataset, options: Options, split: str, explicit: bool) -> Images:
    parts = {**dataset.splits, ALL: np.arange(len(dataset.targets))}
    if split not in parts:
        raise UserError(f"--split {split}: expected {', '.join(parts)}.")
    indices = parts[split]
    if options.limit is not None and options.limit < len(indices):
        # Spread over the split, which is ordered by class in a folder.
        indices = indices[np.linspace(0, len(indices) - 1, options.limit).astype(np.int64)]
    if len(indices) == 0:
        raise UserError(f"{dataset.source}: the {split} split has no images.")
    return Images(dataset, split, indices, explicit)


def preprocessing(
    subject: Subject, session: Session, images: Images, asked: str | None
) -> tuple[Preprocess, str | None]:
    """The bundle's, the one asked for, or the data set's own at the model's size, with a note."""
    spec = session.inputs[0] if session.inputs else None
    if spec is not None and spec.dtype == "uint8":
        chosen, note = _unscaled(subject, spec, images, asked)
        # std 1/255: the division of the pixels by 255 is undone, and they go in as they are.
        plain = replace(chosen, mean=(0.0,) * len(chosen.mean), std=(1 / 255,) * len(chosen.std))
        said = "the model takes bytes: pixels go in as 0 to 255, without mean and std"
        return plain, f"{said}; {note}" if note else said
    return _unscaled(subject, spec, images, asked)


def _unscaled(
    subject: Subject, spec: TensorSpec | None, images: Images, asked: str | None
) -> tuple[Preprocess, str | None]:
    if asked is not None:
        return _parse(asked), None
    if subject.bundle is not None:
        return subject.bundle.preprocess, None
    chosen = images.dataset.default_preprocess
    size = spec.image_size if spec else None
    if size is not None and size != chosen.size:
        chosen = replace(chosen, size=size, resize=None)
    return chosen, (
        f"no bundle says how to preprocess: the data's usual way is used, size "
        f"{chosen.size[0]}x{chosen.size[1]}, mean {chosen.mean}, std {chosen.std}; change it with "
        "--preprocess"
    )


def _parse(asked: str) -> Preprocess:
    if asked == "imagenet":
        return IMAGENET
    text = asked if asked.lstrip().startswith("{") else None
    try:
        data = json.loads(text if text is not None else Path(asked).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--preprocess {asked}: expected imagenet, a JSON object or a file with one ({error})."
        ) from None
    return from_mapping(Preprocess, data, f"--preprocess {asked}")


def feed_for(
    session: Session, subject: Subject, images: Images | None, preprocess: Preprocess | None,
    options: Options, batch: int,
) -> Feed:  # fmt: skip
    """The ring: the user's arrays, images of the data set, or random values.

    Raises `UserError` where `--batch` asks for another batch than the inputs hold.
    """
    if options.inputs is not None:
        feed, where = feeds.from_file(options.inputs, session.inputs), "--inputs"
    elif images is not None and preprocess is not None and session.inputs and not options.shape:
        feed, where = _image_feed(session, subject, images, preprocess, batch), ""
    else:
        given, where = dict(options.shape), "--shape" if options.shape else ""
        spec = session.inputs[0] if session.inputs else None
        if len(session.inputs) == 1 and spec is not None and not given and subject.bundle:
            given[spec.name] = (spec.images_in_call(batch), *subject.bundle.input.shape)
        shapes = feeds.resolve_shapes(session.inputs, batch, given)
        feed = feeds.synthetic(session.inputs, shapes, options.seed)
    if options.batch:
        feeds.check_batch(session.inputs, feed.shapes, batch, where)
    return feed


def _image_feed(
    session: Session, subject: Subject, images: Images, preprocess: Preprocess, batch: int
) -> Feed:
    spec = session.inputs[0]
    rows = images.indices[: feeds.RING * batch][:512]
    read = [images.dataset.values(int(i), preprocess) for i in rows]
    values = [v for v in read if v is not None]
    if not values:
        raise UserError(f"{images.source}: none of its first {len(rows)} can be read.")
    stack = np.stack(values)
    fixed = spec.images_in_call(batch)
    channels, *size = stack.shape[1:]
    if not spec.takes((fixed, *size, channels) if spec.channels_last else (fixed, channels, *size)):
        raise UserError(
            f"{subject.path} takes {spec}; the preprocessing gives images of "
            f"{list(stack.shape[1:])}. Give --preprocess with the model's size."
        )
    source = f"{images.dataset.source}, {images.part}"
    return feeds.from_images(spec, stack, fixed, source)
