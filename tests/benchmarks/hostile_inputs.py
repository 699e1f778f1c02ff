"""Hostile inputs of every kind that vcompress reads, made from whole ones by seeded mutation.

    python tests/benchmarks/hostile_inputs.py [--share 0.1] [--seed 0] [--kinds onnx archives]

Each kind runs in processes of its own with 4 GB of memory and a minute for an input. An input is
refused (`UserError`, one message) or taken. Bad is: a crash, another exception (a traceback for the
user), a hang, a file outside the target that was written or opened, code that ran, or an input that
was taken and that another reader understands otherwise (the `onnx` package, ONNX Runtime, tarfile).
A crash of ONNX Runtime itself is counted apart: vbench and lint run it in a process of their own.
"""

from __future__ import annotations

import argparse
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import _hostile_bundles as bundles
import _hostile_models as models
from _hostile import Attempt

from vcompress.bench.errors import UserError

SECONDS = 60
MEMORY = 4 * 2**30


KINDS: dict[str, tuple[Callable[[Path], Attempt], int]] = {
    "onnx": (models.onnx_files, 20_000), "lint": (models.lint_files, 400),
    "manifests": (bundles.manifests, 2000), "archives": (bundles.archives, 1600),
    "safetensors": (models.safetensors, 1000), "pth": (models.pth, 1000),
    "npz": (models.npz, 800), "recipes": (bundles.recipes, 800), "images": (models.images, 1500),
    "signatures": (bundles.signatures, 800), "tables": (bundles.tables, 1000),
}  # fmt: skip


def child(kind: str, seed: int, start: int, end: int) -> None:
    """Attempts `start` to `end`, a line before and after each."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        attempt = KINDS[kind][0](Path(folder).resolve())
        for number in range(start, end):
            print(f"> {number}", flush=True)
            try:
                said = "taken" if attempt(random.Random(f"{kind} {seed} {number}")) else "refused"
            except UserError:
                said = "refused"
            except BaseException as error:  # each of them is what this script looks for
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                said = f"bad {text}"
            print(f"< {said}", flush=True)


def run(kind: str, seed: int, count: int, keep: list[str]) -> Counter[str]:
    """Attempts in as many processes as crash or hang."""
    found: Counter[str] = Counter()
    start = 0
    while start < count:
        command = [sys.executable, __file__, "--child", kind, str(seed), str(start), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            at, whose, hung = start - 1, "", False
            while True:
                ready, _, _ = select.select([process.stdout], [], [], SECONDS)
                if not ready:
                    hung = True
                    process.kill()
                    break
                line = process.stdout.readline().decode(errors="replace").rstrip("\n")
                if not line:
                    break
                if line.startswith("> "):
                    at, whose = int(line[2:]), ""
                elif line.startswith("# "):
                    whose = line[2:]
                elif line.startswith("< "):
                    word = line[2:].partition(" ")[0]
                    found[word] += 1
                    if word == "bad":
                        keep.append(f"{kind} {at}: {line[6:]}")
                    start = at + 1
            process.stdout.close()
            trouble = process.stderr.read().decode(errors="replace").strip()[-600:]
        if start >= count:
            break
        ended = "hung" if hung else f"ended with {process.returncode}"
        if at < start:
            raise SystemExit(f"{kind}: the process {ended} before its first input: {trouble}")
        word = "runtime" if whose and not hung else "bad"
        found[word] += 1
        keep.append(f"{kind} {at}: {ended} {whose} {trouble[-200:] if not whose else ''}")
        start = at + 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--share", type=float, default=1.0, help="of the number of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    asked = parser.parse_args()
    keep: list[str] = []
    total: Counter[str] = Counter()
    print("| kind | inputs | refused | taken | crash of the runtime | bad | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in asked.kinds:
        begin = time.monotonic()
        found = run(kind, asked.seed, max(int(KINDS[kind][1] * asked.share), 1), keep)
        total += found
        row(kind, found, time.monotonic() - begin)
    row("all", total, None)
    print(*keep, sep="\n", file=sys.stderr)
    return 1 if total["bad"] else 0


def row(kind: str, found: Counter[str], seconds: float | None) -> None:
    cells = [found[word] for word in ("refused", "taken", "runtime", "bad")]
    took = "" if seconds is None else f"{seconds:.0f}"
    print(f"| {kind} | {sum(found.values()):,} | {' | '.join(f'{c:,}' for c in cells)} | {took} |",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        sys.exit(main())
