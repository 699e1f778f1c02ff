"""Networks that must not lose channels any more."""

from __future__ import annotations

import torch
from torch import nn

from vcompress.bench.errors import UserError

from .sparsity import sparse_layers


def refuse_quantised(model: nn.Module) -> None:
    """Widths are cut in floating point: scales of a quantised network would not follow."""
    for path, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith("vcompress.compress.quantization") or isinstance(
            module, torch.ao.quantization.FakeQuantizeBase
        ):
            raise UserError(
                f"This network is quantised already ({path} is a {kind.__name__}): prune first, "
                "then quantise."
            )


def refuse_sparse(model: nn.Module) -> None:
    """Cutting input channels would move the zeros of 2:4 sparsity out of their fours."""
    layers = sparse_layers(model)
    if layers:
        raise UserError(
            f"This network is 2:4 sparse ({layers[0]} and {len(layers) - 1} more): prune channels "
            "first, then sparsify."
        )
