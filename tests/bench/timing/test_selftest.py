from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vcompress.bench import onnx_file
from vcompress.bench.reports import terminal
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing import selftest
from vcompress.bench.timing.compare import CompareEffort
from vcompress.bench.timing.inputs import resolve_shapes, synthetic
from vcompress.bench.timing.measure import Effort, measure

SHORT = CompareEffort(
    quads=8, floor_quads=6, block_seconds=0.02, block_runs=10, seconds=1.0,
    warmup=Effort(warmup_seconds=0.05, warmup_runs=5, most_warmup_seconds=0.1),
)  # fmt: skip


def test_a_planted_wait_is_as_long_as_it_says(busy: Any) -> None:
    session = selftest.Slowed(busy(300), 100_000)
    m = measure(session, synthetic(session.inputs, {"x": (1, 2)}), Effort.quick(0.5))
    assert m.median_ms == pytest.approx(0.4, rel=0.05)


def test_the_self_test_finds_a_planted_slowdown_and_nothing_where_nothing_is() -> None:
    # A third, so that it stands out on a machine that runs other tests meanwhile.
    found = selftest.run(planted=0.33, effort=SHORT)
    assert found.slowed.verdict == "SLOWER"
    assert found.slowed.ratio.value == pytest.approx(1.33, abs=0.12)
    assert found.harness_us < 100
    assert found.clock_ns < 5000
    console = Console(record=True, width=100, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    terminal.show_selftest(found, console)
    assert "A against A slowed by 33%: SLOWER" in console.export_text()


def test_the_chain_does_bounded_work(tmp_path: Any) -> None:
    path = tmp_path / "chain.onnx"
    path.write_bytes(onnx_file.chain_model())
    with open_session(path, threads=1) as session:
        feed = synthetic(session.inputs, resolve_shapes(session.inputs))
        found = session.run(feed.ring[0])["y"]
    assert np.abs(found).max() <= 1.00001
    assert found.std() > 0.1
