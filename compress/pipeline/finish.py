"""The end of every stage: export, prove, measure in the runtime that ships, write the bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vcompress.bench.bundle import MODEL, Bundle, InputSpec, Preprocess, bundle
from vcompress.bench.bundle.history import (
    Entry,
    Latency,
    Metrics,
    TestScore,
    threads_of,
    to_json,
)
from vcompress.bench.config import plain
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.working import working
from vcompress.export import integers, parity
from vcompress.export.mixing import across_the_batch

from ..bundles.entry import loaded_packages
from ..bundles.recorded import parity_images
from ..bundles.rewrite import REPORT, SECTION
from ..bundles.store import Network, check_reloads, save_network
from ..data.loader import Data
from ..models.cost import count_macs, count_parameters
from ..models.precision import precision_of
from ..pruning.sparsity import sparsity_of
from ..quantization import target_of
from ..reporting.masks import masks_section
from ..reporting.page import write_report
from ..reporting.speed import SPEED
from ..robustness.measure import measure as measure_robustness
from .float_first import Before, against
from .measure import (
    ONNX_RUNTIME,
    OwnMetric,
    Runtime,
    _write_golden,
    latency,
    own_score,
    runtime_of,
    scored,
)
from .openvino_proof import openvino_parity
from .proof import export_checked
from .speed import timed_against

log = logging.getLogger(__name__)


GOLDEN_COUNT = 8


def finish(
    network: Network,
    out: Path,
    entry: Entry,
    history: Sequence[Entry],
    *,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    dataset: Dataset | None,
    task: str,
    opset: int | None = None,
    robustness: int = 0,
    section: str = "",
    own: OwnMetric | None = None,
    threads: int | None = None,
    before: Before | None = None,
) -> Bundle:
    """Write `network` as a bundle to `out`; `entry`, with its metrics, ends the history.

    Without a `dataset` the exported file is proved on noise and its accuracy is not measured.
    Robustness is measured on that many test images; `section` is HTML for this report alone. `own`
    is a metric in place of the task's. Latency is measured with `threads`, by default those of the
    last latency in the history, else one. The score is held against `before`, the float network's.

    Raises:
        UserError: the exported file does not compute what the network does; nothing is written.
    """
    model = network.model.eval()
    data = None if dataset is None else Data(dataset, preprocess)
    images = parity_images(dataset, preprocess)
    record = dataset.record() if dataset is not None else None
    labelled = data if dataset is not None and dataset.labelled else None
    everything = [*history, entry]
    threads = threads or threads_of(everything) or 1
    with bundle.create(
        out,
        input=InputSpec.of(preprocess),
        preprocess=preprocess,
        labels=labels,
        data=record,
        history=everything,
        task=task,
    ) as folder:
        save_network(network, folder)
        check_reloads(network, folder, images[:GOLDEN_COUNT])
        log.info("exporting to ONNX and checking it against torch")
        file = folder / MODEL
        exported, proof = export_checked(
            network, file, images, labels=labels, preprocess=preprocess, task=task,
            opset=opset, history=everything,
        )  # fmt: skip
        if proof.mixes is not None:
            log.warning(across_the_batch(proof.mixes))
        runs = parity.runs_on_cpu(file)
        runtime = runtime_of(network.model, file) if runs else ONNX_RUNTIME
        if runs:
            log.info("measuring accuracy and latency in %s", runtime.name)
        else:
            log.warning(
                "ONNX Runtime has no %s on this CPU: accuracy and latency are not measured",
                precision_of(network.model),
            )
        test, change, pictures = _tested(file, labelled if runs else None, runtime, own, before)
        section += pictures
        timed, speed = None, dict[str, Any]()
        if runs:
            timed, speed = _timed(file, images, runtime, threads, before, entry)
        metrics = Metrics(
            test=test,
            parameters=count_parameters(model),
            macs=count_macs(model, images[:1]),
            onnx_bytes=file.stat().st_size,
            latency=timed,
            parity=plain(asdict(proof)),
            parity_openvino=plain(openvino_parity(network.model, file, images, runtime, task)),
            export=plain({**asdict(exported), "path": MODEL, **_in_integers(model, file)}),
            sparsity=sparsity_of(network.model, file),
        )
        if entry.metrics is not None:  # the same network, exported again
            metrics = replace(metrics, robustness=entry.metrics.robustness)
        if robustness and labelled and runs:
            log.info("measuring robustness on up to %d test images", robustness)
            with working("measuring robustness"):
                measured = measure_robustness(
                    model, file, labelled, robustness, runtime=runtime.name
                )
            metrics = replace(metrics, robustness=measured)
        held_out = data.images("test", GOLDEN_COUNT) if data else images[:GOLDEN_COUNT]
        _write_golden(folder, held_out.numpy(), runs)
        if dataset is not None and dataset.bad_images:
            entry = replace(entry, bad_images=_bad_images(dataset))
        details = {**entry.details, **change, **speed}
        everything[-1] = replace(
            entry, metrics=metrics, task=task, details=details, packages=loaded_packages()
        )
        if section:
            (folder / SECTION).write_text(section, encoding="utf-8")
        write_report(folder / REPORT, everything, record, section=section)
    return Bundle.open(out)


def _tested(
    file: Path, data: Data | None, runtime: Runtime, own: OwnMetric | None, before: Before | None
) -> tuple[TestScore | None, dict[str, Any], str]:
    """The score of the file, details of what it changed against `before`, and pictures of it."""
    if data is None:
        return None, {}, ""
    if own is not None:
        return own_score(file, data, own, runtime), {}, ""
    found = scored(file, data, runtime)
    change = against(before, found, runtime.name) if before is not None else {}
    pictures = masks_section(
        data.dataset, data.preprocess, found, before.score if before is not None else None
    )
    return found.record(runtime.name), change, pictures


def _timed(
    file: Path, images: Tensor, runtime: Runtime, threads: int, before: Before | None, entry: Entry
) -> tuple[Latency, dict[str, Any]]:
    """The latency of the file, and details of its speed against float.

    A verdict has timed both already, and where the file does not ship nothing is said.
    """
    here = runtime.ships_in == runtime.name
    if before is None or before.runtime != runtime.name or not here or "verdict" in entry.details:
        return latency(file, images, runtime, threads), {}
    found, speed = timed_against(file, before.file, images, runtime, threads)
    return found, {SPEED: to_json(speed)}


def _in_integers(model: nn.Module, file: Path) -> dict[str, Any]:
    """What ONNX Runtime computes in integers of a file that was quantised for it."""
    target = target_of(model)
    if target is None or target.runtime != "onnxruntime":
        return {}
    found = integers.read_back(file)
    if found.float_layers:
        names = ", ".join(f"{name} ({why})" for name, why in found.float_layers.items())
        log.warning("%s; int8 is not faster for the others: %s", found.text, names)
    return {"integers": asdict(found)}


def _bad_images(dataset: Dataset) -> dict[str, Any]:
    """How many images were skipped, and which; the log names them."""
    reasons = [dataset.bad_images[i] for i in sorted(dataset.bad_images)]
    more = f", and {len(reasons) - 5:,} more" if len(reasons) > 5 else ""
    log.warning(
        "%d images could not be read and were left out: %s%s",
        len(reasons), " ".join(reasons[:5]), more,
    )  # fmt: skip
    return {"count": len(reasons), "named": reasons[:100]}
