"""What becomes of networks drawn at random: right, refused with a reason, wrong, or a crash.

    python tests/benchmarks/random_networks.py --count 300
    python tests/benchmarks/random_networks.py --first 17 --count 1     # one, with its traceback
    python tests/benchmarks/random_networks.py --log found.jsonl   # goes on where it was stopped

Every network is exported in float32, pruned to 0.8 of its multiply-accumulates, and quantised. Each
result is held against the float network in ONNX Runtime, at batch 1 and at batch 16:

- export: the largest difference is at most one in 2,000 of the largest output;
- prune: the cut network equals the whole one with those channels switched off (1e-9, in float64),
  comes back bit for bit from its description and weights, and its file gives what it gives;
- quantize: the signal to error against the float network is at least 10 dB, and against the network
  that is exported 40 dB; 25 dB where every tensor and every integer kernel was found right given
  its inputs (a value near the middle of two integers goes either way, and what follows with it).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from _random_networks import Network, images, network
from torch import Tensor

from vcompress import compress, export
from vcompress.bench.errors import UserError
from vcompress.compress.models.changes import describe, load, load_tensors, reshape, save_tensors
from vcompress.compress.pruning import prune
from vcompress.compress.pruning.probe import difference
from vcompress.export.runtime import run_onnx

CLOSE = 5e-4
LEAST_DB = 10.0
LEAST_PARITY_DB = 40.0
LEAST_TIES_DB = 25.0
CHECKS = ("export", "prune", "quantize")


class WrongError(Exception):
    """A result that is not what the float network gives."""


def logits(model: torch.nn.Module, inputs: Tensor) -> np.ndarray:  # type: ignore[type-arg]
    with torch.no_grad():
        found = model(inputs)
    if isinstance(found, dict):
        found = found["out"]
    return (found[0] if isinstance(found, tuple) else found).numpy()  # type: ignore[no-any-return]


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:  # type: ignore[type-arg]
    error = float(np.square(wanted - got, dtype=np.float64).sum())
    signal = float(np.square(wanted, dtype=np.float64).sum())
    return math.inf if error == 0 else 10 * math.log10(signal / error)


def in_runtime(path: Path, inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Outputs of a file, all images in one call and one image a call."""
    together = run_onnx(path, inputs.numpy(), optimised=True, batch_size=len(inputs))[0]
    alone = run_onnx(path, inputs.numpy(), optimised=True, batch_size=1)[0]
    return together, alone


def check_file(model: torch.nn.Module, path: Path, inputs: Tensor) -> None:
    wanted = logits(model, inputs)
    for said, got in zip(("batch 16", "batch 1"), in_runtime(path, inputs), strict=True):
        gap = float(np.abs(wanted - got).max() / np.abs(wanted).max())
        if not gap <= CLOSE:
            raise WrongError(f"the file differs by {gap:.1g} at {said}")


def check_export(model: Network, inputs: Tensor, folder: Path) -> str:
    path = folder / "float.onnx"
    export.to_onnx(model, path, inputs[:8])
    check_file(model, path, inputs)
    return ""


def check_prune(model: Network, inputs: Tensor, folder: Path) -> str:
    whole = copy.deepcopy(model)
    report = prune(model, inputs[:1], macs=0.8, round_to=2)
    gap = difference(whole, report.groups, report.removed, inputs[:4])
    if not gap < 1e-9:
        raise WrongError(f"the cut network differs by {gap:.1g}")
    save_tensors(model, folder / "w.safetensors")
    base = copy.deepcopy(whole)
    description = json.loads(json.dumps(describe(model, base)))
    again = load(
        reshape(base, description),
        load_tensors(folder / "w.safetensors"),
        description.get("versions"),
    ).eval()
    if not np.array_equal(logits(model, inputs), logits(again, inputs)):
        raise WrongError("the network that is loaded again differs")
    path = folder / "pruned.onnx"
    export.to_onnx(model, path, inputs[:8])
    check_file(model, path, inputs)
    return f"{report.achieved['macs']:.2f}"


def check_quantize(model: Network, inputs: Tensor, folder: Path) -> str:
    made = compress.quantize(model, images(model, 48, seed=2), images=32, held_out=16)
    path = folder / "int8.onnx"
    proof = export.to_onnx(made, path, inputs[:8]).parity
    wanted = logits(model, inputs)
    lowered = logits(export.library.lowered(made.eval()), inputs)
    together, alone = in_runtime(path, inputs)
    lost = min(sqnr(wanted, together), sqnr(wanted, alone))
    if not lost >= LEAST_DB:
        raise WrongError(f"int8 is {lost:.1f} dB from the float network")
    apart = min(sqnr(lowered, together), sqnr(lowered, alone))
    searched = proof.optimised.sqnr_db < LEAST_PARITY_DB and proof.first_divergence is None
    if not apart >= (LEAST_TIES_DB if searched else LEAST_PARITY_DB):
        raise WrongError(f"the file is {apart:.1f} dB from the network that was exported")
    return f"{lost:.0f} dB, file {apart:.0f} dB, {made.report.layers} layers"


def attempt(seed: int, check: str, show: bool = False) -> tuple[str, str]:
    """(right, refused, wrong or crash; what was said) of one check of one network."""
    run = {"export": check_export, "prune": check_prune, "quantize": check_quantize}[check]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = network(seed)
            return "right", run(model, images(model, 16), Path(folder))
        except UserError as error:
            return "refused", str(error)
        except WrongError as error:
            return "wrong", str(error)
        except Exception as error:  # the next network is tried all the same
            if show:
                traceback.print_exc()
            return "crash", f"{type(error).__name__}: {error}"


def read_log(path: Path | None) -> dict[tuple[int, str], tuple[str, str]]:
    """Verdicts of an earlier call, by seed and check."""
    if path is None or not path.exists():
        return {}
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["seed"], line["check"]): (line["verdict"], line["said"]) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--count", type=int, default=300, help="number of networks")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--require", action="store_true", help="status 1 where one is wrong")
    parser.add_argument("--log", type=Path, help="JSON lines, a verdict each; those are not redone")
    options = parser.parse_args()
    known = read_log(options.log)
    started = time.perf_counter()
    counts: dict[str, Counter[str]] = {check: Counter() for check in options.checks}
    for seed in range(options.first, options.first + options.count):
        for check in options.checks:
            if (seed, check) in known:
                verdict, said = known[seed, check]
            else:
                verdict, said = attempt(seed, check, show=options.count == 1)
                if options.log is not None:
                    line = {"seed": seed, "check": check, "verdict": verdict, "said": said}
                    with options.log.open("a") as log:
                        log.write(json.dumps(line) + "\n")
            counts[check][verdict] += 1
            if verdict != "right" or options.count == 1:
                what = ", ".join(Network(seed).said)
                print(f"{seed} {check}: {verdict}: {said[:400]} ({what})", flush=True)
    print("| check | networks | right | refused, with the reason | wrong | crash |")
    print("|---|--:|--:|--:|--:|--:|")
    for check, found in counts.items():
        cells = [found[verdict] for verdict in ("right", "refused", "wrong", "crash")]
        print(f"| {check} | {options.count} | " + " | ".join(map(str, cells)) + " |")
    print(f"{time.perf_counter() - started:.0f} s")
    if options.require and any(found["wrong"] + found["crash"] for found in counts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
