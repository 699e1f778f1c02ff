"""Engines of a bundle: built from its ONNX file, proved, and kept in its folder `engines/`."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vcompress.bench.bundle import MODEL, Bundle
from vcompress.bench.bundle.atomic import claimed
from vcompress.bench.bundle.history import to_json
from vcompress.bench.config import plain
from vcompress.bench.engine import BuildReport, Settings, build_engine
from vcompress.bench.engine.settings import Flavour
from vcompress.bench.errors import UserError
from vcompress.export import engine_proof, float8, parity
from vcompress.export import precision as precision_of_file
from vcompress.export.runtime import run_onnx

from ..bundles.engine_records import FOLDER, FORMAT, SCHEMA_VERSION, _read, read_engines
from ..bundles.precisions import check_available, held_by
from ..bundles.recorded import open_recorded, parity_images
from ..bundles.rewrite import REPORT, rewritten
from ..bundles.store import load_network
from ..pipeline.measure import score
from ..pipeline.proof import export_checked
from ..reporting.page import write_report

log = logging.getLogger(__name__)


LEAST_FP8_SQNR_DB = 10.0
"""E4M3 has three bits of mantissa: the errors of the layers add up to some 20 dB."""
Required = int | Literal["all"] | None


class TooLittle(UserError):
    """Fewer int8 layers than --require-int8 asks."""

    status = 1


@dataclass(frozen=True)
class Source:
    """The ONNX file that an engine is built from."""

    path: Path
    name: str
    """Within the bundle."""
    facts: Mapping[str, Any]
    """Parity and accuracy, where the file was made for the engine."""


def parse_required(text: str | None) -> Required:
    """`all`, or a number of layers.

    Raises:
        UserError: something else.
    """
    if text is None or text == "all":
        return text  # type: ignore[return-value]
    if not text.isdecimal():
        raise UserError(f"--require-int8 {text}: expected `all` or a number of layers.")
    return int(text)


def build_into(
    path: Path,
    flavours: Sequence[Flavour],
    settings: Settings,
    *,
    precision: str | None = None,
    required: Required = None,
    timing_cache: Path | None = None,
    trusted_factory: str | None = None,
) -> Bundle:
    """Build an engine for each of `flavours` and write the bundle again with them.

    Engines of another ONNX file go; those of other GPUs or precisions stay.

    Raises:
        TooLittle: less became int8 than `required`; the bundle stays as it was.
        UserError: the bundle has no such precision, or the builder refuses.
    """
    bundle = Bundle.open(path)
    holds = held_by(bundle)
    wanted = check_available(bundle, holds, precision)
    beside = path.resolve().parent
    with claimed(path), tempfile.TemporaryDirectory(dir=beside, prefix=".engines.") as text:
        work = Path(text)
        source = _source(bundle, wanted, holds, work, trusted_factory)
        for flavour in flavours:
            asked = replace(settings, flavour=flavour)
            if flavour == "tensorrt" and "tensorrt-rtx" in flavours:
                asked = replace(asked, sm=())  # --sm is for the other one
            log.info("building a %s engine in %s", flavour, wanted)
            _build(source, asked, wanted, required, timing_cache, work)
        kept = _kept(bundle, work)
        _write(bundle, work, kept)
    return Bundle.open(path)


def _source(
    bundle: Bundle, wanted: str, holds: str, work: Path, trusted_factory: str | None
) -> Source:
    """The bundle's own file, or one of another precision that is made and measured here."""
    if wanted == holds:
        return Source(bundle.file(MODEL), MODEL, {})
    if wanted == "fp8":
        return _float8(bundle, work, trusted_factory)
    from ..data.loader import Data

    network = load_network(bundle, trusted_factory)
    dataset = open_recorded(bundle, trusted_factory)
    file = work / f"model.{_file_name(wanted)}.onnx"
    log.info("casting the network to %s and checking it", wanted)
    half: Any = wanted.rpartition("+")[2]
    exported, proof = export_checked(
        network, file, parity_images(dataset, bundle.preprocess),
        labels=bundle.labels, preprocess=bundle.preprocess, task=bundle.task, precision=half,
    )  # fmt: skip
    runs = parity.runs_on_cpu(file)
    data = None if dataset is None else Data(dataset, bundle.preprocess)
    facts = plain(
        {
            "parity": proof.message,
            "cast": exported.cast,
            "test": to_json(score(file, data)) if data is not None and runs else None,
        }
    )
    return Source(file, f"{FOLDER}/{file.name}", facts)


def _float8(bundle: Bundle, work: Path, trusted_factory: str | None) -> Source:
    """The quantised file with FP8 in the place of int8 and float16 around it.

    ONNX Runtime 1.31 fuses FP8 pairs into int8 operators that do not take them, so the file is
    held against the int8 one and scored with its optimisations off.
    """
    from vcompress.bench.runtimes import open_session
    from vcompress.bench.tasks.scoring import score_split

    file = work / "model.fp8.onnx"
    log.info("converting the quantised network to fp8 and checking it")
    shutil.copyfile(bundle.file(MODEL), file)
    converted = float8.convert_file(file)
    cast = precision_of_file.convert_file(file, "fp16")
    dataset = open_recorded(bundle, trusted_factory)
    images = parity_images(dataset, bundle.preprocess).numpy()
    int8, fp8 = (run_onnx(path, images, optimised=False)[0] for path in (bundle.file(MODEL), file))
    found = parity.compare(int8, fp8, bundle.task)
    if not found.sqnr_db >= LEAST_FP8_SQNR_DB:
        raise UserError(
            f"--precision fp8: SQNR {found.sqnr_db:.1f} dB against the int8 file, expected "
            f"{LEAST_FP8_SQNR_DB:g}: the ranges of this network do not suit it. Stay with int8."
        )
    test = None
    if dataset is not None:
        with open_session(file, optimize=False) as session:
            scored = score_split(session, dataset, "test", bundle.preprocess, bundle.labels)
            test = to_json(scored.record())
    facts = {
        "parity": f"against the int8 file in ONNX Runtime, optimisations off: top-1 "
        f"{found.top1_agreement:.2%}, SQNR {found.sqnr_db:.1f} dB",
        "cast": asdict(cast),
        "float8": asdict(converted),
        "test": test,
    }
    return Source(file, f"{FOLDER}/{file.name}", plain(facts))


def _file_name(precision: str) -> str:
    return precision.replace("+", "-")


def _build(
    source: Source, settings: Settings, precision: str, required: Required,
    timing_cache: Path | None, work: Path,
) -> None:  # fmt: skip
    draft = work / "draft.engine"
    report = build_engine(source.path, draft, settings, timing_cache=timing_cache)
    proof = None if report.layers is None else engine_proof.prove(source.path, report.layers)
    _check_required(required, report, proof)
    stem = f"{settings.flavour}-{_file_name(precision)}-{target_name(report)}"
    draft.rename(work / f"{stem}.engine")
    record = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "engine": f"{stem}.engine",
        "onnx": source.name,
        "precision": precision,
        "build": {**report.to_json(), "path": f"{stem}.engine"},
        "proof": None if proof is None else proof.to_json(),
        **source.facts,
        "layers": None if report.layers is None else report.layers.to_json(),
    }
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    (work / f"{stem}.json").write_text(text, encoding="utf-8")


def target_name(report: BuildReport) -> str:
    """The GPUs in a file's name: those asked for, else the one that it was built on."""
    here = report.gpu.rpartition("SM ")[2]
    numbers = [str(sm) for sm in report.settings.sm] or ([here] if here else [])
    return "-".join(f"sm{number}" for number in numbers) or "here"


def _check_required(
    required: Required, report: BuildReport, proof: engine_proof.Proof | None
) -> None:
    if required is None:
        return
    if report.layers is None or proof is None:
        raise UserError(
            f"--require-int8: what became int8 is not known: {report.layers_missing}. Leave it, or "
            "build with TensorRT-RTX."
        )
    if required == "all":
        if proof.quantised and proof.ok:
            return
        if not proof.quantised:
            raise TooLittle(
                "--require-int8 all: the ONNX file quantises nothing. Run vcompress quantize "
                "--target tensorrt first."
            )
        names = [f"{name} ({what})" for name, what in proof.missed]
        names += [f"{name} (its weights are expanded at run time)" for name in proof.expanded]
        raise TooLittle(
            f"--require-int8 all: {proof.low} of {len(proof.quantised)} quantised layers run in "
            f"int8; not so: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}. "
            f"{_cure(report)}"
        )
    if len(report.layers.low) < required:
        raise TooLittle(
            f"--require-int8 {required}: {len(report.layers.low)} of {len(report.layers.compute)} "
            "convolutions and matrix products run in int8."
        )


def _cure(report: BuildReport) -> str:
    if 75 in report.settings.sm:
        return (
            "TensorRT-RTX runs no int8 on SM 75, and one 75 in --sm takes it from the others: "
            "leave it out, or build for it apart."
        )
    return "`vcompress lint` says which rule they break."


def _kept(bundle: Bundle, work: Path) -> list[str]:
    """Files of the bundle's engines that stay: not replaced, and built from its present files."""
    fresh = {file.name for file in work.iterdir()}
    kept: list[str] = []
    for record in read_engines(bundle):
        entry = bundle.files.get(record["onnx"])
        stale = entry is None or entry.sha256 != record["build"]["onnx_sha256"]
        names = (record["engine"], record["engine"].removesuffix(".engine") + ".json")
        if not stale and not fresh.intersection(names):
            kept += [f"{FOLDER}/{name}" for name in names]
            kept += [record["onnx"]] if record["onnx"].startswith(f"{FOLDER}/") else []
    return [n for n in dict.fromkeys(kept) if n in bundle.files and Path(n).name not in fresh]


def _write(bundle: Bundle, work: Path, kept: Sequence[str]) -> None:
    """The bundle again, whole, with `work` and `kept` as its engines."""
    rest = [n for n in bundle.files if not n.startswith(f"{FOLDER}/") and n != REPORT]
    with rewritten(bundle, (*rest, *kept), bundle.history) as (folder, section):
        (folder / FOLDER).mkdir(exist_ok=True)
        for file in work.iterdir():
            shutil.copyfile(file, folder / FOLDER / file.name)
        records = [_read(file) for file in sorted((folder / FOLDER).glob("*.json"))]
        write_report(folder / REPORT, bundle.history, bundle.data, engines=records, section=section)
