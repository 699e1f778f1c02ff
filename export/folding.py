"""Weights that are computed from other tensors: weight norm, spectral norm, any parametrisation of
`torch.nn.utils.parametrize`, and torch's older norms by hooks.

They stay in training. What ships, and what is pruned or quantised, has the plain weights that they
come to in evaluation: an ONNX file would compute them anew for every image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm


def computed(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights that are computed, as `conv.weight`."""
    found = []
    for path, module in model.named_modules():
        names = [name for name, _ in _hooks(module)]
        if parametrize.is_parametrized(module):
            names += list(module.parametrizations)
        found += [f"{path}.{name}" if path else name for name in names]
    return tuple(found)


def fold(model: nn.Module, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """Put plain weights in the place of computed ones, in place; gives their names.

    Args:
        names: some of `computed(model)`, all of a layer or none; all by default.
    """
    chosen = computed(model) if names is None else tuple(names)
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in chosen):
        module = model.get_submodule(owner)
        for name, _ in list(_hooks(module)):
            _fold_hook(module, name)
        if parametrize.is_parametrized(module):
            _fold_parametrisations(module)
    return chosen


def _fold_parametrisations(module: nn.Module) -> None:
    """As `remove_parametrizations`, which takes the weight away from every copy of the module too:
    they share a class."""
    of: Any = module.parametrizations
    of.eval()
    with torch.no_grad():
        values = {name: getattr(module, name).detach().clone() for name in of}
    originals = {name: [*of[name].parameters(recurse=False)] for name in of}
    kind = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = kind
    for name, value in values.items():
        if not originals[name]:
            module.register_buffer(name, value)
            continue
        learns = any(parameter.requires_grad for parameter in originals[name])
        module.register_parameter(name, nn.Parameter(value, requires_grad=learns))


def folded(model: nn.Module) -> nn.Module:
    """`model`, or where it computes weights a folded copy."""
    if not computed(model):
        return model
    _settle(model)
    made = copy.deepcopy(model)
    fold(made)
    return made


def modernise(model: nn.Module) -> None:
    """Turn weight norm and spectral norm by hooks into parametrisations, in place: a network with
    such hooks cannot be copied after a training step."""
    for module in list(model.modules()):
        for name, hook in list(_hooks(module)):
            state = {
                part: getattr(module, f"{name}_{part}").detach().clone()
                for part in ("g", "v", "orig", "u")
                if hasattr(module, f"{name}_{part}")
            }
            _fold_hook(module, name)
            if isinstance(hook, WeightNorm):
                parametrizations.weight_norm(module, name, hook.dim)
                of: Any = module.parametrizations
                made = of[name]
                made.original0.data, made.original1.data = state["g"], state["v"]
                continue
            with torch.random.fork_rng(devices=[]):
                parametrizations.spectral_norm(
                    module, name, hook.n_power_iterations, hook.eps, hook.dim
                )
            of = module.parametrizations
            made = of[name]
            made.original.data = state["orig"]
            made[0]._u, made[0]._v = state["u"], state["v"]


def _hooks(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, SpectralNorm)):
            yield hook.name, hook


def _fold_hook(module: nn.Module, name: str) -> None:
    hook = dict(_hooks(module))[name]
    if isinstance(hook, WeightNorm):
        nn.utils.remove_weight_norm(module, name)
        return
    nn.utils.remove_spectral_norm(module, name)
    # torch overlooks this one, and no weights could be loaded any more.
    for number, held in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(held, "hook", held), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[number]


def _settle(model: nn.Module) -> None:
    """Compute the weights of hooks without a graph: else they cannot be copied."""
    for module in model.modules():
        for name, hook in _hooks(module):
            with torch.no_grad():
                weight = (
                    hook.compute_weight(module)
                    if isinstance(hook, WeightNorm)
                    else hook.compute_weight(module, do_power_iteration=False)
                )
            setattr(module, name, weight)
