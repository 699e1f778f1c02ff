"""Measure, score and run a model in the runtime that ships it. Needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device.predict import Model, load
    from .tasks.task import Prediction

__all__ = ["Model", "Prediction", "load"]
_HOMES = {"Model": ".device.predict", "load": ".device.predict", "Prediction": ".tasks.task"}


def __getattr__(name: str) -> Any:
    # What a device calls is found here, and nothing is loaded before it is asked for.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
