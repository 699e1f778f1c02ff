"""OpenVINO on the CPU: inputs of convolutions and matrix products, uint8 with a zero point.

OpenVINO moves Q/DQ past pooling and reshaping by itself, fuses the addition of a shortcut and the
next rounding into the convolution before it, and needs no rounding behind a layer: so, unlike for
ONNX Runtime, outputs are not quantised, and of a residual addition the shortcut alone is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from . import Keep, Plan, place_inputs

UNSIGNED = True
REPEAT = False


def place(nodes: Sequence[fx.Node], keep: Keep) -> Plan:
    """See the module's text; `nodes` in order of execution."""
    return place_inputs(nodes, keep)
