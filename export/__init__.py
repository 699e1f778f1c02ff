"""From an `nn.Module` to a checked ONNX file and engine, with parity proved at each step.

The names below are the library; `docs/library.md` describes them. Nothing is loaded before it is
asked for.
"""

from vcompress.bench.lazy import loader  # isort: skip  before Python's own: see bench/safe_path

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .library import Exported, to_onnx

__all__ = ["Exported", "to_onnx"]
_HOMES = {"Exported": ".library", "to_onnx": ".library"}


__getattr__ = loader(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
