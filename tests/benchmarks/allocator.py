"""What keeping large blocks saves: processor time of the user, of the kernel, and peak memory.

    python tests/benchmarks/allocator.py --images 256

Calibrates MobileNetV2 of 224 px with repairs (random weights), in processes of their own that
alternate between glibc's defaults and `keep_large_blocks`. Processor time says more than the clock
where other programs run.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def one(keeps: bool, images: int) -> dict[str, float]:
    if keeps:
        from vcompress.compress.allocator import keep_large_blocks

        keep_large_blocks()
    import torch
    import torchvision

    from vcompress import compress

    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    data = torch.randn(images * 3 // 2, 3, 224, 224)
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    found = compress.quantize(model, data, images=images, held_out=images // 2)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "clock_s": time.perf_counter() - started,
        "user_s": after.ru_utime - before.ru_utime,
        "kernel_s": after.ru_stime - before.ru_stime,
        "peak_gb": after.ru_maxrss * 1024 / 1e9,
        "sqnr_db": found.report.sqnr_db,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256, help="number that calibrate")
    parser.add_argument("--runs", type=int, default=2, help="of each, alternating")
    parser.add_argument("--one", choices=["kept", "default"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one == "kept", options.images)))
        return
    found: dict[str, list[dict[str, float]]] = {"default": [], "kept": []}
    for _ in range(options.runs):
        for which, results in found.items():
            command = [sys.executable, __file__, "--one", which, "--images", str(options.images)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(run.stdout.splitlines()[-1]))
    print("| blocks | clock s | user s | kernel s | peak GB | SQNR dB |")
    print("|---|--:|--:|--:|--:|--:|")
    for which, results in found.items():
        cells = [statistics.median(result[key] for result in results) for key in results[0]]
        print(f"| {which} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
