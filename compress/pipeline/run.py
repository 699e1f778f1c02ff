"""From what a user names to a finished bundle: the way of every stage, from every command."""

from __future__ import annotations

import json
import logging
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from vcompress.bench.bundle import IMAGENET, Bundle, Preprocess, is_bundle
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.config import from_mapping
from vcompress.bench.data.dataset import Dataset, open_dataset
from vcompress.bench.errors import UserError

from .. import quantization, stages
from ..bundles import heritage, licences
from ..bundles.store import ARCHITECTURE, WEIGHTS, Network, load_network
from ..data.loader import Data
from ..distillation.teaching import Teacher, order_of
from ..models.catalogue import ALIASES, ModelSpec, build, check_forward, make_spec, replace_head
from ..options import Options
from ..stages.contract import Context, TrainConfig
from ..training.processes import process_state
from .finish import finish, plain

log = logging.getLogger(__name__)


RUNS = Path("runs")
_PACKAGES = ("vision-compress", "torch", "torchvision", "onnx", "onnxruntime", "torch-pruning")


def run_stage(
    stage: ModuleType,
    config: TrainConfig,
    given: Mapping[str, str],
    out: Path | None,
    options: Options,
) -> Bundle:
    """Run one stage and write its bundle.

    Args:
        stage: a module of `compress.stages`.
        given: role (model, teacher, student) to a name or the path of a bundle.
        out: where the bundle goes; None takes a free name under `runs/`.

    Raises:
        UserError: anything that the user can mend.
    """
    method = stage.__name__.rpartition(".")[2]
    roles = stages.roles(stage, config, given)
    for value in given.values():
        _check_is_name_or_bundle(value)
    default = f"{_short(given[list(roles)[-1]])}-{method}"
    target = out or (RUNS / default if options.resume else free_name(default))
    opened = {role: Bundle.open(v) for role, v in given.items() if is_bundle(v)}
    done = _finished(target, method, config, given, opened, options)
    if done is not None:
        return done
    if is_bundle(target) and not options.overwrite:
        raise UserError(
            f"{target}: there is a bundle already. Give --overwrite to replace it, or another "
            f"--out."
        )
    bundles.check_target(target)

    # The last one decides about data and preprocessing: of several teachers the first.
    teaching = [role for role, kind in roles.items() if kind == "several"]
    decide = [*(r for r in reversed(teaching)), *(r for r in roles if r not in teaching)]
    data = open_data(options, [opened[role] for role in decide if role in opened])
    for role, kind in roles.items():
        nobody = kind == "optional" and given.get(role) == heritage.NONE
        if kind != "fresh" and role in given and role not in opened and not nobody:
            opened[role] = _trained_first(given[role], role, options, data)
    for role, found in opened.items():
        if roles[role] not in ("fresh", "several"):
            check_fits(found, data, role)

    primary = list(roles)[-1]
    source = _network(given[primary], opened.get(primary), data, options)
    teacher, teacher_name = _teacher(stage, config, given, opened, options)
    teachers = tuple(
        Teacher(
            load_network(opened[role], options.trust).model,
            opened[role].preprocess,
            order_of(opened[role].labels, data.classes, str(opened[role].path)),
        )
        for role in teaching
    )
    check_forward(source.model, data.example, len(data.classes))

    work = target.parent / f".{target.name}.work"
    context = Context(
        data, work, options.seed, options.resume, teacher, options.track, teacher_name, teachers
    )
    entry = record_entry(method, source.spec, asdict(config), options)
    entry["inputs"] = {r: _input_record(given[r], opened.get(r)) for r in given}
    entry["licences"] = licences.record(
        options, data.dataset, opened.get(primary), list(opened.values())
    )
    clock = time.monotonic()
    torch.manual_seed(options.seed)
    outcome = stage.apply(source.model, config, context)
    entry["seconds"] = round(time.monotonic() - clock, 1)
    entry["details"] = plain(outcome.details)
    # An optional teacher helped, but the network did not come from it.
    ways = [role for role, kind in roles.items() if role in opened and kind != "optional"]
    history = tuple(stage_entry for role in ways for stage_entry in opened[role].history)
    # Quantisers hide what was pruned before them; in the float network, which they leave as it
    # was, it can still be seen.
    changes = source.noted() if quantization.is_quantized(outcome.model) else None
    state = process_state()
    if state.is_main_process:  # the others wait for the bundle
        finish(
            Network(outcome.model, source.spec, changes), target, entry, history,
            labels=data.classes, preprocess=data.preprocess, dataset=data.dataset,
            robustness=options.robustness, section=outcome.section,
        )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
    state.wait_for_everyone()
    return Bundle.open(target)


def record_entry(
    method: str, spec: ModelSpec, config: Mapping[str, Any], options: Options
) -> dict[str, Any]:
    """The part of a history entry that every command shares."""
    return {
        "stage": method,
        "model": spec.name,
        "config": plain(config),
        "options": plain(asdict(options)),
        "seed": options.seed,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": _versions(),
    }


def open_data(options: Options, opened: list[Bundle]) -> Data:
    """The data and preprocessing that the options name, else those of the changed bundle."""
    recorded = next((b for b in reversed(opened) if b.data is not None), None)
    if options.data is None and recorded is not None:
        dataset = open_recorded(recorded)
        assert dataset is not None
        if options.on_bad_image == "skip":
            dataset = replace(dataset, on_bad_image="skip")
    else:
        dataset = open_dataset(
            options.data or "digits", options.data_root, options.seed, options.on_bad_image
        )
    given = next((b.preprocess for b in reversed(opened)), dataset.default_preprocess)
    return Data(
        dataset,
        choose_preprocess(options, given),
        options.augment,
        options.seed,
        erase=options.erase,
    )


def open_recorded(bundle: Bundle) -> Dataset | None:
    """The data that the bundle was made with; None where it records none.

    Raises:
        UserError: the images have changed since.
    """
    record = bundle.data
    if record is None:
        return None
    dataset = open_dataset(
        record["source"], record.get("root"), record.get("seed", 0),
        record.get("on_bad_image", "fail"),
    )  # fmt: skip
    if dataset.fingerprint != record["fingerprint"]:
        raise UserError(
            f"{record['source']}: the images have changed since {bundle.path} was written, so its "
            f"held-out split is no longer held out. Name the data with --data to go on with them "
            f"as they are."
        )
    return dataset


def check_fits(bundle: Bundle, data: Data, role: str) -> None:
    """Raise a UserError where the bundle knows other classes or takes other inputs."""
    if bundle.labels != data.classes:
        raise UserError(
            f"the {role} {bundle.path} knows {len(bundle.labels)} classes "
            f"({', '.join(bundle.labels[:3])}, ...), the data {data.dataset.source} has "
            f"{len(data.classes)} ({', '.join(data.classes[:3])}, ...). Fine-tune it on these "
            f"data first, or give the data that it was made with."
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
    except (OSError, ValueError) as error:
        raise UserError(
            f"--preprocess {text!r}: {error}. Expected imagenet, or JSON such as "
            f'{{"size": [224, 224], "resize": 256, "mean": [0.5, 0.5, 0.5], '
            f'"std": [0.5, 0.5, 0.5]}}.'
        ) from None


def _network(value: str, found: Bundle | None, data: Data, options: Options) -> Network:
    """What a stage changes; a bundle with other classes gets a new head (only `fresh` roles do)."""
    torch.manual_seed(options.seed)
    classes = len(data.classes)
    if found is None:
        spec = make_spec(value, classes, data.preprocess.size)
        return Network(build(spec, options.weights), spec)
    if options.weights is not None:
        raise UserError(f"--weights is for a model that is only a name; {value} has its own.")
    network = load_network(found, options.trust)
    if found.labels == data.classes:
        return network
    if quantization.is_quantized(network.model):
        raise UserError(f"{value} is quantised and knows other classes; fine-tune its float stage.")
    log.info("%s knows other classes: giving it a new head for %d", value, classes)
    replace_head(network.model, network.spec.classes, classes)
    return Network(network.model, replace(network.spec, classes=classes))


def open_network(value: str, options: Options) -> tuple[Network, Data, str]:
    """A named network or a bundle's, with the data that it would be trained on and a short name."""
    _check_is_name_or_bundle(value)
    found = Bundle.open(value) if is_bundle(value) else None
    data = open_data(options, [found] if found is not None else [])
    network = _network(value, found, data, options)
    check_forward(network.model, data.example, len(data.classes))
    return network, data, _short(value)


def _teacher(
    stage: ModuleType, config: TrainConfig, given: Mapping[str, str],
    opened: Mapping[str, Bundle], options: Options,
) -> tuple[nn.Module | None, str | None]:  # fmt: skip
    """Who teaches and where it lies: the one that was named, else that of the history, where the
    stage has `inherits_teacher(config)` and wants it."""
    if stages.inputs(stage).get("teacher") == "several":
        return None, None
    if "teacher" in opened:
        found = opened["teacher"]
        return load_network(found, options.trust).model, str(found.path)
    primary = opened.get(list(stages.inputs(stage))[-1])
    wants = getattr(stage, "inherits_teacher", None)
    if "teacher" in given or primary is None or wants is None or not wants(config):
        return None, None
    return heritage.inherited(primary, options.trust) or (None, None)


def _trained_first(name: str, role: str, options: Options, data: Data) -> Bundle:
    """Fine-tune what is only a name, or take what an earlier run left under `runs/`."""
    spec = make_spec(name, len(data.classes), data.preprocess.size)
    target = RUNS / _short(name)
    if is_bundle(target) and _is_same(Bundle.open(target), spec, data):
        log.info("%s %s: taking the fine-tuned bundle %s", role, name, target)
        return Bundle.open(target)
    if is_bundle(target) or (target.is_dir() and any(target.iterdir())):
        target = free_name(_short(name))
    log.info("%s %s is only a name: fine-tuning it first, into %s", role, name, target)
    stage = stages.load("finetune")
    return run_stage(stage, stage.Config(), {"model": name}, target, options)


def _is_same(bundle: Bundle, spec: ModelSpec, data: Data) -> bool:
    architecture = json.loads(bundle.file(ARCHITECTURE).read_text(encoding="utf-8"))
    record = bundle.data or {}
    return bool(
        architecture.get("model") == json.loads(json.dumps(spec.to_json()))
        and architecture.get("quantization") is None
        and record.get("fingerprint") == data.dataset.fingerprint
        and bundle.preprocess == data.preprocess
    )


def _finished(
    target: Path, method: str, config: TrainConfig, given: Mapping[str, str],
    opened: Mapping[str, Bundle], options: Options,
) -> Bundle | None:  # fmt: skip
    """With --resume, a bundle that this very stage has already written."""
    if not options.resume or not is_bundle(target):
        return None
    bundle = Bundle.open(target)
    last = bundle.history[-1] if bundle.history else {}
    inputs = last.get("inputs", {})
    same = (
        last.get("stage") == method
        and last.get("config") == plain(asdict(config))
        and _of_result(last.get("options", {})) == _of_result(plain(asdict(options)))
        and inputs.keys() == given.keys()
    )
    for role, value in given.items():
        found, recorded = opened.get(role), inputs.get(role, {})
        if found is not None:
            same = same and recorded.get("weights_sha256") == found.files[WEIGHTS].sha256
        else:
            same = same and recorded.get("name") == value
    if not same:
        raise UserError(
            f"{target}: there is a bundle already, made with other options or inputs. Give "
            f"--overwrite to replace it, or another --out."
        )
    log.info("%s is already finished", target)
    return bundle


def _of_result(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that change what a stage makes."""
    left_out = ["resume", "overwrite", "track", "trust"]
    # Bundles of before they were recorded have no word of them.
    left_out += [key for key in ("data_licence", "weights_licence") if options.get(key) is None]
    return {key: value for key, value in options.items() if key not in left_out}


def _check_is_name_or_bundle(value: str) -> None:
    path = Path(value)
    if is_bundle(path):
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
    taken = [RUNS / name, *(RUNS / f"{name}-{n}" for n in range(2, 10_000))]
    return next(path for path in taken if not path.exists())


def _short(value: str) -> str:
    """A folder name for a model name or a bundle."""
    if is_bundle(value):
        return Path(value).resolve().name
    back = {full: alias for alias, full in ALIASES.items()}
    return back.get(value, value).replace(":", "-").replace("/", "-")


def _input_record(value: str, found: Bundle | None) -> dict[str, Any]:
    record = {} if is_bundle(value) else {"name": value}
    if found is not None:
        record |= {"path": str(found.path), "weights_sha256": found.files[WEIGHTS].sha256}
    return record


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
