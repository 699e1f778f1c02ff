"""How long do `vbench --help`, `vcompress --help` and `vbench model.onnx` take?

At most 0.25 s for the help, and less than 10 s for a model of about 1 ms with nothing asked for.
Run it alone on the machine.

    python tests/benchmarks/startup.py [MODEL.onnx]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vcompress.bench import onnx_file


def seconds(package: str, *argv: str) -> float:
    start = time.perf_counter()
    code = f"from vcompress.{package}.cli import main; import sys; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, *argv], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "chain.onnx"
        model.write_bytes(onnx_file.chain_model(224, 5))
        help_s = {
            command: statistics.median(seconds(package, "--help") for _ in range(10))
            for command, package in (("vbench", "bench"), ("vcompress", "compress"))
        }
        model_s = max(seconds("bench", *(sys.argv[1:] or [str(model)])) for _ in range(3))
    for command, median in help_s.items():
        print(f"{command} --help: {median:.3f} s (median of 10), at most 0.25 s")
    print(f"vbench model.onnx: {model_s:.2f} s (longest of 3), less than 10 s")
    return 0 if max(help_s.values()) <= 0.25 and model_s < 10 else 1


if __name__ == "__main__":
    sys.exit(main())
