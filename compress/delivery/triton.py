"""`vcompress export --to triton`: a bundle's ONNX file or engine as a model repository."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import MODEL, Bundle, sha256
from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.bundle.output import check_output
from vcompress.bench.errors import UserError, nearest
from vcompress.export import triton
from vcompress.export.onnx_options import OnnxOptions

from ..bundles.engine_records import FOLDER
from .reexport import export_file


def default_name(path: Path) -> str:
    """The bundle's folder as a name that Triton takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", path.resolve().name).strip("-.") or "model"


def export_triton(
    path: Path, out: Path, serving: triton.Serving, *, engine: str | None = None,
    opset: int | None = None, options: OnnxOptions | None = None,
    trusted_factory: str | None = None,
) -> str:  # fmt: skip
    """Write a model repository to `out`; returns what was written.

    Args:
        engine: an engine of the bundle by its name without its ending; else the ONNX file.
        opset: with this or `options` the file is exported again, else it is the bundle's.

    Raises:
        UserError: no bundle or engine, or a model of that name is there already.
    """
    check_output(out / serving.name / "config.pbtxt", [path])
    bundle = Bundle.open(path)
    again = opset is not None or (options is not None and options.any)
    if engine is not None and again:
        raise UserError("--engine serves an engine as it is; omit --opset and the ONNX options.")
    with temporary_folder() as folder:
        plain = bundle.file(MODEL)
        model, notes = plain, ""
        if engine is not None:
            model = _engine(bundle, engine, serving.max_batch)
        elif again:
            model = folder / MODEL
            notes = export_file(path, model, opset, trusted_factory, options).partition("\n")[2]
        # An engine has the inputs and outputs of the file that it was built from.
        inputs, outputs = triton.onnx_tensors(plain if engine is not None else model)
        text = triton.config(
            serving, inputs, outputs, engine=engine is not None, classes=len(bundle.labels),
            properties={
                "vcompress.bundle": bundle.path.resolve().name,
                "vcompress.sha256": sha256(model),
            },
        )  # fmt: skip
        checked = triton.check(text, serving)
        written = triton.write_repository(
            out, model, bundle.labels, text, serving, engine=engine is not None
        )
    said = (
        "its configuration parses with Triton's own definition"
        if checked
        else "its configuration was not checked: pip install 'tritonclient[grpc]'"
    )
    return "\n".join([f"{written}: {said}", *filter(None, [notes])])


def _engine(bundle: Bundle, name: str, max_batch: int) -> Path:
    stems = sorted(
        Path(file).stem for file in bundle.files
        if file.startswith(f"{FOLDER}/") and file.endswith(".engine")
    )  # fmt: skip
    if name not in stems:
        known = f" It has {', '.join(stems)}." if stems else " It has none; build one first."
        raise UserError(
            f"{bundle.path}: there is no engine {name!r}.{nearest(name, stems) or known}"
        )
    flavour, least, largest = _built(bundle.file(f"{FOLDER}/{name}.json"))
    if flavour != "tensorrt":
        raise UserError(
            f"--engine {name}: Triton runs engines of classic TensorRT, this one is "
            f"{flavour}. Serve the ONNX file, or build with --to tensorrt."
        )
    if least > 1 or max_batch > largest:
        raise UserError(
            f"--max-batch {max_batch}: the engine takes {least} to {largest} images, and Triton "
            f"sends 1 to {max_batch}."
        )
    return bundle.file(f"{FOLDER}/{name}.engine")


def _built(file: Path) -> tuple[str, int, int]:
    """Which TensorRT an engine is for, and its least and largest batch, by the record beside it."""
    try:
        settings: Any = json.loads(file.read_text(encoding="utf-8"))["build"]["settings"]
        least, _, largest = (int(size) for size in settings["batch"])
        return str(settings["flavour"]), least, largest
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise UserError(f"{file}: not a record of an engine that vcompress wrote.") from None
