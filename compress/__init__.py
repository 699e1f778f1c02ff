"""Models, data, training and the methods: distil, prune, quantise.

The names below are the library; `docs/library.md` describes them. Nothing is loaded before it is
asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .library.distiller import Distiller, distiller
    from .library.preprocess import preprocess_of
    from .library.prune import prune
    from .library.quantize import Quantized, QuantizeReport, quantize
    from .library.save import load, save
    from .pruning.prune import PruneReport
    from .quantization.quantizers import freeze_norms

__all__ = [
    "Distiller",
    "PruneReport",
    "QuantizeReport",
    "Quantized",
    "distiller",
    "freeze_norms",
    "load",
    "preprocess_of",
    "prune",
    "quantize",
    "save",
]
_HOMES = {
    "Distiller": ".library.distiller",
    "PruneReport": ".pruning.prune",
    "QuantizeReport": ".library.quantize",
    "Quantized": ".library.quantize",
    "distiller": ".library.distiller",
    "freeze_norms": ".quantization.quantizers",
    "load": ".library.save",
    "preprocess_of": ".library.preprocess",
    "prune": ".library.prune",
    "quantize": ".library.quantize",
    "save": ".library.save",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
