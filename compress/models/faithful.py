"""Holds a network that was made of another, by a trace for instance, against it on real images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.export.modes import evaluating

ENOUGH_DB = 60.0
"""SQNR of two forms of one network: what rounding in float32 leaves is above 100."""
IMAGES = 8
"""So many are enough to see another function."""


class NotTheSame(UserError):
    """A network that was made of another computes something else."""


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors in what a network returned: one, or several in mappings and sequences."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors_of(item)]
    return []


def check_same(network: nn.Module, made: nn.Module, inputs: Sequence[Tensor], how: str) -> None:
    """Raise `NotTheSame` where `made` computes something else than `network`, from which it was
    made; it names the first module that differs. Both are run in evaluation, on a few images.

    Args:
        inputs: of the network, each [B, ...] and on its device.
        how: what `made` is, for the message: "the traced network".
    """
    few = tuple(tensor[:IMAGES] for tensor in inputs)
    found = _outputs_apart(network, made, few)
    if found >= ENOUGH_DB or _outputs_apart_in_double(network, made, few) >= ENOUGH_DB:
        return
    last, first = _where(network, made, few)
    raise NotTheSame(
        f"{how} computes something else than {type(network).__name__}: the SQNR of its outputs is "
        f"{found:.1f} dB, expected {ENOUGH_DB:.0f} dB and more. {_place(last, first)} Look there "
        "for what a trace cannot follow: a module that changes its input in place, numpy, a branch "
        "on values, a state that the forward pass changes. Compute a new tensor there instead."
    )


def _place(last: str | None, first: str | None) -> str:
    if first is None:
        return f"All modules agree up to {last or 'the first one'}; what comes after differs."
    return f"The first difference is {first}; " + (
        f"they agree up to {last}." if last else "nothing before it was compared."
    )


def sqnr_db(wanted: Tensor, got: Tensor) -> float:
    """Signal to error in decibels, infinite where both are the same; two NaN are the same."""
    if wanted.shape != got.shape:
        return -math.inf
    a, b = (torch.nan_to_num(t.detach().double()) for t in (wanted, got))
    peak = float(a.abs().max()) if a.numel() else 0.0
    peak = peak or 1.0  # squares of very large values would overflow
    signal, error = (a / peak).square().sum(), ((a - b) / peak).square().sum()
    if float(error) == 0:
        return math.inf
    return float(10 * torch.log10(signal / error)) if float(signal) > 0 else -math.inf


def outputs_of(network: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The tensors that a network returns in evaluation; what it draws at random is the same each
    time, and its inputs stay as they are."""
    devices = [t.device for t in inputs if t.is_cuda]
    with evaluating(network), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return [t.clone() for t in tensors_of(network(*(t.clone() for t in inputs)))]


def _outputs_apart(network: nn.Module, made: nn.Module, inputs: Sequence[Tensor]) -> float:
    wanted, got = outputs_of(network, inputs), outputs_of(made, inputs)
    if len(wanted) != len(got):
        return -math.inf
    return min((sqnr_db(a, b) for a, b in zip(wanted, got, strict=True)), default=math.inf)


def _outputs_apart_in_double(
    network: nn.Module, made: nn.Module, inputs: Sequence[Tensor]
) -> float:
    """The same in float64, where a network that magnifies rounding errors has none to speak of."""
    try:
        doubles = [copy.deepcopy(n).double() for n in (network, made)]
        return _outputs_apart(doubles[0], doubles[1], [t.double() for t in inputs])
    except Exception:  # whatever a forward pass raises that insists on float32
        return -math.inf


@dataclass(frozen=True)
class _Seen:
    """What a module got or gave at its first call."""

    what: str
    tensor: Tensor


def _where(
    network: nn.Module, made: nn.Module, inputs: Sequence[Tensor]
) -> tuple[str | None, str | None]:
    """The last thing that is the same in both networks, and the first that differs."""
    twins = dict(made.named_modules())
    common = {
        path: isinstance(twins[path], type(module))
        for path, module in network.named_modules()
        if path and path in twins
    }
    wanted, got = (_watch(n, common, inputs) for n in (network, made))
    last = None
    for key, seen in wanted.items():
        if key in got:
            if sqnr_db(seen.tensor, got[key].tensor) < ENOUGH_DB:
                return last, seen.what
            last = seen.what
    return last, None


def _watch(
    network: nn.Module, common: dict[str, bool], inputs: Sequence[Tensor]
) -> dict[tuple[str, bool], _Seen]:
    """What the modules at these paths got, and gave where the flag says so, in order."""
    found: dict[tuple[str, bool], _Seen] = {}

    def note(path: str, gives: bool) -> Callable[..., None]:
        word = "the output of" if gives else "the input of"

        def hook(_: nn.Module, args: Any, output: Any = None) -> None:
            for tensor in tensors_of(output if gives else args)[:1]:
                found.setdefault((path, gives), _Seen(f"{word} {path}", tensor.detach().clone()))

        return hook

    handles = []
    for path, gives in common.items():
        module = network.get_submodule(path)
        handles.append(module.register_forward_pre_hook(note(path, False)))
        if gives:
            handles.append(module.register_forward_hook(note(path, True)))
    try:
        outputs_of(network, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
