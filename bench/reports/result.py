"""The result of one call of vbench, frozen; the reports only print it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from .. import onnx_file
from ..runtimes.session import Node
from ..stats import Interval, Verdict
from ..tasks.task import Score, ScoreChange
from ..timing.compare import Comparison
from ..timing.environment import Disturbance, Environment
from ..timing.fresh import ColdStart
from ..timing.measure import Measurement
from ..timing.traffic import OpenLoop, Throughput

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Artefact:
    """The file that was measured."""

    name: str
    path: Path
    sha256: str
    size_bytes: int
    """With the files that hold its external data."""
    onnx: onnx_file.OnnxFacts | None = None
    """What an ONNX file says of itself."""

    @property
    def precision(self) -> str | None:
        """The type of most weights, read from the file."""
        return self.onnx.precision if self.onnx else None


def artefact(path: Path, name: str, sha256: str | None = None) -> Artefact:
    """Read and hash a model's file; `sha256` is its own where it was just computed.

    Raises:
        UserError: an ONNX file that is damaged.
    """
    facts: onnx_file.OnnxFacts | None = None
    extra: tuple[Path, ...] = ()
    if onnx_file.is_onnx(path):
        facts = onnx_file.read(path)
        extra = onnx_file.check_external(path, facts)
    elif path.suffix.lower() == ".xml" and path.with_suffix(".bin").is_file():
        extra = (path.with_suffix(".bin"),)  # the weights of OpenVINO's own format
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files += extra
    if sha256 is None or extra:
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
        sha256 = digest.hexdigest()
    return Artefact(name, path, sha256, sum(file.stat().st_size for file in files), facts)


@dataclass(frozen=True)
class ModelResult:
    """One model at one batch size."""

    artefact: Artefact
    measurement: Measurement
    disturbance: Disturbance
    warnings: tuple[str, ...]
    harness_ns: float | None = None
    """Median of an identity model in the same loop; None where the runtime has none."""
    cold_start: ColdStart | None = None
    accuracy: Score | None = None
    throughput: Throughput | None = None
    open_loop: OpenLoop | None = None
    profile: tuple[Node, ...] = ()

    @property
    def median_ms(self) -> float:
        """Median latency of one call, ms."""
        return self.measurement.median_ms

    @property
    def interval_ms(self) -> tuple[float, float]:
        """95 % interval of the median."""
        return self.measurement.interval_ms

    @property
    def harness_share(self) -> float | None:
        """The share of the median that the harness and an empty call of the runtime take."""
        if self.harness_ns is None:
            return None
        return self.harness_ns / (self.measurement.median_ms * 1e6)


@dataclass(frozen=True)
class Against:
    """A saved result that a measurement was held against."""

    name: str
    path: Path
    median_ms: Interval
    ratio: Interval
    """The latency now over the saved one."""
    floor: float
    """What two runs at different times may differ by; no smaller effect is reported."""
    verdict: Verdict


@dataclass(frozen=True)
class Check:
    """One line of a gate."""

    name: str
    limit: float
    value: float
    """The estimate."""
    bound: float
    """The interval's end that was held against the limit."""
    outcome: str
    """pass, fail, or inconclusive where the interval straddles the limit."""
    message: str


@dataclass(frozen=True)
class Result:
    """What vbench reports. The first model is the baseline."""

    models: tuple[ModelResult, ...]
    environment: Environment
    command: tuple[str, ...]
    version: str
    when: str
    """UTC, ISO 8601."""
    comparison: Comparison | None = None
    change: ScoreChange | None = None
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    sweep: tuple[ModelResult, ...] = field(default=())
    """Other batch sizes, in the order they were asked for."""
    against: Against | None = None
