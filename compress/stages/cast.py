"""Export in half precision: float16 or bfloat16; int8 networks become int8 with float16.

The weights in torch stay float32, so that the bundle can be trained on; the exported file is cast.
BN is folded in float32 first. The file's input and output stay float32 with one Cast at each edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..training.config import Context
from .contract import Outcome, Stage, never

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Config:
    """The exported file in float16 or bfloat16; a quantised network becomes int8 with float16."""

    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Type of the numbers in the exported file; fp32 takes an earlier cast back."""


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Note the type that `model` is exported in; the end of the command casts, proves, measures."""
    from vcompress.bench.errors import UserError

    from ..models.precision import set_precision
    from ..quantization import is_quantized

    if is_quantized(model) and config.dtype == "bf16":
        raise UserError("--dtype bf16: a quantised network goes with fp16. Give --dtype fp16.")
    set_precision(model, config.dtype)
    return Outcome(model, {"dtype": config.dtype, "quantised": is_quantized(model)})


STAGE = Stage(Config, apply, trains=never)
