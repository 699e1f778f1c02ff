"""Structured pruning on torch-pruning's dependency graph; the choice of channels is our own."""

from .blocks import drop_blocks
from .optimizer import remap_optimizer
from .prune import LayerWidth, PruneReport, prune

__all__ = ["LayerWidth", "PruneReport", "drop_blocks", "prune", "remap_optimizer"]
