"""Measure, score and run a model in the runtime that ships it. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .device.predict import Model, Prediction, load

__all__ = ["Model", "Prediction", "load"]


def __getattr__(name: str) -> Any:
    # What a device calls is found here, and nothing is loaded before it is asked for.
    if name in __all__:
        from .device import predict

        return getattr(predict, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
