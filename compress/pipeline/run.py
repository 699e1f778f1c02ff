"""From what a user names to a finished bundle: the way of every stage, from every command."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from vcompress.bench.bundle import Bundle, is_bundle
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.errors import UserError

from .. import quantization, stages
from ..bundles import heritage, licences
from ..bundles.entry import plain, record_entry
from ..bundles.store import WEIGHTS, Network, load_network
from ..data.loader import Data
from ..distillation.teaching import Teacher, order_of
from ..models.catalogue import check_forward, make_spec
from ..options import Options
from ..training.config import Context, TrainConfig
from ..training.processes import process_state
from .finish import finish
from .resolve import (
    RUNS,
    _check_is_name_or_bundle,
    _input_record,
    _is_same,
    _network,
    _short,
    _teacher,
    check_fits,
    free_name,
    open_data,
)

log = logging.getLogger(__name__)


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
    entry = replace(
        record_entry(method, source.spec, asdict(config), options),
        inputs={r: _input_record(given[r], opened.get(r)) for r in given},
        licences=licences.record(options, data.dataset, opened.get(primary), list(opened.values())),
    )
    # An optional teacher helped, but the network did not come from it.
    ways = [role for role, kind in roles.items() if role in opened and kind != "optional"]
    history = tuple(stage_entry for role in ways for stage_entry in opened[role].history)
    clock = time.monotonic()
    torch.manual_seed(options.seed)
    outcome = stage.apply(source.model, config, context)
    entry = replace(
        entry, seconds=round(time.monotonic() - clock, 1), details=plain(outcome.details)
    )
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


def _finished(
    target: Path, method: str, config: TrainConfig, given: Mapping[str, str],
    opened: Mapping[str, Bundle], options: Options,
) -> Bundle | None:  # fmt: skip
    """With --resume, a bundle that this very stage has already written."""
    if not options.resume or not is_bundle(target):
        return None
    bundle = Bundle.open(target)
    last = bundle.history[-1] if bundle.history else None
    inputs = last.inputs if last is not None else {}
    same = (
        last is not None
        and last.stage == method
        and last.config == plain(asdict(config))
        and _of_result(last.options) == _of_result(plain(asdict(options)))
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
