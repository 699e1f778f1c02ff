"""Is this machine quiet enough to measure on, and does vbench find what is there?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import onnx_file
from ..bundle.atomic import temporary_folder
from ..runtimes import open_session
from ..runtimes.session import Session
from .compare import CompareEffort, Comparison, compare
from .inputs import resolve_shapes, synthetic
from .measure import Effort, measure

PLANTED = 0.03


class Slowed(Session):
    """A session whose every call waits busily for a known time after it has run."""

    def __init__(self, inner: Session, wait_ns: int) -> None:
        self._inner, self._wait_ns = inner, wait_ns
        self.path, self.inputs, self.outputs = inner.path, inner.inputs, inner.outputs
        self.facts = inner.facts

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        call, wait, clock = self._inner.prepare(inputs), self._wait_ns, perf_counter_ns

        def slowed() -> None:
            call()
            end = clock() + wait
            while clock() < end:
                pass

        return slowed

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._inner.run(inputs)

    def close(self) -> None:
        self._inner.close()


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found."""

    harness_us: float
    """Median of an identity model: clock, loop and an empty call of the runtime."""
    clock_ns: float
    """Median of two readings of the clock, one right after the other."""
    model_ms: float
    same: Comparison
    """The model against itself."""
    planted: float
    """Share of the median that the slowed session waits."""
    slowed: Comparison

    @property
    def quiet(self) -> bool:
        """Whether the noise floor lies below the planted slowdown."""
        return self.same.floor < self.planted

    @property
    def sound(self) -> bool:
        """Whether nothing was found where nothing is, and the slowdown where it is."""
        return self.same.verdict in ("EQUIVALENT", "INCONCLUSIVE") and (
            self.slowed.verdict == "SLOWER"
        )


def run(
    model: Path | None = None, threads: int | None = 1, planted: float = PLANTED,
    tell: Callable[[str], None] = lambda text: None, effort: CompareEffort | None = None,
) -> SelfTest:  # fmt: skip
    """Measure the floor, A against A, and A against A with a slowdown planted.

    `model` is an ONNX file of the user's own; by default a chain of matrix products of about 1 ms.
    """
    with temporary_folder() as folder:
        empty = folder / "identity.onnx"
        empty.write_bytes(onnx_file.identity_model())
        path = model or folder / "chain.onnx"
        if model is None:
            path.write_bytes(onnx_file.chain_model())
        tell("the harness on an empty model")
        with open_session(empty, threads=threads) as session:
            feed = synthetic(session.inputs, resolve_shapes(session.inputs))
            floor = measure(session, feed, Effort.quick(1.5))
        same = trial(path, threads, 0.0, effort, lambda text, share: tell(f"A/A: {text}"))
        median_ms = same.a.median_ms
        slowed = trial(path, threads, planted, effort, lambda text, share: tell(f"planted: {text}"))
    return SelfTest(
        harness_us=float(np.median(floor.samples_ns)) / 1e3, clock_ns=clock_ns(),
        model_ms=median_ms, same=same, planted=planted, slowed=slowed,
    )  # fmt: skip


def trial(
    path: Path, threads: int | None, planted: float, effort: CompareEffort | None = None,
    tell: Callable[[str, float], None] | None = None,
) -> Comparison:  # fmt: skip
    """Compare a model with itself, slowed by a share `planted` of its median."""
    sessions = [open_session(path, threads=threads) for _ in range(3)]
    try:
        a, b, again = sessions
        feed = synthetic(a.inputs, resolve_shapes(a.inputs))
        if planted:
            quick = measure(b, feed, Effort.quick(0.8))
            b = Slowed(b, int(planted * quick.median_ms * 1e6))
        return compare(a, feed, b, feed, again, effort, tell)
    finally:
        for session in sessions:
            session.close()


def clock_ns(count: int = 2000) -> float:
    """What reading the clock costs."""
    readings = [perf_counter_ns() for _ in range(count)]
    return float(np.median(np.diff(readings)))
