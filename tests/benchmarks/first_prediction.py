"""How long is it from the start of the interpreter to the first prediction of a ResNet-18 bundle?

At most 0.6 s: the median of ten fresh processes with the file in the page cache, from the moment
before the process is started to its last line. Without a bundle one is made, with random weights.
Run it alone on the machine.

    python tests/benchmarks/first_prediction.py [BUNDLE [IMAGE]]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT_S, RUNS = 0.6, 10
CODE = """
import sys, time
start = time.perf_counter()
from vcompress.bench import load
model = load(sys.argv[1])
opened = time.perf_counter()
best = model.predict(sys.argv[2])
assert "torch" not in sys.modules
print(opened - start, time.perf_counter() - opened, best[0].label, sep="\\t", flush=True)
import os; os._exit(0)
"""


def make_bundle(folder: Path) -> Path:
    """A ResNet-18 for 1,000 classes with random weights, by `vcompress import`."""
    import torch
    from torchvision.models import resnet18

    from vcompress.compress.cli import main as vcompress

    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), folder / "r18.pt")
    argv = ["import", "--model", "r18", "--weights", str(folder / "r18.pt")]
    assert vcompress([*argv, "--out", str(folder / "r18")]) == 0
    return folder / "r18"


def once(bundle: Path, image: Path) -> tuple[float, float, float]:
    """Seconds: the whole process, `load`, `predict`."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", CODE, str(bundle), str(image)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        whole = time.perf_counter() - start
    assert process.returncode == 0
    load_s, predict_s, _ = line.split("\t")
    return whole, float(load_s), float(predict_s)


def main() -> int:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        bundle = Path(sys.argv[1]) if len(sys.argv) > 1 else make_bundle(folder)
        image = folder / "photo.jpg"
        if len(sys.argv) > 2:
            image = Path(sys.argv[2])
        else:
            pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(image)
        once(bundle, image)
        runs = [once(bundle, image) for _ in range(RUNS)]
    whole, load_s, predict_s = (statistics.median(column) for column in zip(*runs, strict=True))
    manifest = json.loads((bundle / "manifest.json").read_text()) if bundle.is_dir() else None
    size = manifest["files"]["model.onnx"]["bytes"] / 1e6 if manifest else None
    about = f"model.onnx of {size:.1f} MB" if size else "ResNet-18"
    print(
        f"{about}: first prediction {whole:.3f} s after the start of the interpreter (median of "
        f"{RUNS}; fastest {min(runs)[0]:.3f} s), at most {LIMIT_S} s; of it load {load_s:.3f} s, "
        f"predict {predict_s:.3f} s"
    )
    return 0 if whole <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
