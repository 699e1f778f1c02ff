"""Export a bundle's network again: into the bundle, or into a file of its own."""

from __future__ import annotations

from pathlib import Path

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError

from .finish import export_checked, finish, parity_images
from .flow import open_recorded
from .store import load_network


def export_bundle(path: Path, opset: int | None, trusted_factory: str | None) -> Bundle:
    """Replace the bundle's `model.onnx`, golden outputs, metrics and report.

    Raises:
        UserError: no bundle, or a file that fails its checks; the old bundle stays.
    """
    bundle = Bundle.open(path)
    network = load_network(bundle, trusted_factory)
    *before, last = (dict(entry) for entry in bundle.history)
    return finish(
        network, path, last, tuple(before), labels=bundle.labels, preprocess=bundle.preprocess,
        dataset=open_recorded(bundle), opset=opset,
    )  # fmt: skip


def export_file(path: Path, out: Path, opset: int | None, trusted_factory: str | None) -> str:
    """Write the ONNX file to `out`; returns what was proved about it.

    Raises:
        UserError: `out` is not an .onnx file, or the file fails its checks and is not kept.
    """
    if out.suffix != ".onnx":
        raise UserError(f"--out {out}: expected a file name that ends in .onnx.")
    bundle = Bundle.open(path)
    network = load_network(bundle, trusted_factory)
    dataset = open_recorded(bundle)
    images = parity_images(dataset, bundle.preprocess)
    out.parent.mkdir(parents=True, exist_ok=True)
    _, proof = export_checked(
        network, out, images, labels=bundle.labels, preprocess=bundle.preprocess, opset=opset
    )
    return f"{out}: {out.stat().st_size / 1e6:.2f} MB. {proof.message}"
