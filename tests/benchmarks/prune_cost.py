"""How long pruning takes: trace, probe, scores, and the whole. Prints a Markdown table.

    OMP_NUM_THREADS=2 python tests/benchmarks/prune_cost.py [resnet50 vit_b_16 ...]

Run it alone. Aim on two cores: ResNet-50 within 10 s, ViT-B/16 within 60 s.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise

import torch
import torchvision.models as tv

from vcompress.compress.pruning import prune
from vcompress.compress.pruning.importance import scores
from vcompress.compress.pruning.isolated import trace_within
from vcompress.compress.pruning.probe import probe

AIMS_S = {"resnet50": 10.0, "vit_b_16": 60.0}


def main() -> None:
    names = sys.argv[1:] or list(AIMS_S)
    print(f"Threads: {torch.get_num_threads()}\n")
    print("| network | trace s | probe s | scores s | whole prune s | aim s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in names:
        model = tv.get_model(name, weights=None)
        example = torch.randn(1, 3, 224, 224)
        marks = [time.perf_counter()]
        structure = trace_within(model, example, (), 600.0)
        marks.append(time.perf_counter())
        structure = probe(model, structure, example)
        marks.append(time.perf_counter())
        scores(model, structure.groups)
        marks.append(time.perf_counter())
        prune(model, example, macs=0.5, limit_s=600.0)
        marks.append(time.perf_counter())
        spans = [f"{b - a:.1f}" for a, b in pairwise(marks)]
        print(f"| {name} | {' | '.join(spans)} | {AIMS_S.get(name, '')} |", flush=True)


if __name__ == "__main__":
    main()
