"""Export a bundle's network again: into the bundle, or into a file of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.atomic import claimed, temporary_folder
from vcompress.bench.bundle.output import check_output, written
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.onnx_file import is_onnx
from vcompress.export.onnx_options import OnnxOptions, drawn_images, refine

from ..bundles.recorded import open_recorded, parity_images
from ..bundles.rewrite import report_section
from ..bundles.store import load_network
from ..data.loader import split_of
from ..pipeline.finish import finish
from ..pipeline.proof import export_checked

PICTURES = 12


def export_bundle(path: Path, opset: int | None, trusted_factory: str | None) -> Bundle:
    """Replace the bundle's `model.onnx`, golden outputs, metrics and report.

    Raises:
        UserError: no bundle, or a file that fails its checks; the old bundle stays.
    """
    with claimed(path):
        bundle = Bundle.open(path)
        network = load_network(bundle, trusted_factory)
        *before, last = bundle.history
        return finish(
            network, path, last, before, labels=bundle.labels, preprocess=bundle.preprocess,
            dataset=open_recorded(bundle, trusted_factory), task=bundle.task, opset=opset,
            section=report_section(bundle),
        )  # fmt: skip


def export_file(
    path: Path, out: Path, opset: int | None, trusted_factory: str | None,
    options: OnnxOptions | None = None,
) -> str:  # fmt: skip
    """Write the ONNX file to `out`, whole or not at all; returns what was proved about it.

    Raises:
        UserError: `out` is not an .onnx file, or the file fails its checks and is not kept.
    """
    if not is_onnx(out):
        raise UserError(f"--out {out}: expected a file name that ends in .onnx.")
    check_output(out, [path])
    bundle = Bundle.open(path)
    if options is not None:
        options.check_task(bundle.task)
    network = load_network(bundle, trusted_factory)
    dataset = open_recorded(bundle, trusted_factory)
    images = parity_images(dataset, bundle.preprocess)
    notes: tuple[str, ...] = ()
    with temporary_folder() as folder:
        file = folder / out.name
        _, proof = export_checked(
            network, file, images, labels=bundle.labels, preprocess=bundle.preprocess,
            task=bundle.task, opset=opset, history=bundle.history,
        )  # fmt: skip
        if options is not None and options.any:
            pictures = _pictures(dataset)
            notes = refine(file, options, bundle.preprocess, pictures).notes
        size = file.stat().st_size
        with file.open("rb") as source, written(out, [path]) as stream:
            shutil.copyfileobj(source, stream)
    said = f"{out}: {size / 1e6:.2f} MB. {proof.message}"
    return "\n".join([said, *(f"  {note}" for note in notes)])


def _pictures(dataset: Dataset | None) -> list[Image.Image]:
    """Images as they are before preprocessing, to prove options on."""
    if dataset is None:
        return drawn_images(PICTURES)
    return [dataset.image(int(i)) for i in dataset.splits[split_of(dataset, "val")][:PICTURES]]
