"""The state of a training after an epoch, as one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vcompress.bench.errors import UserError


@dataclass(frozen=True)
class State:
    """What `save_state` wrote."""

    identity: Mapping[str, Any]
    history: list[dict[str, float]]
    best_score: float | None
    best_epoch: int
    finished: bool
    scaler: Mapping[str, Any] | None
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    best: dict[str, Tensor]
    moments: Mapping[str, Tensor]
    loss: Mapping[str, Tensor]
    """Parameters of the loss; empty where it has none."""

    def restore(
        self, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any,
        loss: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """Put everything back; the optimiser is a fresh one over the same parameters."""
        model.load_state_dict(self.model)
        if loss is not None:
            loss.load_state_dict(self.loss)
        if ema is not None:
            ema.load_state_dict(self.ema)
        if scaler is not None and self.scaler is not None:
            scaler.load_state_dict(self.scaler)
        state = optimizer.state_dict()
        state["state"] = {}
        for key, value in self.moments.items():
            number, _, name = key.partition(".")
            state["state"].setdefault(int(number), {})[name] = value
        optimizer.load_state_dict(state)


def save_state(
    file: Path, model: nn.Module, ema: nn.Module | None, optimizer: Any, scaler: Any,
    loss: nn.Module | None = None, *, best: Mapping[str, Tensor], **facts: Any,
) -> None:  # fmt: skip
    """Write the state of an epoch's end to `file` by a rename; `facts` are JSON values."""
    tensors: dict[str, Tensor] = {}
    for prefix, source in (
        ("model", model.state_dict()),
        ("ema", ema.state_dict() if ema is not None else {}),
        ("best", best),
        ("loss", loss.state_dict() if loss is not None else {}),
    ):
        tensors |= {f"{prefix}/{key}": value for key, value in source.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            if value is not None:
                tensors[f"moments/{number}.{key}"] = torch.as_tensor(value)
    # A copy of each: safetensors refuses tensors that share memory.
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    facts["scaler"] = scaler.state_dict() if scaler is not None else None
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".writing")
    try:
        save_file(tensors, temporary, metadata={"vcompress": json.dumps(facts)})
    except SafetensorError as error:  # it wraps what the disk says
        temporary.unlink(missing_ok=True)
        raise UserError(f"{file}: the training state could not be written ({error}).") from error
    temporary.replace(file)


def load_state(file: Path) -> State:
    """Read what `save_state` wrote.

    Raises:
        UserError: the file is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("model", "ema", "best", "moments", "loss")
    }
    try:
        with safe_open(file, framework="pt") as stream:
            facts: dict[str, Any] = json.loads(stream.metadata()["vcompress"])
            for key in stream.keys():  # noqa: SIM118 (safe_open is no dict)
                prefix, _, name = key.partition("/")
                groups[prefix][name] = stream.get_tensor(key)
        return State(**{**facts, **groups})
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file}: the saved training state cannot be read ({error}). Leave --resume out to "
            f"start again."
        ) from error
