"""`vcompress robustness`: the numbers of finished bundles, and their place in the report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vcompress.bench.bundle import MODEL, Bundle
from vcompress.bench.bundle.atomic import claimed
from vcompress.bench.bundle.history import Robustness
from vcompress.bench.errors import UserError

from ..data.loader import Data
from ..pipeline.measure import runtime_of
from ..robustness.measure import Attack, measure

log = logging.getLogger(__name__)


def measure_bundles(
    paths: tuple[Path, ...], count: int, attack: Attack, trusted_factory: str | None
) -> Iterator[tuple[Path, Robustness]]:
    """Measure each bundle on its own data, and write what was found into it and its report.

    Raises:
        UserError: a bundle without data, or whose data have changed.
    """
    from ..bundles.recorded import open_recorded
    from ..bundles.store import load_network

    opened = [Bundle.open(path) for path in paths]
    for found in opened:
        if not found.history or found.history[-1].metrics is None:
            raise UserError(f"{found.path}: its history has no metrics to stand beside.")
        if found.data is None:
            raise UserError(f"{found.path}: the bundle records no data to measure on.")
    for found in opened:
        log.info("measuring the robustness of %s", found.path)
        with claimed(found.path):
            dataset = open_recorded(found, trusted_factory)
            assert dataset is not None
            model = load_network(found, trusted_factory).model
            data = Data(dataset, found.preprocess)
            file = found.file(MODEL)
            measured = measure(model, file, data, count, attack, runtime_of(model, file).name)
            _store(found, measured)
        yield found.path, measured


def _store(found: Bundle, measured: Robustness) -> None:
    """The bundle again, whole, with the numbers in its last stage and in the report."""
    from ..bundles.engine_records import read_engines
    from ..bundles.rewrite import REPORT, rewritten
    from ..reporting.page import write_report

    *before, last = found.history
    assert last.metrics is not None
    history = [*before, replace(last, metrics=replace(last.metrics, robustness=measured))]
    engines = read_engines(found)
    with rewritten(found, found.files, history) as (folder, section):
        write_report(folder / REPORT, history, found.data, engines=engines, section=section)
