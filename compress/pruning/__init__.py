"""Structured pruning on torch-pruning's dependency graph; the choice of channels is ours."""
