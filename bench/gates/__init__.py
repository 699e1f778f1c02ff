"""Limits that a model must hold, and the saved result that it is held against."""
