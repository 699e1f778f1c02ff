"""From an `nn.Module` to a checked ONNX file and engine, with parity proved at each step.

The names below are the library; `docs/library.md` describes them. Nothing is loaded before it is
asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .library import Exported, to_onnx

__all__ = ["Exported", "to_onnx"]
_HOMES = {"Exported": ".library", "to_onnx": ".library"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
