"""Models, data, training and the methods: distil, prune, quantise.

The names below are the library; `docs/library.md` describes them. Nothing is loaded before it is
asked for.
"""

from vcompress.bench.lazy import loader  # isort: skip  before Python's own: see bench/safe_path

from typing import TYPE_CHECKING

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


__getattr__ = loader(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
