"""Weights that are computed, such as those of weight norm, made plain before a network is cut."""

from __future__ import annotations

import logging

from torch import nn

from vcompress.export.folding import fold

log = logging.getLogger(__name__)


def fold_told(model: nn.Module, stage: str) -> None:
    """`fold`, in place; the log says which."""
    if names := fold(model):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        log.info(
            "%s: weight norm and the like are folded into %s%s", stage, ", ".join(names[:3]), more
        )
