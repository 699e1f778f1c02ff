"""The way of every task on the embedded digits: fine-tune, prune, quantise; one table.

    python tests/benchmarks/tasks_way.py                      # multilabel and regression, R18
    python tests/benchmarks/tasks_way.py --tasks multilabel --epochs 5 --out /tmp/way

Prints for each stage the task's metric of the ONNX file on the held-out images, parameters, file
size and latency, and the last file against the first, interleaved.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from vcompress.bench.bundle.history import measured
from vcompress.bench.tasks.metrics import metric
from vcompress.compress.pipeline.recipe import read_recipe, run_recipe

RECIPE = """
[options]
task = "{task}"
data = "digits"
augment = "none"

[[stages]]
stage = "finetune"
model = "{model}"
epochs = {epochs}

[[stages]]
stage = "prune"
macs = 0.25
epochs = {recovery}

[[stages]]
stage = "quantize"
epochs = {qat}
"""


def way(task: str, model: str, epochs: int, out: Path) -> list[str]:
    """Run the recipe; the lines of the table."""
    file = out / f"{task}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(
        task=task, model=model, epochs=epochs, recovery=max(1, epochs // 2), qat=max(1, epochs // 4)
    )
    file.write_text(text, encoding="utf-8")
    last, _ = run_recipe(read_recipe(file), out / task, overwrite=True)
    lines = []
    for entry, found in measured(last.history):
        score, latency = found.test, found.latency
        assert score is not None and latency is not None
        kind = metric(score.metric)
        further = ", ".join(
            f"{metric(name).title} {metric(name).text(value.value)}"
            for name, value in score.values.items()
        )
        lines.append(
            f"| {task} | {entry.stage} | {kind.title} {kind.text(score.value)} "
            f"({kind.span(*score.interval)}) | {further} | {found.parameters / 1e6:.2f} M "
            f"| {found.onnx_bytes / 1e6:.2f} MB | {latency.median_ms:.3g} ms |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["multilabel", "regression"])
    parser.add_argument("--model", default="r18")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print("| task | stage | held-out images (95 %) | further | parameters | file | latency |")
    print("|---|---|---|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            out = options.out or Path(folder)
            print("\n".join(way(task, options.model, options.epochs, out)), flush=True)


if __name__ == "__main__":
    main()
