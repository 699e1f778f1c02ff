"""OpenVINO on the CPU: inputs of convolutions and matrix products, uint8 with a zero point.

OpenVINO moves Q/DQ past pooling and reshaping by itself. It fuses the addition of a shortcut and
the next rounding into the convolution before it, and needs no rounding behind a layer. So, unlike
for ONNX Runtime, outputs are not quantised, and a residual addition has its shortcut alone
quantised.
"""

from __future__ import annotations

from . import Target, place_inputs

TARGET = Target(
    name="openvino",
    unsigned=True,
    repeat=False,
    place=place_inputs,
    runtime="openvino",
    device="cpu",
    no_float16="OpenVINO computes float16 files in float32 on the CPU",
)
