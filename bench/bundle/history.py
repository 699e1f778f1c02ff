"""The history of a bundle: an entry for each stage with its options and what was measured.

`read` and `to_json` are the one way from the manifest's JSON and back. Keys of a newer version,
which are not known here, stay in `extra` and are written again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from ..config import from_mapping
from ..errors import UserError
from .manifest import SEALED_BY

_LARGEST = 2**63


def _extra() -> Any:
    return field(default_factory=dict, metadata={"rest": True})


@dataclass(frozen=True)
class Licences:
    """Texts, SPDX identifiers where possible."""

    data: str = "unknown"
    weights: str = "unknown"
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class MetricValue:
    """One number of the held-out images with its 95 % interval."""

    value: float
    low: float
    high: float
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class TestScore:
    """How well the exported file does on the held-out images."""

    __test__: ClassVar[bool] = False
    """Not a class of tests, whatever pytest takes its name for."""

    metric: str
    """Name of the task's own metric, such as top1, mAP or mae."""
    value: float
    """A share is from 0 to 1."""
    interval: tuple[float, float] | None
    """95 %: low, high; None where the metric has no value for any resample of the images."""
    n: int
    """Images."""
    values: Mapping[str, MetricValue] = field(default_factory=dict)
    """Further metrics by name."""
    correct: int | None = None
    """Images that got their class; None for other tasks than classification."""
    runtime: str = "onnxruntime"
    """Where it was measured. Older records do not say it: all were in ONNX Runtime."""
    extra: Mapping[str, Any] = _extra()

    @staticmethod
    def from_older(data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A record as today's, of one that knew classification alone: n, correct, top1, interval.

        In today's records `top1` only repeats the value.
        """
        known = {key: value for key, value in data.items() if key != "top1"}
        if "top1" in data and "metric" not in data:
            return {"metric": "top1", "value": data["top1"], **known}
        return known if data.get("metric") == "top1" else data

    def for_older(self) -> dict[str, Any]:
        """What older readers look for besides."""
        return {"top1": self.value} if self.metric == "top1" else {}


@dataclass(frozen=True)
class Latency:
    """One image, end to end; 95 % interval of the median."""

    median_ms: float
    low_ms: float
    high_ms: float
    batch: int
    threads: int
    steady: bool
    """The measurement drifted no more than its noise allows."""
    provider: str
    cpu: str
    runtime: str = "onnxruntime"
    ships_in: str | None = None
    """The runtime that the network was quantised for; None of a float network."""
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        if not 1e-9 <= self.median_ms <= 1e12:
            raise UserError(f"latency.median_ms = {self.median_ms}, expected 1e-9 to 1e12.")


@dataclass(frozen=True)
class Robustness:
    """A metric of the test images: as they are, attacked, and corrupted."""

    n: int
    clean: float
    pgd: float
    """Under PGD of `steps` steps within `epsilon`, of pixels from 0 to 1."""
    epsilon: float
    steps: int
    corruptions: Mapping[str, tuple[float, ...]]
    """By kind, from the mildest severity to the worst."""
    mean_corrupted: float
    metric: str = "top1"
    """What the numbers are of. Older records do not say it: all were top-1."""
    runtime: str = "onnxruntime"
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        if not all(self.corruptions.values()):
            raise UserError("robustness.corruptions: a kind has no severities, expected some.")


@dataclass(frozen=True)
class Metrics:
    """What was measured of a stage's network and of the file that was exported."""

    test: TestScore | None
    """None where there were no data, or where no runtime runs the file here."""
    parameters: int
    macs: int
    onnx_bytes: int
    latency: Latency | None
    parity: Mapping[str, Any] | None = None
    """The file against the network, as `export.parity` says it."""
    parity_openvino: Mapping[str, Any] | None = None
    export: Mapping[str, Any] | None = None
    """The exporter's report."""
    sparsity: Mapping[str, int] | None = None
    """Layers of the network and weights of the file that are 2:4 sparse."""
    robustness: Robustness | None = None
    extra: Mapping[str, Any] = _extra()

    def __post_init__(self) -> None:
        for name, least in (("parameters", 0), ("macs", 0), ("onnx_bytes", 1)):
            value = getattr(self, name)
            if not least <= value < _LARGEST:
                raise UserError(f"metrics.{name} = {value!s:.40}, expected {least} or more.")


@dataclass(frozen=True)
class Entry:
    """One stage on the way to a bundle."""

    stage: str
    model: str
    """The name of its architecture."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The stage's own options."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those that every stage has."""
    seed: int | None = None
    started: str | None = None
    """ISO 8601, UTC."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of Python and of the packages that decide what is computed."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of every installed package of which something was loaded when the bundle was
    written."""
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By role: the name, or the path and the hash of the weights."""
    licences: Licences | None = None
    seconds: float | None = None
    """The stage's own work, without export and measurement."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the stage says about itself: what was reached against what was asked."""
    metrics: Metrics | None = None
    """None until the stage's network is measured."""
    bad_images: Mapping[str, Any] | None = None
    """How many images could not be read and were skipped, and which."""
    task: str | None = None
    """None in older records, which knew classification alone."""
    extra: Mapping[str, Any] = _extra()


def read(items: Iterable[Any], where: str = "a history") -> tuple[Entry, ...]:
    """The entries of a history as JSON holds it; `where` names the source in an error.

    Raises:
        UserError: a value is missing or of another type; the message names its place.
    """
    # The word of the manifest's hash is the manifest's own, not the stage's.
    own = [
        {key: value for key, value in item.items() if key != SEALED_BY}
        if isinstance(item, Mapping) else item
        for item in items
    ]  # fmt: skip
    return from_mapping(_History, {"history": own}, where).history


@dataclass(frozen=True)
class _History:
    history: tuple[Entry, ...]


def to_json(value: Any) -> Any:
    """A dataclass of this module, or what holds some, as JSON's own types.

    What is None or empty where that is the default is left out.
    """
    if is_dataclass(value) and not isinstance(value, type):
        found = {
            each.name: to_json(inner)
            for each in fields(value)
            if not each.metadata.get("rest")
            and not _says_nothing(each, inner := getattr(value, each.name))
        }
        older = value.for_older() if isinstance(value, TestScore) else {}
        return {**found, **older, **getattr(value, "extra", {})}
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _says_nothing(each: Any, value: Any) -> bool:
    if value is None:
        return each.default is None
    return each.default_factory is dict and not value


def threads_of(history: Iterable[Entry]) -> int | None:
    """Number of threads that the last latency was measured with; None where none was."""
    latencies = [m.latency for _, m in measured(history) if m.latency is not None]
    return latencies[-1].threads if latencies else None


def measured(history: Iterable[Entry]) -> list[tuple[Entry, Metrics]]:
    """The entries that were measured, with their metrics."""
    return [(entry, entry.metrics) for entry in history if entry.metrics is not None]
