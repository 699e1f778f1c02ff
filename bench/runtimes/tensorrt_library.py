"""Which TensorRT is here: the classic one, TensorRT-RTX, or none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ..errors import EnvironmentLacks

ENGINES = (".engine", ".plan", ".trt")
FLAVOURS = ("tensorrt", "tensorrt_rtx")
"""The packages, in the order in which they are tried."""


def libraries(flavours: Sequence[str] = FLAVOURS) -> list[Any]:
    """Those of the packages that can be imported.

    Raises:
        EnvironmentLacks: none can.
    """
    found, errors = [], []
    for name in flavours:
        try:
            found.append(import_module(name))
        except (ImportError, OSError) as error:  # OSError: bindings without their libraries
            errors.append(f"{name}: {error}")
    if not found:
        raise EnvironmentLacks(
            f"TensorRT cannot be imported ({'; '.join(errors)}). {_cure(flavours)}"
        )
    return found


def _cure(flavours: Sequence[str]) -> str:
    if tuple(flavours) == ("tensorrt",):
        return "Install it: pip install 'tensorrt>=10.13' (it needs an NVIDIA GPU to build)."
    if tuple(flavours) == ("tensorrt_rtx",):
        return "Install it: pip install 'tensorrt-rtx>=1.7' (it builds without a GPU too)."
    return (
        "Install it: pip install 'tensorrt>=10.13' for the GPU of this machine, or "
        "'tensorrt-rtx>=1.7' for GeForce and RTX GPUs, which builds without a GPU too."
    )


def is_rtx(trt: Any) -> bool:
    """Whether the package is TensorRT-RTX, which builds for GPUs that are not here."""
    return hasattr(trt, "ComputeCapability")


def package_of(flavour: str) -> str:
    """The package of a target's name, such as tensorrt-rtx."""
    return flavour.replace("-", "_")
