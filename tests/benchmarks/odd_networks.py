"""Networks that trip tools up, through the commands: right, or refused at once with the reason.

    python tests/benchmarks/odd_networks.py                     # all; prints a Markdown table
    python tests/benchmarks/odd_networks.py statements viewed

Every network of `_odd_networks.py` is fine-tuned on the digits (four epochs), pruned to 0.8 of its
multiply-accumulates (two epochs), and quantised. The accuracies are those of the files in ONNX
Runtime, on the same 359 images; `alone` is the share of these that the int8 file decides alike
one by one and in one call. Right is: each file runs, int8 loses at most 3 points, and a network
whose images depend on each other is warned of.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import _odd_networks
import numpy as np

from vcompress.compress.cli import main as vcompress
from vcompress.export.runtime import run_onnx

TRAINING = ("--batch-size", "32", "--lr", "0.005")
MOST_POINTS = 3.0
SOON_S = 60.0
"""Time within which a network that is refused has to be refused, seconds."""


def command(*arguments: str) -> tuple[int, str, float]:
    """Exit status, what was printed, seconds; 99 where it was a traceback."""
    started, said = time.perf_counter(), io.StringIO()
    logging.getLogger().handlers.clear()  # each command writes where it is told to
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            status = vcompress(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        except Exception as error:  # the table goes on
            status = 99
            print(f"{type(error).__name__}: {error}")
    return status, said.getvalue() or "nothing", time.perf_counter() - started


def top1(bundle: Path) -> float:
    manifest = json.loads((bundle / "manifest.json").read_text())
    return float(manifest["history"][-1]["metrics"]["test"]["top1"])


def alone(bundle: Path) -> float:
    """Share of the stored images whose class is the same one by one and in one call."""
    inputs = np.load(bundle / "golden.npz")["input"]
    file = bundle / "model.onnx"
    one, all_ = (
        run_onnx(file, inputs, optimised=True, batch_size=size)[0] for size in (1, len(inputs))
    )
    return float((one.argmax(1) == all_.argmax(1)).mean())


def row(name: str, folder: Path) -> tuple[list[str], bool]:
    factory = f"_odd_networks:{name}"
    out = {stage: folder / f"{name}-{stage}" for stage in ("float", "pruned", "int8")}
    cells: list[str] = []
    train = ("--data", "digits", *TRAINING)
    pruned = ("--macs", "0.8", *TRAINING, "--epochs", "2")
    stages = {
        "float": ("finetune", "--model", factory, *train, "--epochs", "4"),
        "pruned": ("prune", "--model", str(out["float"]), *pruned),
        "int8": ("quantize", "--model", str(out["pruned"]), "--method", "ptq"),
    }
    for stage, arguments in stages.items():
        trust = () if stage == "float" else ("--trust", factory)
        status, said, seconds = command(
            *arguments, *trust, "--out", str(out[stage]), "--workers", "0"
        )
        if status != 0:
            last = said.strip().splitlines()[-1]
            word = _odd_networks.REFUSED.get(name)
            right = status == 2 and word is not None and word in last and seconds < SOON_S
            right = right and not out[stage].exists()
            cells += ["-"] * (5 - len(cells) - 1)
            verdict = "refused" if status == 2 else f"status {status}"
            return [*cells, f"{verdict} after {seconds:.0f} s: {last[:200]}"], right
        cells.append(f"{top1(out[stage]):.1%}")
    same = alone(out["int8"])
    lost = 100 * (top1(out["pruned"]) - top1(out["int8"]))
    warning = _odd_networks.WARNED.get(name)
    right = lost <= MOST_POINTS and name not in _odd_networks.REFUSED
    if warning is None:
        return [*cells, f"{same:.1%}", "right" if right and same == 1.0 else "WRONG"], right
    right = right and warning in said
    return [*cells, f"{same:.1%}", "warned" if right else "NOT WARNED"], right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    os.chdir(Path(__file__).parent)  # where `_odd_networks:NAME` is found
    wrong = 0
    print("| network | float top-1 | pruned | int8 | alone | verdict |")
    print("|---|--:|--:|--:|--:|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names or [made.__name__ for made in _odd_networks.NETWORKS]:
            cells, right = row(name, Path(folder))
            wrong += not right
            print(f"| {name} | " + " | ".join(cell.replace("|", "/") for cell in cells) + " |",
                  flush=True)  # fmt: skip
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
