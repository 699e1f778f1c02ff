"""The cost of a network, counted and not timed: multiply-accumulates and parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vcompress.export.folding import folded
from vcompress.export.modes import evaluating


def count_parameters(model: nn.Module) -> int:
    """Weights of `model`; a tensor that is tied to several places counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one image through convolutions and matrix products.

    `example` is [1, C, H, W]. The count is made on the meta device: nothing is computed and
    nothing in `model` changes, the ranges of its observers included. A forward pass that needs
    real values (a branch on the data) is run on a real copy of the buffers instead. Weights that
    are computed from others, as by weight norm, count as plain ones.
    """
    model = folded(model)
    with evaluating(model):
        try:
            return _count(model, example, torch.device("meta"))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return _count(model, example, example.device)


def _count(model: nn.Module, example: Tensor, device: torch.device) -> int:
    tensors: dict[str, Tensor] = {}
    made: dict[int, Tensor] = {}
    # Each module once, by one of its names: where a module has two, `functional_call` would take
    # the replacement for the original and leave it in the network.
    for path, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if device.type != "meta" and isinstance(tensor, nn.Parameter):
                continue
            if id(tensor) not in made:
                # an observer would write into the real one
                made[id(tensor)] = (
                    torch.empty_like(tensor, device=device)
                    if device.type == "meta"
                    else tensor.clone()
                )
            tensors[f"{path}.{name}" if path else name] = made[id(tensor)]
    counter = FlopCounterMode(display=False)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # The fused attention kernels of the CPU have no formula in the counter: they would
        # count as nothing. The plain one is two matrix products.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            functional_call(model, tensors, (example[:1].to(device),), tie_weights=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops()) // 2
