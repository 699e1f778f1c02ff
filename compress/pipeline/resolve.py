"""Resolves what a user names: the network, its data, its teacher."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vcompress.bench.bundle import IMAGENET, Bundle, Preprocess, is_bundle
from vcompress.bench.config import from_mapping
from vcompress.bench.data.classes import fits, named_outputs, with_outputs
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.own_code import is_factory, is_own_data
from vcompress.bench.tasks import CLASSIFICATION, load, open_dataset

from .. import quantization
from ..bundles import heritage
from ..bundles.recorded import open_recorded
from ..bundles.store import Network, check_buildable, load_network, read_architecture
from ..data.loader import Data
from ..data.unlabelled import without_labels
from ..distillation.teaching import Teacher, order_of
from ..models import huggingface, pretrained
from ..models.catalogue import ALIASES, ModelSpec, build, make_spec
from ..models.head import heads, note_head, replace_head
from ..models.outputs import check_forward, choose, choosing
from ..options import Options
from ..stages.contract import C, Kind, Role, Stage
from ..tasks import training_task

log = logging.getLogger(__name__)


RUNS = Path("runs")


def open_data(
    options: Options, opened: list[Bundle], names: Iterable[str] = (), *, trains: bool = True,
    unlabelled: tuple[str, str] = ("", ""), fixed: Bundle | None = None,
    judge: Bundle | None = None,
) -> Data:  # fmt: skip
    """The data and preprocessing that the options name, else those of the changed bundle.

    Args:
        names: models that are not bundles: a folder of transformers says how it takes images.
        trains: whether the data must have a training and a validation part.
        unlabelled: an option and its folder of images that will do where none are labelled.
        fixed: the bundle whose outputs stay what they are; the data may have some of its classes.
        judge: the bundle that decides about the images of `unlabelled`, by default `fixed`.
    """
    task = task_of(options, opened)
    recorded = next((b for b in reversed(opened) if b.data is not None), None)
    if options.data is None and options.classes is not None:
        raise UserError("--classes says what the folders of --data are; give --data as well.")
    if options.data is None and recorded is not None:
        dataset = open_recorded(recorded, options.trust)
        assert dataset is not None
        if options.on_bad_image == "skip":
            dataset = replace(dataset, on_bad_image="skip")
    elif options.data is None and unlabelled[1] and (by := fixed or judge) is not None:
        dataset = without_labels(
            Path(unlabelled[1]), f"--{unlabelled[0]}", by.labels, task, options.on_bad_image
        )  # fmt: skip
        log.info("%s records no data and none are named: no accuracy is measured", by.path)
    else:
        dataset = open_dataset(
            options.data or "digits", options.data_root, options.seed, options.on_bad_image, task
        )
        dataset = _named(dataset, options, fixed, trains)
    if trains:
        check_trains(dataset)
    elif dataset.left_out:
        log.warning("%s", dataset.left_out)
    given = next((b.preprocess for b in reversed(opened)), None) or default_preprocess(
        names, options.weights, dataset
    )
    return Data(
        dataset,
        choose_preprocess(options, given),
        options.augment,
        options.seed,
        erase=options.erase,
    )


def _named(dataset: Dataset, options: Options, fixed: Bundle | None, trains: bool) -> Dataset:
    """The data with the classes that `--classes` names, and those of `fixed` where they stand for
    its outputs: to measure, some of its classes are enough, in any order."""
    if options.classes is not None:
        dataset = named_outputs(dataset, Path(options.classes))
        if fixed is not None and len(fixed.labels) == len(dataset.classes):
            dataset = replace(dataset, classes=fixed.labels)
        return dataset
    of_classes = dataset.task == CLASSIFICATION or dataset.mask is not None
    if fixed is None or trains or not of_classes:
        return dataset
    if fits(dataset, fixed.labels):
        return with_outputs(dataset, fixed.labels, str(fixed.path))
    count = len(fixed.labels)
    unnamed = fixed.labels == tuple(map(str, range(count)))
    usual = pretrained.classes(fixed.history[-1].model, count) if unnamed else None
    if usual is not None and fits(dataset, usual):
        found = with_outputs(dataset, usual, str(fixed.path))
        return replace(found, classes=fixed.labels)
    return dataset


def default_preprocess(
    names: Iterable[str], weights: str | None, dataset: Dataset | None
) -> Preprocess:
    """The preprocessing where nobody names one: the data's own, else that of the weights, else
    ImageNet's."""
    usual = dataset.default_preprocess if dataset is not None else IMAGENET
    if dataset is not None and is_own_data(dataset.source) and usual.mean != IMAGENET.mean:
        return usual
    found = (pretrained.preprocess(ALIASES.get(n, n), weights, usual) for n in names)
    return next((one for one in found if one != usual), usual)


def check_trains(dataset: Dataset) -> None:
    """Raise a UserError where there are images to measure on alone: a test folder, or too few."""
    if dataset.undivided:
        raise UserError(dataset.undivided)
    for name in ("train", "val"):
        if not len(dataset.splits[name]):
            raise UserError(
                f"{dataset.source} has no {name} images, and is good for vbench alone. Give train "
                f"as well; val is taken from it."
            )
    if dataset.left_out:
        log.warning("%s", dataset.left_out)


def task_of(options: Options, opened: list[Bundle]) -> str:
    """What the network is for: as the options say, else as the bundles were made.

    Raises:
        UserError: bundles of another task.
    """
    for bundle in opened:
        if options.task is not None and bundle.task != options.task:
            raise UserError(
                f"{bundle.path}: its task is {bundle.task}, and --task {options.task} was given. "
                f"Leave --task out, or start from a network of that task."
            )
    tasks = {bundle.task for bundle in opened}
    if len(tasks) > 1:
        raise UserError(
            f"the bundles are for different tasks ({', '.join(sorted(tasks))}); give those of one."
        )
    return options.task or next(iter(tasks), CLASSIFICATION)


def check_fits(bundle: Bundle, data: Data, role: str) -> None:
    """Raise a UserError where the bundle knows other classes or takes other inputs."""
    if bundle.labels != data.classes:
        raise UserError(
            f"the {role} {bundle.path} knows {len(bundle.labels)} classes "
            f"({', '.join(bundle.labels[:3])}, ...), the data {data.dataset.source} has "
            f"{len(data.classes)} ({', '.join(data.classes[:3])}, ...). Fine-tune it on these "
            f"data first, or give the data that it was made with, or with --classes FILE the names "
            f"of its outputs."
        )
    if bundle.preprocess != data.preprocess:
        raise UserError(
            f"the {role} {bundle.path} takes {bundle.preprocess}, but {data.preprocess} was asked "
            f"for. Leave --preprocess and --image-size out to take the bundle's."
        )


def choose_preprocess(options: Options, default: Preprocess) -> Preprocess:
    """What the options ask for, else `default`, at the size that they ask for."""
    chosen = default if options.preprocess is None else parse_preprocess(options.preprocess)
    if options.image_size is None:
        return chosen
    side = options.image_size
    resize = None if chosen.resize is None else round(side * chosen.resize / min(chosen.size))
    return replace(chosen, size=(side, side), resize=resize)


def parse_preprocess(text: str) -> Preprocess:
    """`imagenet`, a JSON object, or the path of a `.json` file with one."""
    if text == "imagenet":
        return IMAGENET
    try:
        body = Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text
        return from_mapping(Preprocess, json.loads(body), "--preprocess")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"--preprocess {text!r}: {error}. Expected imagenet, or JSON such as "
            f'{{"size": [224, 224], "resize": 256, "mean": [0.5, 0.5, 0.5], '
            f'"std": [0.5, 0.5, 0.5]}}.'
        ) from None


def start_network(value: str, found: Bundle | None, data: Data, options: Options) -> Network:
    """The network of a name, or of the bundle `found`; one that knows other classes gets a new head
    (`check_fits` has refused it in roles other than `fresh`)."""
    torch.manual_seed(options.seed)
    classes = len(data.classes)
    if options.checkpoint_key is not None and options.weights is None:
        raise UserError("--checkpoint-key names weights in a file; give --weights FILE.")
    if found is None:
        spec = make_spec(
            value, classes, data.preprocess.size, options.head, options.weights,
            len(data.preprocess.mean),
        )  # fmt: skip
        model = build(spec, options.weights, options.checkpoint_key)
        network = with_output(model, spec, data.example, options.output)
        # A file or a folder may hold this very head; the libraries' weights are of other classes.
        fresh = options.weights is None or (options.weights == "default" and spec.folder is None)
        return _started(network, data) if fresh else network
    if options.weights is not None:
        raise UserError(f"--weights is for a model that is only a name; {value} has its own.")
    network = load_network(found, options.trust)
    if options.output is not None and options.output != network.spec.output:
        raise UserError(
            f"--output is for a model that is only a name; {value} was made with "
            f"{network.spec.output or 'its one output'}."
        )
    if options.head is not None:
        note_head(network.model, (options.head,), network.spec.classes)
        network = replace(network, spec=replace(network.spec, head=options.head))
    if found.labels == data.classes:
        return network
    if quantization.is_quantized(network.model):
        raise UserError(f"{value} is quantised and knows other classes; fine-tune its float stage.")
    log.info("%s knows other classes: giving it a new head for %d", value, classes)
    spec = replace(network.spec, classes=classes)
    again = (lambda count: build(replace(spec, classes=count))) if is_factory(spec.name) else None
    replace_head(network.model, network.spec.classes, classes, data.example, again)
    return _started(Network(network.model, spec), data)


def with_output(model: nn.Module, spec: ModelSpec, example: Tensor, output: str | None) -> Network:
    """The network with one output: `output` of several, or the first tensor.

    Args:
        example: `[1, C, H, W]`, which the network is run on.
    """
    chosen = choose(model, example, output, spec.name)
    if chosen is None:
        return Network(model, spec)
    log.info("%s gives several outputs: taking %s", spec.name, chosen)
    return Network(choosing(model, chosen), replace(spec, output=chosen))


def _started(network: Network, data: Data) -> Network:
    """A network whose head is new, fitted to the range of the targets where it can be found: a
    network with a layer for each number has none, and begins as it was built."""
    task = training_task(data.dataset)
    if not task.starts:
        return network
    check_forward(
        network.model, data.example, len(data.classes), network.spec.name, maps=task.deployed.maps
    )
    try:
        names = heads(network.model, len(data.classes), data.example)
    except UserError as error:
        log.warning("the last layer does not begin at the range of the targets: %s", error)
        return network
    for name in names:
        task.start(network.model.get_submodule(name))
    return network


def open_network(value: str, options: Options) -> tuple[Network, Data, str]:
    """A named network or a bundle's, with the data that it would be trained on and a short name."""
    check_is_name_or_bundle(value)
    found = Bundle.open(value) if is_bundle(value) else None
    if found is not None:
        check_buildable(found)
    data = open_data(options, [] if found is None else [found], [value])
    network = start_network(value, found, data, options)
    maps = load(data.dataset.task).maps
    check_forward(network.model, data.example, len(data.classes), network.spec.name, maps=maps)
    return network, data, short_name(value)


def find_teacher(
    stage: Stage[C], config: C, given: Mapping[str, str], opened: Mapping[str, Bundle],
    options: Options,
) -> tuple[nn.Module | None, str | None]:  # fmt: skip
    """The one teacher and where it lies: the one that was named, else that of the history, where
    the stage wants it. (None, None) where there is none, or where the stage takes several."""
    if any(role.kind is Kind.SEVERAL for role in stage.roles):
        return None, None
    if "teacher" in opened:
        found = opened["teacher"]
        return load_network(found, options.trust).model, str(found.path)
    changed = opened.get(stage.changed.name)
    if "teacher" in given or changed is None or not stage.inherits_teacher(config):
        return None, None
    return heritage.inherited(changed, options.trust) or (None, None)


def load_teachers(
    roles: Mapping[str, Role], opened: Mapping[str, Bundle], data: Data, options: Options
) -> tuple[Teacher, ...]:
    """The networks of a role that takes several, each with its inputs and the order of its
    classes."""
    found = [opened[name] for name, role in roles.items() if role.kind is Kind.SEVERAL]
    return tuple(
        Teacher(
            load_network(bundle, options.trust).model,
            bundle.preprocess,
            order_of(bundle.labels, data.classes, str(bundle.path)),
        )
        for bundle in found
    )


def is_fine_tuned(bundle: Bundle, spec: ModelSpec, data: Data) -> bool:
    """Whether `bundle` holds the float network `spec`, made for these data and preprocessing.

    Raises:
        UserError: its architecture is not readable.
    """
    architecture = read_architecture(bundle)
    if not isinstance(architecture["model"], dict):
        return False
    # The output of several is only known once the network has run.
    spec = replace(spec, output=architecture["model"].get("output"))
    record = bundle.data or {}
    return bool(
        architecture["model"] == json.loads(json.dumps(spec.to_json()))
        and architecture["quantization"] is None
        and record.get("fingerprint") == data.dataset.fingerprint
        and bundle.preprocess == data.preprocess
    )


def check_is_name_or_bundle(value: str) -> None:
    """Raises a UserError for a path that is no bundle; names are checked where they are built."""
    path = Path(value)
    if is_bundle(path) or value.startswith(huggingface.PREFIX):
        return
    if path.is_dir() or "/" in value or path.suffix in (".pth", ".pt", ".safetensors", ".onnx"):
        if path.exists():
            raise UserError(
                f"{value}: not a bundle. A checkpoint becomes one by: vcompress import --model "
                f"NAME --weights {value}"
            )
        raise UserError(f"{value}: no such bundle. Give a name such as r18, or a bundle's folder.")


def free_name(name: str) -> Path:
    """A path under `runs/` that nothing has yet."""
    path, numbers = RUNS / name, itertools.count(2)
    while path.exists():
        path = RUNS / f"{name}-{next(numbers)}"
    return path


def short_name(value: str) -> str:
    """A folder name for a model name or a bundle."""
    if is_bundle(value):
        return Path(value).resolve().name
    back = {full: alias for alias, full in ALIASES.items()}
    name = back.get(value, value)
    if name.startswith(huggingface.PREFIX):  # a folder goes by its last name
        name = f"hf-{Path(name.removeprefix(huggingface.PREFIX)).name}"
    return name.replace(":", "-").replace("/", "-")
