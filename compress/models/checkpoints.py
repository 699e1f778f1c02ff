"""Checkpoints of other trainers: plain state_dicts, torchvision's reference training, timm with
EMA, Lightning, DataParallel prefixes, safetensors. Only tensors are read, no code runs.
"""

from __future__ import annotations

import argparse
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError

from .changes import load_tensors

log = logging.getLogger(__name__)


# Under which key a training script puts the weights; averaged ones come first.
_KEYS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema",
    "state_dict", "model_state_dict", "model", "net", "network", "weights", "module", "params",
)  # fmt: skip
_PREFIXES = ("module.", "model.", "net.", "network.", "backbone.", "encoder.", "_orig_mod.")
# Auxiliary heads are only for training, and counters only matter to an average without momentum.
_DISPENSABLE = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")


@dataclass(frozen=True)
class Loaded:
    """What was taken from a checkpoint."""

    key: str | None
    """Where in the file the weights were; None where they are the whole file."""
    prefix: str
    """What was taken off the names."""
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a checkpoint by name, and the key under which the file had them.

    Raises:
        UserError: no such file, not a checkpoint, or one that holds more than plain data.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected a .safetensors or a .pth checkpoint.")
    if path.suffix == ".safetensors":
        return load_tensors(path), None
    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused by torch's restricted loader, since it holds more than tensors: "
            f"{_reason(error)}. Where it was made, save the weights alone: "
            f"torch.save(model.state_dict(), 'weights.pth')."
        ) from None
    except Exception as error:  # a damaged file makes the loader stumble in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a checkpoint that torch can read ({reason}).") from None
    return _find_weights(content, path)


def _harmless() -> list[Any]:
    """Plain data that training scripts put beside the weights: parsed arguments (torchvision,
    timm), and numpy's numbers for a best accuracy."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    return [argparse.Namespace, scalar, np.dtype, *(type(np.dtype(kind)) for kind in kinds)]


def _reason(error: Exception) -> str:
    """The line of torch's long message that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    named = next((line for line in lines if "global" in line.lower()), lines[0])
    return named.split(". Please")[0].rstrip(".")[:200]


def _find_weights(content: object, path: Path) -> tuple[dict[str, Tensor], str | None]:
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected named tensors.")
    for key in _KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and (tensors := _tensors(inner)):
            return tensors, key
    if tensors := _tensors(content):
        return tensors, None
    raise UserError(
        f"{path}: no weights found; it has {', '.join(map(str, list(content)[:8]))}. Expected a "
        f"state_dict, or one under state_dict, model or model_ema."
    )


def _tensors(content: Mapping[object, object]) -> dict[str, Tensor]:
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def strip_prefix(tensors: Mapping[str, Tensor], names: set[str]) -> tuple[dict[str, Tensor], str]:
    """Take off the wrappers' prefixes so that as many names as possible are among `names`."""
    best, best_prefix = dict(tensors), ""
    candidates = [""]
    for _ in range(3):  # a compiled DataParallel inside a Lightning module has three
        candidates += [a + b for a in candidates for b in _PREFIXES if a + b not in candidates]
        if len(candidates) > 500:
            break
    hits = sum(name in names for name in best)
    for prefix in candidates[1:]:
        stripped = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        found = sum(name in names for name in stripped)
        if found > hits:
            rest = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
            best, best_prefix, hits = {**stripped, **rest}, prefix, found
    return best, best_prefix


def infer_classes(path: Path, model: nn.Module, heads: Sequence[str]) -> int:
    """How many classes the checkpoint's head has; `model` has the same head under `heads`."""
    tensors, _ = read_checkpoint(path)
    tensors, _ = strip_prefix(tensors, set(model.state_dict()))
    weight = next((tensors[f"{h}.weight"] for h in heads if f"{h}.weight" in tensors), None)
    if weight is None:
        near = [name for name in tensors if name.endswith("weight")][-3:]
        raise UserError(
            f"{path}: no {heads[0]}.weight in it, so the number of classes is not known and the "
            f"checkpoint is probably of another architecture. Its last weights are "
            f"{', '.join(near)}."
        )
    return int(weight.shape[0])


def load_into(model: nn.Module, path: Path, *, heads: Sequence[str] = ()) -> Loaded:
    """Load a checkpoint into `model`.

    Args:
        heads: layers that may have another number of classes in the file; they are then left as
            they are.

    Raises:
        UserError: names the tensors that are missing, left over, or of another shape.
    """
    tensors, key = read_checkpoint(path)
    own = model.state_dict()
    tensors, prefix = strip_prefix(tensors, set(own))
    left_over = [name for name in tensors if name not in own and not name.startswith(_DISPENSABLE)]
    if "n_averaged" in left_over:  # torch's AveragedModel counts its updates
        left_over.remove("n_averaged")
    missing = [
        name for name in own if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    other = [n for n in own if n in tensors and tensors[n].shape != own[n].shape]
    if other and {n.rpartition(".")[0] for n in other} <= set(heads):
        log.info("%s: its head has other classes, so %s starts anew", path, ", ".join(heads))
        tensors = {k: v for k, v in tensors.items() if k not in other}
        other = []
    if other:
        name = other[0]
        raise UserError(
            f"{path}: {len(other)} tensors have another shape, the first is {name}: "
            f"{list(tensors[name].shape)} in the file, {list(own[name].shape)} in the network. "
            f"Give the architecture that the file was trained with."
        )
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the network's {len(own)} tensors are missing "
            f"({', '.join(missing[:4])}, ...) and {len(left_over)} of the file's are left over "
            f"({', '.join(left_over[:4]) or 'none'}). Give the architecture that the file was "
            f"trained with."
        )
    fitting = {name: tensor for name, tensor in tensors.items() if name in own}
    model.load_state_dict(fitting, strict=False)
    return Loaded(key, prefix, tuple(missing), tuple(left_over))
