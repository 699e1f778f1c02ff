"""Runs one stage for any command: opens its inputs, applies it, writes the bundle."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vcompress.bench.bundle import Bundle, is_bundle
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.bundle.atomic import MARK, claimed, drop_folder, take_folder
from vcompress.bench.bundle.history import Entry, threads_of
from vcompress.bench.config import plain
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import load

from .. import stages
from ..bundles import heritage, licences
from ..bundles.entry import record_entry
from ..bundles.store import WEIGHTS, Network, check_buildable
from ..data.loader import Data
from ..models import changes
from ..models.catalogue import make_spec
from ..models.outputs import check_forward
from ..options import Options
from ..stages.contract import C, Kind, Outcome, Role, Stage
from ..training.config import Context
from ..training.processes import process_state
from .finish import finish
from .float_first import Before, FloatFirst
from .rehearsal import Rehearsal, as_written
from .resolve import (
    RUNS,
    check_fits,
    check_is_name_or_bundle,
    find_teacher,
    free_name,
    is_fine_tuned,
    load_teachers,
    open_data,
    short_name,
    start_network,
)

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import nn

log = logging.getLogger(__name__)


def run_stage(
    stage: Stage[C], config: C, given: Mapping[str, str], out: Path | None, options: Options
) -> Bundle:
    """Runs one stage: opens its inputs, applies it, writes the bundle.

    Args:
        given: role (model, teacher, teacher-2, student) to a name or the path of a bundle.
        out: where the bundle goes; None takes a free name under `runs/`.

    Raises:
        UserError: anything that the user can mend.
    """
    roles = stage.assigned(config, given)
    for value in given.values():
        check_is_name_or_bundle(value)
    target = out or _default_target(stage, given, options)
    opened = {name: Bundle.open(value) for name, value in given.items() if is_bundle(value)}
    for bundle in opened.values():
        check_buildable(bundle)
    done = _finished(target, stage.name, config, given, opened, options)
    if done is not None:
        return done
    _check_target(target, options)

    deciding = _deciding(roles)
    named = [given[name] for name in reversed(deciding) if name in given and name not in opened]
    option = stage.unlabelled(config)
    data = open_data(
        options, [opened[name] for name in deciding if name in opened], named,
        trains=stage.trains(config), unlabelled=(option, getattr(config, option, "")),
        fixed=opened.get(stage.changed.name) if stage.changed.kind is Kind.TRAINED else None,
        judge=next((opened[name] for name in deciding if name in opened), None),
    )  # fmt: skip
    for name, role in roles.items():
        nobody = role.kind is Kind.OPTIONAL and given[name] == heritage.NONE
        if role.kind is not Kind.FRESH and name not in opened and not nobody:
            own = options if name == stage.changed.name else replace(options, head=None)
            opened[name] = _trained_first(given[name], name, own, data)
    for name, bundle in opened.items():
        if roles[name].kind in (Kind.TRAINED, Kind.OPTIONAL):
            check_fits(bundle, data, name)

    changed = stage.changed.name
    source = start_network(given[changed], opened.get(changed), data, options)
    first = [changed, *(name for name in opened if name != changed)]
    recorded = (threads_of(opened[name].history) for name in first if name in opened)
    threads = options.threads or next(filter(None, recorded), 1)
    teacher, teacher_name = find_teacher(stage, config, given, opened, options)
    first_score = FloatFirst(opened.get(changed), data)
    context = Context(
        data=data, workdir=target.parent / f".{target.name}.work", seed=options.seed,
        resume=options.resume, teacher=teacher, track=options.track, teacher_name=teacher_name,
        teachers=load_teachers(roles, opened, data, options), threads=threads,
        rehearse=Rehearsal(source, data), measure_first=first_score,
    )  # fmt: skip
    maps = load(data.dataset.task).maps
    check_forward(source.model, data.example, len(data.classes), source.spec.name, maps=maps)

    entry = replace(
        record_entry(stage.name, source.spec, asdict(config), options),
        inputs={name: _input_record(given[name], opened.get(name)) for name in given},
        licences=licences.record(options, data.dataset, opened.get(changed), list(opened.values())),
    )
    # An optional teacher helped, but the network did not come from it.
    ways = [name for name, role in roles.items() if role.kind is not Kind.OPTIONAL]
    history = tuple(e for name in ways if name in opened for e in opened[name].history)
    clock = time.monotonic()
    torch.manual_seed(options.seed)
    with _claimed(target, context.workdir, options):
        outcome = stage.apply(source.model, config, context)
        entry = replace(
            entry, seconds=round(time.monotonic() - clock, 1), details=plain(outcome.details)
        )
        _write(source, outcome, target, entry, history, context, options, first_score.before)
    return Bundle.open(target)


@contextmanager
def _claimed(target: Path, workdir: Path, options: Options) -> Iterator[None]:
    """`target` and the folder that keeps the state of the run belong to this process, the first of
    those that train together, until the block ends."""
    if not process_state().is_main_process:
        yield
        return
    with claimed(target):
        _check_target(target, options)  # another run may have finished since
        take_folder(workdir)
        try:
            yield
        finally:
            if not any(path.is_file() for path in workdir.rglob("*") if path.name != MARK):
                drop_folder(workdir)


def _default_target(stage: Stage[Any], given: Mapping[str, str], options: Options) -> Path:
    """`runs/NETWORK-STAGE`: with --resume the one that is there, else a free one."""
    name = f"{short_name(given[stage.changed.name])}-{stage.name}"
    return RUNS / name if options.resume else free_name(name)


def _check_target(target: Path, options: Options) -> None:
    if is_bundle(target) and not options.overwrite:
        raise UserError(
            f"{target}: there is a bundle already. Give --overwrite to replace it, or another "
            f"--out."
        )
    bundles.check_target(target)


def _deciding(roles: Mapping[str, Role]) -> list[str]:
    """Who decides about data and preprocessing: the last role, of several teachers the first."""
    teaching = [name for name, role in roles.items() if role.kind is Kind.SEVERAL]
    return [*reversed(teaching), *(name for name in roles if name not in teaching)]


def _trained_first(value: str, role: str, options: Options, data: Data) -> Bundle:
    """Fine-tunes what is only a name, or takes what an earlier run left under `runs/`."""
    spec = make_spec(
        value, len(data.classes), data.preprocess.size, options.head, options.weights,
        len(data.preprocess.mean),
    )  # fmt: skip
    target = RUNS / short_name(value)
    if is_bundle(target) and is_fine_tuned(Bundle.open(target), spec, data):
        log.info("%s %s: taking the fine-tuned bundle %s", role, value, target)
        return Bundle.open(target)
    if is_bundle(target) or (target.is_dir() and any(target.iterdir())):
        target = free_name(short_name(value))
    log.info("%s %s is only a name: fine-tuning it first, into %s", role, value, target)
    stage = stages.load("finetune")
    return run_stage(stage, stage.Config(), {stage.changed.name: value}, target, options)


def _write(
    source: Network, outcome: Outcome, target: Path, entry: Entry,
    history: tuple[Entry, ...], context: Context, options: Options, before: Before | None,
) -> None:  # fmt: skip
    """The first process writes the bundle; the others wait for it."""
    data, state = context.data, process_state()
    if state.is_main_process:
        with _weights_kept(outcome.model, context.workdir):
            finish(
                as_written(source, outcome.model), target, entry, history,
                labels=data.classes, preprocess=data.preprocess, dataset=data.dataset,
                task=data.dataset.task, robustness=options.robustness, section=outcome.section,
                threads=context.threads, before=before,
            )  # fmt: skip
        drop_folder(context.workdir)
    state.wait_for_everyone()


@contextmanager
def _weights_kept(model: nn.Module, workdir: Path) -> Iterator[None]:
    """Where the block fails, say where the weights of a trained network are and how to go on."""
    try:
        yield
    except Exception as error:
        states = sorted(workdir.glob("*/state.safetensors"))
        if not states:  # nothing was trained
            raise
        file = workdir / WEIGHTS
        try:
            changes.save_tensors(model, file)
        except (OSError, UserError):  # no room, say; the state of the training holds them too
            file = states[-1]
        kept = (
            f"The trained weights are kept in {file}. Once this is mended, the same command with "
            "--resume goes on from there, without training again."
        )
        if isinstance(error, UserError):
            raise type(error)(f"{error} {kept}") from error
        log.error(kept)
        raise


def _input_record(value: str, found: Bundle | None) -> dict[str, Any]:
    """What the history says of a network that a stage was given."""
    record = {} if is_bundle(value) else {"name": value}
    if found is not None:
        record |= {"path": str(found.path), "weights_sha256": found.files[WEIGHTS].sha256}
    return record


def _finished(
    target: Path, method: str, config: DataclassInstance, given: Mapping[str, str],
    opened: Mapping[str, Bundle], options: Options,
) -> Bundle | None:  # fmt: skip
    """With --resume, a bundle that this very stage has already written.

    Raises:
        UserError: a bundle that something else has written.
    """
    if not options.resume or not is_bundle(target):
        return None
    bundle = Bundle.open(target)
    last = bundle.history[-1] if bundle.history else None
    same = (
        last is not None
        and last.stage == method
        and is_recorded(config, last.config)
        and is_recorded(options, last.options, but=_NOT_OF_THE_RESULT)
        and _same_inputs(given, opened, last.inputs)
    )
    if not same:
        raise UserError(
            f"{target}: there is a bundle already, made with other options or inputs. Give "
            f"--overwrite to replace it, or another --out."
        )
    log.info("%s is already finished", target)
    return bundle


_NOT_OF_THE_RESULT = ("resume", "overwrite", "track", "trust")
"""Options that do not change what a stage makes."""


def is_recorded(
    config: DataclassInstance, record: Mapping[str, Any], but: tuple[str, ...] = ()
) -> bool:
    """Whether `record`, from JSON, says the same as `config`, apart from the keys `but`.

    Older bundles lack the options that came later: those had their default.
    """
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(config)
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    asked, found = plain(asdict(config)), {**plain(defaults), **record}
    return all(
        key in asked and key in found and asked[key] == found[key]
        for key in asked.keys() | found.keys()
        if key not in but
    )


def _same_inputs(
    given: Mapping[str, str], opened: Mapping[str, Bundle], recorded: Mapping[str, Any]
) -> bool:
    """Whether the networks are those of the record: bundles by their weights, others by name."""
    if given.keys() != recorded.keys():
        return False
    for name, value in given.items():
        if name in opened:
            if recorded[name].get("weights_sha256") != opened[name].files[WEIGHTS].sha256:
                return False
        elif recorded[name].get("name") != value:
            return False
    return True
