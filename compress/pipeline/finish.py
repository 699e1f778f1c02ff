"""The end of every command: export, prove, measure on the runtime that ships, write the bundle."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vcompress.bench.bundle import GOLDEN, MODEL, Bundle, InputSpec, Preprocess, bundle
from vcompress.bench.data.dataset import Dataset, batches
from vcompress.bench.errors import UserError
from vcompress.bench.runtimes import open_session
from vcompress.bench.tasks import classification
from vcompress.bench.timing import measure, saturation
from vcompress.bench.timing.environment import preflight
from vcompress.bench.timing.inputs import from_images
from vcompress.export import parity, to_onnx
from vcompress.export import precision as precisions
from vcompress.export.onnx_properties import properties

from .. import quantization
from ..bundles.store import Network, Precision, precision_of, save_network
from ..data.loader import Data
from ..models.cost import count_macs, count_parameters
from ..pruning.sparsity import sparsity_of
from ..reporting.page import section_of, write_report
from ..robustness.measure import measure as measure_robustness
from .openvino_proof import openvino_parity

log = logging.getLogger(__name__)


REPORT = "report.html"
GOLDEN_COUNT = 8
PARITY_IMAGES = 64
LATENCY_SECONDS = 3.0


def finish(
    network: Network,
    out: Path,
    entry: dict[str, Any],
    history: tuple[Any, ...],
    *,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    dataset: Dataset | None,
    opset: int | None = None,
    robustness: int = 0,
    section: str = "",
) -> Bundle:
    """Write `network` as a bundle to `out`; `entry` gains `metrics` and ends the history.

    Without a `dataset` the exported file is proved on noise and its accuracy is not measured.
    Robustness is measured on that many test images; `section` is HTML for this report alone.

    Raises:
        UserError: the exported file does not compute what the network does; nothing is written.
    """
    model = network.model.eval()
    data = None if dataset is None else Data(dataset, preprocess)
    images = parity_images(dataset, preprocess)
    record = dataset.record() if dataset is not None else None
    everything = (*history, entry)
    with bundle.create(
        out,
        input=input_spec(preprocess),
        preprocess=preprocess,
        labels=labels,
        data=record,
        history=everything,
    ) as folder:
        save_network(network, folder)
        log.info("exporting to ONNX and checking it against torch")
        file = folder / MODEL
        exported, proof = export_checked(
            network, file, images, labels=labels, preprocess=preprocess, opset=opset,
            history=everything,
        )  # fmt: skip
        runs = parity.runs_on_cpu(file)
        if runs:
            log.info("measuring accuracy and latency in the runtime")
        else:
            log.warning(
                "ONNX Runtime has no %s on this CPU: accuracy and latency are not measured",
                precision_of(network.model),
            )
        # The manifest is written when this block ends, so the entry may still grow here.
        entry["metrics"] = plain(
            {
                "test": score(file, data) if data and runs else None,
                "parameters": count_parameters(model),
                "macs": count_macs(model, images[:1]),
                "onnx_bytes": file.stat().st_size,
                "latency": latency(file, images) if runs else None,
                "parity": asdict(proof),
                "parity_openvino": openvino_parity(network.model, file, images),
                "export": asdict(exported),
                "sparsity": sparsity_of(network.model, file),
            }
        )
        if robustness and data and runs:
            log.info("measuring robustness on up to %d test images", robustness)
            entry["metrics"]["robustness"] = measure_robustness(model, file, data, robustness)
        held_out = data.images("test", GOLDEN_COUNT) if data else images[:GOLDEN_COUNT]
        _write_golden(folder, held_out.numpy(), runs)
        if dataset is not None and dataset.bad_images:
            entry["bad_images"] = _bad_images(dataset)
        write_report(folder / REPORT, everything, record, section=section)
    return Bundle.open(out)


@contextmanager
def rewritten(
    found: Bundle, names: Iterable[str], history: tuple[Mapping[str, Any], ...]
) -> Iterator[tuple[Path, str]]:
    """A folder with the files `names` of `found`, which takes its place when the block ends; with
    it the part of its report that is of its last stage alone."""
    with bundle.create(
        found.path, input=found.input, preprocess=found.preprocess, labels=found.labels,
        data=found.data, history=history, task=found.task,
    ) as folder:  # fmt: skip
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.file(name), target)
        yield folder, report_section(found)


def report_section(found: Bundle) -> str:
    """HTML of the last stage alone, from the bundle's report."""
    if REPORT not in found.files:
        return ""
    return section_of(found.file(REPORT).read_text(encoding="utf-8"))


def _bad_images(dataset: Dataset) -> dict[str, Any]:
    """How many images were skipped, and which; the log names them."""
    reasons = [dataset.bad_images[i] for i in sorted(dataset.bad_images)]
    more = f", and {len(reasons) - 5:,} more" if len(reasons) > 5 else ""
    log.warning(
        "%d images could not be read and were left out: %s%s",
        len(reasons), " ".join(reasons[:5]), more,
    )  # fmt: skip
    return {"count": len(reasons), "named": reasons[:100]}


def export_checked(
    network: Network,
    file: Path,
    images: Tensor,
    *,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    opset: int | None = None,
    precision: Precision | None = None,
    history: Sequence[Mapping[str, Any]] = (),
) -> tuple[to_onnx.ExportReport, parity.Parity]:
    """Export, and hold the file against the network on `images` `[N, C, H, W]`.

    `precision` fp16 or bf16 casts the file, once the float32 one has passed; None takes what the
    network was cast to.

    Raises:
        UserError: they disagree; the file is not left behind.
    """
    model = network.model.eval()
    half = precision or precision_of(model)
    quantised = quantization.is_quantized(model)
    exportable = quantization.to_export(model) if quantised else model
    if half == "bf16":
        if quantised:
            raise UserError("int8 with bf16: TensorRT's int8 goes with fp16. Cast to fp16.")
        opset = max(opset or 0, precisions.OPSETS["bf16"])
    exported = to_onnx.export(
        exportable,
        file,
        input_spec(preprocess),
        metadata=properties(network.spec.name, labels, preprocess, history),
        opset=opset,
    )
    saturated = saturation.note(file)
    if saturated:
        log.warning(saturated)
    proof = parity.check(exportable, file, images)
    if not proof.ok:
        file.unlink()
        why = f" {saturated}" if saturated else ""
        raise UserError(f"the exported file fails its parity check: {proof.message}{why}")
    if half == "fp32":
        return exported, proof
    exported = to_onnx.cast_file(exported, input_spec(preprocess).shape, half)
    proof = parity.check_cast(exportable, file, images, f"int8+{half}" if quantised else half)
    if not proof.ok:
        file.unlink()
        raise UserError(f"the cast file fails its parity check: {proof.message}")
    return exported, proof


def input_spec(preprocess: Preprocess) -> InputSpec:
    return InputSpec("input", (len(preprocess.mean), *preprocess.size))


def parity_images(dataset: Dataset | None, preprocess: Preprocess) -> Tensor:
    """Images of the validation split, or noise where there are none, `[N, C, H, W]`."""
    if dataset is None:
        return noise(PARITY_IMAGES, preprocess)
    return Data(dataset, preprocess).images("val", PARITY_IMAGES)


def noise(count: int, preprocess: Preprocess) -> Tensor:
    """Normal values, `[count, C, H, W]`, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *input_spec(preprocess).shape, generator=generator)


def score(file: Path, data: Data) -> dict[str, Any]:
    """Accuracy of the file on the held-out split, in the runtime."""
    with open_session(file) as session:
        found = classification.score(
            session, batches(data.dataset, "test", data.preprocess, 64), classes=data.classes
        )
    return {
        "n": found.n,
        "correct": found.correct,
        "top1": found.top1,
        "interval": found.top1_interval,
    }


def latency(file: Path, images: Tensor) -> dict[str, Any]:
    """Median latency of one image, end to end, one thread; `images` `[N, C, H, W]` take turns."""
    with open_session(file, threads=1) as session:
        feed = from_images(session.inputs[0], images.numpy(), 1, "held-out images")
        found = measure.measure(session, feed, measure.Budget.quick(LATENCY_SECONDS))
    low, high = found.interval_ms
    return {
        "median_ms": found.median_ms,
        "low_ms": low,
        "high_ms": high,
        "batch": 1,
        "threads": 1,
        "steady": found.steady,
        "provider": found.facts.provider,
        "cpu": preflight().cpu_model,
    }


def plain(value: Any) -> Any:
    """JSON's own types: tuples become lists, paths text, and what is no number (the SQNR of two
    equal outputs is infinite) null."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)


def _write_golden(folder: Path, inputs: Any, runs: bool) -> None:
    """Inputs with the runtime's outputs: a device can check itself against them.

    What the runtime cannot run, the reference evaluator of ONNX computes.
    """
    if runs:
        with open_session(folder / MODEL) as session:
            outputs = session.run({"input": inputs})
    else:
        outputs = {"logits": parity.run_reference(folder / MODEL, inputs)[0]}
    arrays: Mapping[str, Any] = {"input": inputs, **{f"output.{k}": v for k, v in outputs.items()}}
    if strings := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise UserError(f"{MODEL} makes something else than numbers: {', '.join(strings)}.")
    np.savez(folder / GOLDEN, **arrays)  # numpy before 2.2 takes `allow_pickle` for an array
