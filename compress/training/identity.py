"""What must be unchanged for a resumed run to end with the weights of an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vcompress.bench.errors import UserError

from ..models.changes import state_of
from .config import Context, TrainConfig
from .state import State, load_state

log = logging.getLogger(__name__)


def identity_of(
    model: nn.Module, config: TrainConfig, context: Context, name: str
) -> dict[str, Any]:
    """What must be unchanged for a resumed run to end with the weights of an undisturbed one."""
    teacher = context.teacher
    return {
        "name": name,
        "seed": context.seed,
        "data": context.data.dataset.fingerprint,
        "preprocess": json.loads(json.dumps(asdict(context.data.preprocess))),
        "augment": context.data.augment,
        "erase": context.data.erase,
        "config": json.loads(json.dumps(asdict(config))),
        "initial_weights": digest(model),
        "teacher": None if teacher is None else digest(teacher),
    }


def digest(model: nn.Module) -> str:
    """SHA-256 over the names and values of the weights."""
    found = hashlib.sha256()
    for key, tensor in state_of(model).items():
        found.update(key.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def resumed(file: Path, identity: Mapping[str, Any], resume: bool) -> State | None:
    """With `resume`, the state that an earlier run left in `file`.

    Raises:
        UserError: that run had another identity.
    """
    if not resume or not file.is_file():
        return None
    state = load_state(file)
    for key, value in identity.items():
        if state.identity.get(key) == value:
            continue
        before = state.identity.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inner = next(k for k in {**value, **before} if value.get(k) != before.get(k))
            key, before, value = f"{key}.{inner}", before.get(inner), value.get(inner)
        raise UserError(
            f"--resume: {key} was {before!r} and is now {value!r}. Give the same options as "
            f"before, or omit --resume to start again."
        )
    log.info(
        "%s  resumed after epoch %d of %d",
        identity["name"], len(state.history), identity["config"]["epochs"],
    )  # fmt: skip
    return state
