"""Checkpoints of other trainers: plain state_dicts, torchvision's reference training, timm with
EMA, Lightning, FSDP, torch.compile, safetensors.

Nothing depends on how a trainer names things. The file is a tree of names, and so is the network;
the part of the file that fits the network best is taken. A module that has one child alone, which
the network does not have, is a wrapper and is passed over wherever it stands. Of several parts that
fit alike, averaged weights come first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError, nearest

from . import checkpoint_file
from .channels import fitted
from .checkpoint_norms import under_names_of
from .checkpoint_tree import Node, leaf

log = logging.getLogger(__name__)

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Auxiliary heads are only for training, and counters only matter to an average without momentum.
_DISPENSABLE = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")
_DEEPEST = 12
_DEEPEST_NAME = 64
_LONGEST_LIST = 16
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Loaded:
    """What was taken from a checkpoint."""

    key: str | None
    """Where in the file the weights were; None where they are the whole file."""
    prefix: str
    """What was taken off the names."""
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    """What a part of the file holds of a network."""

    node: Node
    taken: Mapping[str, Node]
    """The network's tensors by name, and where they lie in the file."""
    fitting: int
    """How many of its parameters have the network's shape; a head may have another."""


def infer_classes(
    path: Path, model: nn.Module, heads: Sequence[str], key: str | None = None
) -> int:
    """How many classes the checkpoint's head has; `model` has the same head under `heads`."""
    root = _tree(path, key)
    fits = _fits(root, model, heads)
    taken = fits[0].taken if fits else {}
    of_head = [name for name in taken if name.rpartition(".")[0] in heads]
    name = next((n for n in of_head if n.endswith("weight")), next(iter(of_head), None))
    if name is None:
        near = [n.path for n in root.nodes() if n.tensor is not None and n.path.endswith("weight")]
        raise UserError(
            f"{path}: no {heads[0]}.weight in it, so the number of classes is not known and the "
            f"checkpoint is probably of another architecture. Its last weights are "
            f"{', '.join(near[-3:])}."
        )
    weight = taken[name].tensor
    assert weight is not None
    _check_head(path, name, weight, model.state_dict()[name])
    return int(weight.shape[0])


def load_into(
    model: nn.Module, path: Path, *, heads: Sequence[str] = (), key: str | None = None
) -> Loaded:
    """Load a checkpoint into `model`.

    Args:
        heads: layers that may have another number of classes in the file; they are then left as
            they are.
        key: dotted path of the weights in the file; by default what fits the network best.

    Raises:
        UserError: names the tensors that are missing, left over, or of another shape.
    """
    return _load(model, _tree(path, key), path, heads)


def load_backbone(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a classification network's `tensors` into its trunk `model`; the rest is left over.

    Raises:
        UserError: as `load_into`; `where` stands in place of the file.
    """
    root = Node()
    _grow(root, dict(tensors), set())
    _load(model, root, Path(where), ())


def _load(model: nn.Module, root: Node, path: Path, heads: Sequence[str]) -> Loaded:
    own = model.state_dict()
    fits = _fits(root, model, heads)
    if not fits:
        names = [n.path for n in root.nodes() if n.tensor is not None]
        raise UserError(
            f"{path}: none of its {len(names)} tensors ({', '.join(names[:4])}, ...) is one of the "
            f"network's {len(own)} ({', '.join(list(own)[:4])}, ...): all are missing. The file "
            f"was saved from another architecture."
        )
    best = [fit for fit in fits if fit.fitting == fits[0].fitting]
    # Averages of parameters alone go with the statistics of the weights beside them.
    taken = {n: one for fit in reversed(best[:2]) for n, one in fit.taken.items()}
    tensors = {name: node.tensor for name, node in taken.items() if node.tensor is not None}
    tensors = fitted(tensors, own)
    left_over = tuple(_left_over(root, best))
    missing = [
        name for name in own if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    other = [n for n in own if n in tensors and tensors[n].shape != own[n].shape]
    if other and {n.rpartition(".")[0] for n in other} <= set(heads):
        log.info("%s: its head has other classes, so %s starts anew", path, ", ".join(heads))
        tensors = {k: v for k, v in tensors.items() if k not in other}
        other = []
    if other:
        raise UserError(_of_other_shape(path, other, tensors, own))
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of the network's {len(own)} tensors are missing "
            f"({', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}) and {len(left_over)} "
            f"of the file's are left over ({', '.join(left_over[:4]) or 'none'}). The file was "
            f"saved from another architecture, or from another variant of it."
        )
    _say_which(path, fits, fits[0].fitting)
    model.load_state_dict(tensors, strict=False)
    node = fits[0].node
    prefix = "".join(f"{part}." for part in node.prefix)
    return Loaded(".".join(node.key) or None, prefix, tuple(missing), left_over)


def _tree(path: Path, key: str | None) -> Node:
    """The names of the file as a tree, from `key` downwards.

    Raises:
        UserError: there are no tensors in it, or no such key.
    """
    content = checkpoint_file.read(path)
    root = Node()
    _grow(root, content, set())
    if key is not None:
        found = root.at(key)
        if found is None or not found.holds:
            known = [n.path for n in root.nodes() if n.path and not n.prefix]
            raise UserError(
                f"{path}: no weights under the key {key!r}.{nearest(key, known)} It has "
                f"{', '.join(known[:8]) or 'no keys but the names of its tensors'}."
            )
        root = found
    if not root.holds:
        raise UserError(
            f"{path}: no weights found; it has {', '.join(map(str, list(content)[:8]))}. Expected "
            f"a state_dict, alone or in dictionaries."
        )
    return root


def _grow(node: Node, content: Any, seen: set[int]) -> None:
    """Put the tensors of `content` below `node`; what stands in several places counts once."""
    source = content
    if isinstance(content, checkpoint_file.StandIn):
        content = content.items
    several = isinstance(content, (list, tuple)) and len(content) > 0
    if several and all(isinstance(value, Tensor) and _readable(value) for value in content):
        node.listed = content
        return
    if several and len(content) <= _LONGEST_LIST:
        content = dict(enumerate(content))
    if not isinstance(content, dict) or id(source) in seen or len(node.key) > _DEEPEST:
        return
    seen.add(id(source))
    for name, value in dict.items(
        content
    ):  # the file may give an OrderedDict an `items` of its own
        if isinstance(value, Tensor):
            if _readable(value):
                leaf(node, str(name).split(".", _DEEPEST_NAME), value)
            continue
        text = str(name)
        below = Node((*node.key, text), node.prefix)
        _grow(below, value, seen)
        if below.children or below.listed:
            node.children.setdefault(text, below)


def _readable(tensor: Tensor) -> bool:
    """Whether it is a plain tensor with values: no sparse, quantised or empty promise."""
    return (
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )


def _fits(root: Node, model: nn.Module, heads: Sequence[str]) -> list[_Fit]:
    """The parts of the file that hold something of the network, the one to take first: that with
    the most of its parameters, then averaged ones."""
    own = model.state_dict()
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    network = Node()
    for name, tensor in own.items():
        leaf(network, name.split("."), tensor)
    found = []
    ordered = dict(model.named_parameters())
    for node in root.nodes():
        if [t.shape for t in node.listed] == [p.shape for p in ordered.values()] and ordered:
            pairs = zip(ordered, node.listed, strict=True)
            taken = {name: Node(node.key, (name,), tensor=tensor) for name, tensor in pairs}
            found.append(_Fit(node, taken, len(parameters)))
        if not node.children.keys().isdisjoint(network.children):
            taken = dict(_matched(node, network, ""))
            same = [
                name
                for name, one in taken.items()
                if one.tensor is not None
                and (one.tensor.shape == own[name].shape or name.rpartition(".")[0] in heads)
            ]
            if same:
                found.append(_Fit(node, taken, len(parameters.intersection(same))))
    return sorted(found, key=lambda fit: (-fit.fitting, not fit.node.averaged))


def _matched(node: Node, network: Node, name: str) -> Iterator[tuple[str, Node]]:
    """The network's tensors that the file has below `node`, whatever wraps its modules."""
    children = under_names_of(network, node)
    for part, wanted in network.children.items():
        below = children.get(part)
        if below is None:
            continue
        full = f"{name}.{part}" if name else part
        if wanted.tensor is not None:
            if below.tensor is not None:
                yield full, below
            continue
        yield from _matched(_unwrapped(below, wanted), wanted, full)


def _unwrapped(node: Node, network: Node) -> Node:
    """`node`, or what lies below it where it holds nothing else, and nothing of the network's."""
    while node.children.keys().isdisjoint(network.children):
        inner = [c for n, c in node.children.items() if n in _WRAPPERS]
        inner = inner or list(node.children.values())
        if len(inner) != 1:
            break
        node = inner[0]
    return node


def _left_over(root: Node, fits: Sequence[_Fit]) -> Iterator[str]:
    """Names in the dictionary of the taken part that are neither taken nor of a copy."""
    node = fits[0].node
    taken = [one for fit in fits for one in fit.taken.values()]
    used = {id(part) for one in taken for part in (one, *one.made_of)}
    same = [n for n in root.nodes() if n.tensor is not None and n.key == node.key]
    for one in same:
        inside = one.prefix[: len(node.prefix)] == node.prefix
        assert one.tensor is not None
        if id(one) in used or (not inside and one.tensor.ndim == 0):  # counters of an average
            continue
        name = ".".join(one.prefix[len(node.prefix) :] if inside else one.prefix)
        if not name.startswith(_DISPENSABLE):
            yield name


def _say_which(path: Path, fits: Sequence[_Fit], most: int) -> None:
    """Log which of several sets of weights was taken, and averages that lack something."""
    names = [fit.node.path or "the weights at the top" for fit in fits]
    whole = [name for name, fit in zip(names, fits, strict=True) if fit.fitting == most]
    if len(whole) > 1:
        kind = "the averaged weights" if fits[0].node.averaged else "the first of those that fit"
        log.warning(
            "%s: took %s, %s; %s fits too. --checkpoint-key names another",
            path, whole[0], kind, ", ".join(whole[1:]),
        )  # fmt: skip
    for name, fit in zip(names, fits, strict=True):
        if fit.node.averaged and not fits[0].node.averaged and 2 * fit.fitting > most:
            log.warning(
                "%s: took %s; the averaged weights %s have %d of its %d parameters",
                path, names[0], name, fit.fitting, most,
            )  # fmt: skip


def _check_head(path: Path, name: str, weight: Tensor, own: Tensor) -> None:
    """Refuse a head that the network cannot have or that the file only claims to hold."""
    stored = weight.untyped_storage().nbytes()
    if not 0 < weight.numel() * weight.element_size() <= stored or (
        weight.ndim == 0 or len(weight) > _MOST_CLASSES
    ):
        raise UserError(
            f"{path}: {name} claims the shape {list(weight.shape)}, and the file holds {stored:,} "
            f"bytes of it. Expected 1 to {_MOST_CLASSES:,} classes with all of their weights."
        )
    if weight.shape[1:] != own.shape[1:]:
        wanted = ", ".join(map(str, ("classes", *own.shape[1:])))
        raise UserError(
            f"{path}: its head {name} is {list(weight.shape)}, and the network's is [{wanted}]. "
            f"The file was saved from another architecture, or from another variant of it."
        )


def _of_other_shape(
    path: Path, names: Sequence[str], tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    name = names[0]
    theirs, ours = list(tensors[name].shape), list(own[name].shape)
    said = (
        f"{path}: {len(names)} tensors have another shape, the first is {name}: {theirs} in the "
        f"file, {ours} in the network. "
    )
    if re.search(r"pos(ition)?_?embed|relative_position", name):
        return f"{said}Give the image size that the file was trained with: --image-size."
    kernels = len(names) == 1 and len(theirs) == len(ours) == 4
    if kernels and ours[1] in (1, 3, 4) and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]:
        return (
            f"{said}The file was trained on images of {theirs[1]} channels: give its --preprocess."
        )
    return f"{said}The file was saved from another variant of the architecture."
