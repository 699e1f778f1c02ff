"""Which families of transformers go through distil, prune to half, int8 and ONNX Runtime.

    python tests/benchmarks/hf_coverage.py
    python tests/benchmarks/hf_coverage.py vit swin --size 64 --images 1000 --require

For every family a small network with random weights, by its name `hf:FAMILY-tiny`, goes the way of
the commands on made-up images of three colours: a teacher is fine-tuned for one epoch, a student
distilled, pruned, quantised (calibrated and trained for one epoch). Each step writes a bundle and
the next one loads it. Printed: share of MACs left; layers with an int8 weight; agreement
and SQNR of the int8 file in ONNX Runtime against torch on noise, for the optimised session; whether
the tensor-by-tensor check passes; seconds.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from quantize_coverage import images_like

from vcompress.bench.bundle import Bundle
from vcompress.compress import quantization, stages
from vcompress.compress.bundles.store import load_network
from vcompress.compress.models.cost import count_macs
from vcompress.compress.models.huggingface import GIVE_MAPS, TINY
from vcompress.compress.options import Options
from vcompress.compress.pipeline import measure
from vcompress.compress.pipeline.run import run_stage
from vcompress.export import parity
from vcompress.export.runtime import run_onnx


def paint(folder: Path, size: int, per_class: int) -> None:
    """Noise with more of one colour, in three folders."""
    generator = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 160, (size, size, 3)).astype(np.uint8)
            pixels[..., channel] = pixels[..., channel] // 2 + 128
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


def stage(name: str, given: dict[str, str], out: str, size: int, **config: Any) -> Bundle:
    """One stage of one epoch, from names or bundles to a bundle."""
    loaded = stages.load(name)
    options = Options(data="images", image_size=size)
    made = loaded.Config(epochs=1, batch_size=16, **config)
    return run_stage(loaded, made, given, Path(out), options)


def one(family: str, size: int, count: int) -> dict[str, Any]:
    """The whole way of one family, in the working folder; `images/` is there."""
    started = time.perf_counter()
    name = f"hf:{family}-tiny"
    teacher = stage("finetune", {"model": name}, "teacher", size)
    given = {"teacher": str(teacher.path), "student": name}
    student = stage("distill", given, "student", size)
    pruned = stage("prune", {"model": str(student.path)}, "pruned", size, macs=0.5)
    int8 = stage("quantize", {"model": str(pruned.path)}, "int8", size)
    images = images_like(count, size)
    before, after = (
        count_macs(load_network(bundle).model, images[:1]) for bundle in (student, pruned)
    )
    network = load_network(int8).model
    placement = quantization.placement(network)
    deployed = quantization.to_export(network.eval())
    file = int8.file("model.onnx")
    shipped = run_onnx(file, images.numpy(), optimised=True)[0]
    found = parity.compare(parity.run_torch(deployed, images), shipped)
    return {
        "macs": after / before,
        "layers": len(placement["weights"]),
        "whole": placement.get("graph", True) and "leaves" not in placement,
        "agreement": found.top1_agreement,
        "sqnr_db": found.sqnr_db,
        "ok": parity.check(deployed, file, images[:100]).ok,
        "seconds": time.perf_counter() - started,
    }


def passes(result: dict[str, Any]) -> bool:
    """At most half of the MACs, layers in int8, and at least 99.9 % and 40 dB."""
    good = result["agreement"] >= 0.999 and result["sqnr_db"] >= 40
    return bool(result["macs"] <= 0.5 and result["layers"] and result["ok"] and good)


def attempt(family: str, size: int, count: int, per_class: int) -> dict[str, Any]:
    """`one` in a folder of its own."""
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            paint(Path("images"), size, per_class)
            return one(family, size, count)
        finally:
            os.chdir(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=sorted(TINY.keys() - GIVE_MAPS))
    parser.add_argument("--size", type=int, default=32, help="side of the images, pixels")
    parser.add_argument("--images", type=int, default=1000, help="of the comparison")
    parser.add_argument("--per-class", type=int, default=40, help="images of one class")
    parser.add_argument("--require", action="store_true", help="status 1 where a family fails")
    options = parser.parse_args()
    measure.LATENCY_SECONDS = 0.2
    good = 0
    print("| family | MACs | int8 layers | traced | agreement | SQNR | verdict | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for family in options.families:
        try:
            r = attempt(family, options.size, options.images, options.per_class)
        except Exception as error:  # the table goes on; the row says what happened
            why = f"{type(error).__name__}: {str(error)[:160]}".replace("|", "/")
            print(f"| {family} | | | | | | FAILED: {why} | |", flush=True)
            continue
        good += passes(r)
        print(
            f"| {family} | {r['macs']:.3f} | {r['layers']} | {'whole' if r['whole'] else 'parts'} "
            f"| {r['agreement']:.2%} | {r['sqnr_db']:.1f} dB | "
            f"{'ok' if passes(r) else 'BELOW'} | {r['seconds']:.0f} |",
            flush=True,
        )
    print(
        f"\n{good} of {len(options.families)} families through distil, prune to half, int8, ONNX "
        f"parity"
    )
    if options.require and good < len(options.families):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
