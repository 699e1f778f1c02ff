"""The first and the last stage of a recipe, measured against each other in one process."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from vcompress.bench.bundle import MODEL, Bundle
from vcompress.bench.bundle.history import measured, threads_of
from vcompress.bench.bundle.output import write_text
from vcompress.bench.runtimes import open_session
from vcompress.bench.timing.compare import compare
from vcompress.bench.timing.inputs import from_images

from ..bundles.recorded import open_recorded, parity_images
from ..reporting.page import render, summary

log = logging.getLogger(__name__)


def write_side_by_side(first: Bundle, last: Bundle, report: Path, trust: str | None = None) -> None:
    """Interleave both files, log what it says in a sentence, write the page.

    They run on the threads of the last one's latency. The numbers stand beside the page as JSON.
    `trust` names the own code that may be run.
    """
    comparison = None
    if first.path != last.path:
        log.info("measuring %s and %s side by side", first.path, last.path)
        files = first.file(MODEL), last.file(MODEL)
        dataset = open_recorded(last, trust)
        # Both in the runtime of the last one: the float file runs there too.
        _, metrics = measured(last.history)[-1]
        runtime = metrics.latency.runtime if metrics.latency is not None else "onnxruntime"
        threads = threads_of(last.history) or 1
        with (
            open_session(files[0], runtime=runtime, threads=threads) as a,
            open_session(files[1], runtime=runtime, threads=threads) as b,
            open_session(files[0], runtime=runtime, threads=threads) as again,
        ):
            feeds = [
                from_images(session.inputs[0], parity_images(dataset, p).numpy(), 1, "images")
                for session, p in ((a, first.preprocess), (b, last.preprocess))
            ]
            found = compare(a, feeds[0], b, feeds[1], again)
        comparison = {
            "stage": len(measured(first.history)),
            "first": str(files[0]),
            "last": str(files[1]),
            "runtime": runtime,
            "ratio": found.ratio.value,
            "ratio_low": found.ratio.low,
            "ratio_high": found.ratio.high,
            "floor": found.floor,
            "verdict": str(found.verdict),
        }
        text = json.dumps(comparison, indent=1) + "\n"
        write_text(report.with_name("side_by_side.json"), text)
    write_text(report, render(last.history, last.data, comparison))
    log.info(summary(last.history, comparison))
