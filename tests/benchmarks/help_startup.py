"""How long `vbench --help` and `vcompress --help` take: whole processes, best and median of ten.

Run it alone: `python tests/benchmarks/help_startup.py`. The aim is below 0.25 s each.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

REPEATS = 10


def seconds(command: list[str]) -> list[float]:
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found.append(time.perf_counter() - start)
    return sorted(found[1:])  # the first one reads the files from disk


def main() -> None:
    scripts = Path(sys.executable).parent
    for name, *arguments in (
        ["vbench", "--help"], ["vcompress", "--help"], ["vcompress", "distill", "--help"],
    ):  # fmt: skip
        found = seconds([str(scripts / name), *arguments])
        print(
            f"{' '.join([name, *arguments]):26} best {found[0]:.3f} s, "
            f"median {statistics.median(found):.3f} s"
        )


if __name__ == "__main__":
    main()
