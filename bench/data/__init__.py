"""Labelled images: where they come from, their splits, and how they become a network's input."""
