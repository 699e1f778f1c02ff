"""Structured pruning on torch-pruning's dependency graph; the choice of channels is ours."""

from .optimizer import remap_optimizer
from .prune import LayerWidth, PruneReport, prune

__all__ = ["LayerWidth", "PruneReport", "prune", "remap_optimizer"]
