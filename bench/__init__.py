"""Measure, score and run a model in the runtime that ships it. Needs no torch.

The names below are the library; `docs/library.md` describes them. Nothing is loaded before it is
asked for.
"""

from .safe_path import leave_working_folder

leave_working_folder()  # before anything else is imported

import os  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from .lazy import loader  # noqa: E402

# ONNX Runtime counts sessions and sends the counts, by default. It reads this when it is first
# imported; processes that are started inherit it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .bundle import IMAGENET, Bundle, Preprocess
    from .device.predict import Model, load
    from .errors import UserError
    from .library import compare, measure
    from .tasks.task import Prediction

__all__ = [
    "IMAGENET",
    "Bundle",
    "Model",
    "Prediction",
    "Preprocess",
    "UserError",
    "compare",
    "load",
    "measure",
]
_HOMES = {
    "IMAGENET": ".bundle",
    "Bundle": ".bundle",
    "Model": ".device.predict",
    "Prediction": ".tasks.task",
    "Preprocess": ".bundle",
    "UserError": ".errors",
    "compare": ".library",
    "load": ".device.predict",
    "measure": ".library",
}


__getattr__ = loader(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
