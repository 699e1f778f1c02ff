"""How long `verify` (golden run apart) and `pack` take against reading and hashing with sha256sum.

A bundle of 100 MB, its files in the page cache; the calls take turns. Run it alone:

    python tests/benchmarks/verify_speed.py [--megabytes 100] [--rounds 15]
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from vcompress.bench.bundle import InputSpec, Preprocess, create
from vcompress.bench.bundle.archive import pack
from vcompress.bench.bundle.history import Entry
from vcompress.bench.timing.environment import preflight
from vcompress.bench.verify.check import verify

LIMIT = 1.5


def make(path: Path, megabytes: int) -> None:
    """Weights and a model of the same size, as in a float bundle, and small files."""
    import random

    rng = random.Random(0)
    with create(
        path, input=InputSpec("x", (3, 8, 8)), preprocess=Preprocess((8, 8)), labels=("a", "b"),
        data=None, history=(Entry("s", "m"),),
    ) as folder:  # fmt: skip
        for name, size in (
            ("model.onnx", megabytes * 500_000), ("weights.safetensors", megabytes * 500_000),
            ("golden.npz", 100_000), ("report.html", 30_000),
        ):  # fmt: skip
            (folder / name).write_bytes(rng.randbytes(size))


def main() -> int:
    """Print a table; the exit status is 1 where the limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    tool = shutil.which("sha256sum")
    if tool is None:
        print("no sha256sum here", file=sys.stderr)
        return 4
    with tempfile.TemporaryDirectory() as top:
        bundle, archive = Path(top) / "b", Path(top) / "b.vcb"
        make(bundle, asked.megabytes)
        files = sorted(p for p in bundle.iterdir() if p.suffix != ".sha256")
        command = [
            sys.executable,
            "-m",
            "vcompress.bench.verify",
            str(bundle),
            "--no-golden",
        ]

        def run(argv: list[str]) -> Callable[[], object]:
            return lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)

        calls: dict[str, Callable[[], object]] = {
            "sha256sum of every file": run([tool, *map(str, files)]),
            # The same hash with the processor's own instructions, which not every sha256sum uses.
            "openssl dgst -sha256": run(["openssl", "dgst", "-sha256", *map(str, files)]),
            "verify(bundle, golden=False)": lambda: verify(bundle, golden=False),
            "python -m vcompress.bench.verify": run(command),
            "pack": lambda: pack(bundle, archive),
        }
        if shutil.which("openssl") is None:
            del calls["openssl dgst -sha256"]
        for call in calls.values():
            call()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(asked.rounds):
            order = list(calls) if number % 2 else list(reversed(calls))
            for name in order:
                start = perf_counter()
                calls[name]()
                seconds[name].append(perf_counter() - start)
    print(f"{asked.megabytes} MB, {asked.rounds} rounds, {preflight().cpu_model}, "
          f"Python {platform.python_version()}")  # fmt: skip
    print("| | median, ms | of sha256sum, median of the rounds' ratios |\n| --- | ---: | ---: |")
    base = seconds["sha256sum of every file"]
    ratios = {
        name: median(t / b for t, b in zip(times, base, strict=True))
        for name, times in seconds.items()
    }
    for name, times in seconds.items():
        print(f"| {name} | {median(times) * 1e3:.0f} | {ratios[name]:.2f} |")
    slowest = max(ratio for name, ratio in ratios.items() if "verify" in name)
    print(f"limit {LIMIT}: {'held' if slowest <= LIMIT else 'missed'}")
    return 0 if slowest <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
