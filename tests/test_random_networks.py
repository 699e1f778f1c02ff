"""Networks drawn at random are right or refused with a reason, through export, pruning and int8."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"
FAST = 3
NETWORKS = 300


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("random_networks")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("check", ["export", "prune", "quantize"])
@pytest.mark.parametrize(
    "seed",
    [FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in range(NETWORKS) if n != FAST)],
)
def test_a_network_drawn_at_random_is_right_or_refused_with_a_reason(
    script: ModuleType, seed: int, check: str
) -> None:
    verdict, said = script.attempt(seed, check, show=True)
    assert verdict in ("right", "refused"), said
    assert verdict == "right" or len(said) > 20, said
