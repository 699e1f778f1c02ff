"""From an `nn.Module` to a checked ONNX file and engine, with parity proved at each step."""
