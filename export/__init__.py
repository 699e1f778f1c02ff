"""From a torch module to a checked ONNX file, and from there to an engine."""
