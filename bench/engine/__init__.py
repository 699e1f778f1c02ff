"""Engines of TensorRT and TensorRT-RTX: build one from an ONNX file, and read its layers.

This room is in `bench` because a device builds its engine again with it. Nothing here needs torch.
"""

from .build import BuildReport, build_engine
from .layers import Layer, LayerReport
from .settings import Settings

__all__ = ["BuildReport", "Layer", "LayerReport", "Settings", "build_engine"]
