"""What a candidate costs: counted in its file, and timed in the runtime that ships.

A cost is kept by what it depends on: the graph without its weights, the processor, the runtime and
its version, the number of threads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import onnx

from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.gates.limits import Budget
from vcompress.bench.timing.environment import preflight

from ..pipeline import measure
from ..pipeline.measure import Runtime
from ..quantization.targets import load_target
from .candidate import Candidate, Made, make

log = logging.getLogger(__name__)

Verdict = Literal["keeps", "breaks", "undecided"]
LIMITED = ("latency_ms", "macs", "params", "size_mb")
"""The costs that a budget may limit, as it names them."""
_SCHEMA = 1
_AGAIN = 3
"""How often a latency is measured again, twice as long each time, before it stays undecided."""


class BeyondBudget(UserError):
    """A candidate does not keep its budget, or that cannot be told."""

    status = 1


@dataclass(frozen=True)
class Cost:
    """What one candidate costs."""

    macs: int
    params: int
    size_mb: float
    latency_ms: float
    """Median of one image, end to end."""
    low_ms: float
    high_ms: float
    """95 % interval of the median."""
    steady: bool
    runtime: str
    threads: int
    cpu: str
    kept: bool = False
    """Whether the latency was measured by an earlier call."""

    def span(self, kind: str) -> tuple[float, float]:
        """Least and most of one of `LIMITED`."""
        if kind == "latency_ms":
            return self.low_ms, self.high_ms
        value = float(getattr(self, kind))
        return value, value


def estimate(
    candidate: Candidate, budgets: Sequence[Budget] = (), threads: int = 1,
    store: Path | None = None,
) -> tuple[Cost, dict[str, Verdict]]:  # fmt: skip
    """The cost of a candidate, and whether it keeps each budget, by the budget's text. A latency
    whose interval holds the limit is measured again, longer.

    Args:
        store: file of the costs that were measured; None keeps none.

    Raises:
        UserError: a candidate that cannot be built, or a budget of something else than a cost.
        EnvironmentLacks: the target's runtime is not here.
    """
    for budget in budgets:
        check_budget(budget)
    target = load_target(candidate.target)
    if target.unmeasured:
        raise _unmeasured(target.unmeasured)
    with temporary_folder() as folder:
        file = folder / "model.onnx"
        made = make(candidate, file)
        runtime, why = measure.runtime_for(target, file)
        if why:
            raise _unmeasured(why)
        key = _key(file, runtime, threads)
        found = _kept(store, key) if store is not None else None
        if found is None:
            found = _measured(made, file, runtime, threads, 1)
        for turn in range(1, _AGAIN + 1):
            verdicts = {budget.text: verdict(found, budget) for budget in budgets}
            if "undecided" not in verdicts.values() or turn == _AGAIN:
                break
            log.info("the latency is not told from the limit; measuring longer")
            found = _measured(made, file, runtime, threads, 2**turn)
    if store is not None and not found.kept:
        _keep(store, key, found)
    return found, verdicts


def check_budget(budget: Budget) -> None:
    """Raise a UserError for a budget that no cost answers."""
    if budget.kind not in LIMITED or budget.relative:
        raise UserError(
            f"{budget.text}: a cost alone does not tell; expected one of {', '.join(LIMITED)} as a "
            f"value of its own, such as latency_ms<=4, size_mb<=3 or macs<=2e6."
        )


def verdict(cost: Cost, budget: Budget) -> Verdict:
    """Whether the whole interval of a cost keeps `budget`, or none of it does."""
    low, high = cost.span(budget.kind)
    if high <= budget.value:
        return "keeps"
    return "breaks" if low > budget.value else "undecided"


def graph_digest(file: Path) -> str:
    """SHA-256 of a file's graph without its weights: operators, shapes, and the whole numbers that
    shapes are made of."""
    proto = onnx.load(str(file))
    for tensor in proto.graph.initializer:
        if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            for name in ("raw_data", "float_data", "int32_data", "double_data"):
                tensor.ClearField(name)
    del proto.metadata_props[:]
    proto.doc_string = ""
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def default_store() -> Path:
    """`$XDG_CACHE_HOME/vcompress/costs.sqlite`, under `~/.cache` by default."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "vcompress" / "costs.sqlite"


def _unmeasured(why: str) -> EnvironmentLacks:
    return EnvironmentLacks(f"The latency cannot be measured here: {why}.")


def _measured(made: Made, file: Path, runtime: Runtime, threads: int, times: float) -> Cost:
    found = measure.latency(
        file, made.images, runtime, threads, seconds=measure.LATENCY_SECONDS * times
    )
    return Cost(
        made.macs, made.parameters, round(file.stat().st_size / 1e6, 6), found.median_ms,
        found.low_ms, found.high_ms, found.steady, found.runtime, threads, found.cpu,
    )  # fmt: skip


def _key(file: Path, runtime: Runtime, threads: int) -> str:
    """What a latency depends on."""
    library = import_module(f"vcompress.bench.runtimes.{runtime.name}").library()
    where = [preflight().cpu_model, runtime.name, library.__version__, threads]
    return hashlib.sha256(json.dumps([_SCHEMA, graph_digest(file), *where]).encode()).hexdigest()


def _open(store: Path) -> sqlite3.Connection:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        opened = sqlite3.connect(store, timeout=10)
        opened.execute(
            "CREATE TABLE IF NOT EXISTS costs (key TEXT PRIMARY KEY, cost TEXT NOT NULL)"
        )
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{store}: cannot be used as the store of costs ({error}). Give another --cache FILE, "
            f"or remove the file."
        ) from None
    return opened


def _kept(store: Path, key: str) -> Cost | None:
    with closing(_open(store)) as opened:
        row = opened.execute("SELECT cost FROM costs WHERE key = ?", (key,)).fetchone()
    if row is None:
        return None
    try:
        return replace(Cost(**json.loads(row[0])), kept=True)
    except (TypeError, ValueError):  # of a later version
        return None


def _keep(store: Path, key: str, cost: Cost) -> None:
    with closing(_open(store)) as opened, opened:
        opened.execute(
            "INSERT OR REPLACE INTO costs VALUES (?, ?)", (key, json.dumps(asdict(cost)))
        )
