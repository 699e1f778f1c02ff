"""What trips tools up, through the commands: right, or refused at once with the reason.

    python tests/benchmarks/odd_networks.py                     # all; prints two Markdown tables
    python tests/benchmarks/odd_networks.py statements viewed "averaged weights"

Every network of `_odd_networks.py` is fine-tuned on the digits (four epochs), pruned to 0.8 of its
multiply-accumulates (two epochs), and quantised. The accuracies are those of the files in ONNX
Runtime, on the same 359 images; `alone` is the share of these that the int8 file decides alike
one by one and in one call. Right is: each file runs, int8 loses at most 3 points, and a network
whose images depend on each other is warned of. The second table has what is no form of a network:
checkpoints, heads, sizes and files (`_odd_cases.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import _odd_cases
import _odd_networks
import numpy as np
from _command import command

from vcompress.export.runtime import run_onnx

TRAINING = ("--batch-size", "32", "--lr", "0.005")
MOST_POINTS = 3.0
SOON_S = 60.0
"""Time within which a network that is refused has to be refused, seconds."""


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
    parser.add_argument("names", nargs="*", help="networks or cases; all by default")
    options = parser.parse_args()
    os.chdir(Path(__file__).parent)  # where `_odd_networks:NAME` is found
    networks = [made.__name__ for made in _odd_networks.NETWORKS]
    asked = options.names or [*networks, *_odd_cases.CASES]
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        if chosen := [name for name in asked if name in networks]:
            print("| network | float top-1 | pruned | int8 | alone | verdict |")
            print("|---|--:|--:|--:|--:|---|")
        for name in chosen:
            cells, right = row(name, Path(folder))
            wrong += not right
            show(name, *cells)
        if chosen := [name for name in asked if name in _odd_cases.CASES]:
            print("\n| case | seen | verdict |\n|---|---|---|")
        for name in chosen:
            (place := Path(folder) / name.replace(" ", "-")).mkdir()
            right, said = _odd_cases.CASES[name](place)
            wrong += not right
            show(name, said, "right" if right else "WRONG")
    sys.exit(1 if wrong else 0)


def show(*cells: str) -> None:
    print("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
