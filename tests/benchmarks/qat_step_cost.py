"""The cost of a training step with quantisers against a float step, interleaved in one run.

    python tests/benchmarks/qat_step_cost.py --models resnet18 mobilenet_v2

Run it on a machine that does nothing else. Both networks make one forward pass, one backward pass
and one SGD update on the same batch, in turns; printed are medians and the median of the ratios.
The layout is the training loop's, channels-last, unless --layout says otherwise. The status is 1
where a ratio is above its limit (1.2 for ResNet-18, 1.5 for MobileNetV2).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
import torchvision
from torch import nn

from vcompress.compress import quantization as q


def step_s(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> float:
    """Seconds of one training step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return time.perf_counter() - start


LIMITS = {"resnet18": 1.2, "mobilenet_v2": 1.5}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "tensorrt"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layout", choices=("channels-last", "nchw"), default="channels-last")
    options = parser.parse_args()
    layout = torch.channels_last if options.layout == "channels-last" else torch.contiguous_format
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.size} px, "
          f"batch {options.batch}, {options.layout}, {options.rounds} rounds\n")  # fmt: skip
    print("| network | target | float step ms | QAT step ms | ratio |\n|---|---|--:|--:|--:|")
    missed = False
    for name in options.models:
        x = torch.randn(options.batch, 3, options.size, options.size).to(memory_format=layout)
        for target in options.targets:
            torch.manual_seed(0)
            plain = torchvision.models.get_model(name).train()
            quantised = q.prepare(plain, x[:1], target=target).train()
            q.calibrate(quantised, [x], observer="minmax")
            both = [m.to(memory_format=layout) for m in (plain, quantised)]
            pair = [(m, torch.optim.SGD(m.parameters(), 1e-4)) for m in both]
            for model, optimizer in pair:
                step_s(model, optimizer, x)
            times = [[step_s(m, o, x) for m, o in pair] for _ in range(options.rounds)]
            ratio = statistics.median(b / a for a, b in times)
            floats, quants = (statistics.median(t) * 1e3 for t in zip(*times, strict=True))
            missed = missed or ratio > LIMITS.get(name, float("inf"))
            print(f"| {name} | {target} | {floats:.0f} | {quants:.0f} | {ratio:.2f} |", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
