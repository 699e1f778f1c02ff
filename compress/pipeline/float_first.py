"""How a network does in float, before it is quantised, and what that cost afterwards."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import MODEL, Bundle
from vcompress.bench.config import plain
from vcompress.bench.tasks import load
from vcompress.bench.tasks.task import Score
from vcompress.export import parity

from ..data.loader import Data
from ..quantization.targets import load_target
from ..reporting.against_float import AGAINST_FLOAT, text_of
from ..training.processes import process_state
from .measure import runtime_for, scored

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Before:
    """The float network before it was quantised."""

    file: Path
    """Its ONNX file."""
    runtime: str
    """Name of the runtime that ran it."""
    score: Score | None
    """On the held-out images; None where nothing is labelled."""


@dataclass
class FloatFirst:
    """Scores the unchanged network when a stage asks for it, in the first process alone."""

    bundle: Bundle | None
    data: Data
    before: Before | None = None
    """What came out; None where the network is in no bundle, or its file cannot run here."""

    def __call__(self, target: str) -> None:
        """Run the bundle's `model.onnx` in the runtime of `target`, or in ONNX Runtime where that
        is not here, and say what came out."""
        bundle, data = self.bundle, self.data
        if bundle is None or MODEL not in bundle.files:
            return
        file = bundle.file(MODEL)
        if not process_state().is_main_process or not parity.runs_on_cpu(file):
            return
        runtime, _ = runtime_for(load_target(target), file)
        self.before = Before(file, runtime.name, None)
        if not data.dataset.labelled:
            return
        found = scored(file, data, runtime)
        judged = found.metric
        log.info(
            "in float: %s %s (%s) on %d images of %s, in %s",
            judged.title, judged.text(found.value), judged.span(*found.interval), found.n,
            data.dataset.source, runtime.name,
        )  # fmt: skip
        self.before = Before(file, runtime.name, found)


def against(before: Before, score: Score, runtime: str) -> dict[str, Any]:
    """What the entry of the history says of the change, paired on the same images; empty where
    another runtime ran them. The log says it in a sentence."""
    if runtime != before.runtime or before.score is None:
        return {}
    change = load(score.task).compare(before.score, score)
    log.info("against float: %s", text_of(change))
    return {AGAINST_FLOAT: plain(asdict(change))}
