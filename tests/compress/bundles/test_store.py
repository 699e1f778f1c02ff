"""A network to a bundle and back, and descriptions that are not believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset
from vcompress.compress.bundles.precisions import check_available, held_by
from vcompress.compress.bundles.store import load_network, save_network
from vcompress.compress.data.loader import Data
from vcompress.compress.models.catalogue import ModelSpec
from vcompress.compress.pipeline.resolve import is_fine_tuned

OWN = "tiny_nets:batch"


def rewrite(folder: Path, name: str, content: bytes) -> Bundle:
    """Change a file and the manifest's hash with it, as a hostile author would."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {
        "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)
    }  # fmt: skip
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal_of(text))
    return Bundle.open(folder)


def test_a_network_comes_back_bit_for_bit(work: Path) -> None:
    bundle = Bundle.open("runs/net")
    network = load_network(bundle, OWN)
    assert not network.model.training
    (work / "again").mkdir()
    save_network(network, work / "again")
    for name in ("weights.safetensors", "architecture.json"):
        assert (work / "again" / name).read_bytes() == bundle.file(name).read_bytes()


def test_it_computes_what_the_exported_file_computes(work: Path) -> None:
    import numpy as np

    bundle = Bundle.open("runs/net")
    golden = np.load(bundle.file("golden.npz"), allow_pickle=False)
    with torch.no_grad():
        found = load_network(bundle, OWN).model(torch.from_numpy(golden["input"]))
    (name,) = [key for key in golden if key.startswith("output.")]
    assert np.allclose(found.numpy(), golden[name], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "os:system", "classes": 3, "kwargs": {}}}, "Loading runs that code"),
        ({"model": {"name": "nonesuch", "classes": 3, "kwargs": {}}}, "unknown model 'nonesuch'"),
        ({"model": {"name": "resnet18", "classes": 3, "kwargs": {}}}, "do not fit the network"),
        ({"model": {"name": OWN, "classes": 5, "kwargs": {}}}, "has 5 classes, and the manifest"),
        ({"model": {"name": "vgg16_bn", "classes": 10**6, "kwargs": {}}}, "manifest has 3 labels"),
        ({"model": None}, "expected a table"),
        ({"changes": {"attributes": {"0": {"forward": 1}}}}, "is not a number of that module"),
        ({"changes": {"shapes": {"0.weight": [10**6, 3, 3, 3]}}}, "to [8, 3, 3, 3]"),
        ({"changes": {"identities": ["0.x"]}}, "which the architecture lacks"),
        ({"changes": []}, "is a table"),
        ({"changes": None}, "is a table"),
        ({"quantization": {"x": 1}}, ""),
        ({"quantization": "int8"}, "quantization is a str, expected a table"),
        ({"more": 1}, "expected a JSON object with changes, model, quantization"),
    ],
)
def test_an_architecture_that_is_wrong_is_refused(
    work: Path, change: dict[str, Any], message: str
) -> None:
    folder = work / "runs" / "net"
    architecture = json.loads((folder / "architecture.json").read_text())
    content = json.dumps({**architecture, **change}).encode()
    bundle = rewrite(folder, "architecture.json", content)
    with pytest.raises(UserError) as caught:
        load_network(bundle, OWN)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"null", b"{}"])
def test_an_architecture_that_is_no_json_object_is_refused(work: Path, content: bytes) -> None:
    bundle = rewrite(work / "runs" / "net", "architecture.json", content)
    data, spec = Data(open_dataset("digits"), bundle.preprocess), ModelSpec("resnet18", 3)
    for read in (
        lambda: load_network(bundle, OWN),
        lambda: held_by(bundle),
        lambda: check_available(bundle, "fp32", None),
        lambda: is_fine_tuned(bundle, spec, data),
    ):
        with pytest.raises(UserError, match=r"architecture\.json"):
            read()


@pytest.mark.parametrize("model", [[1], "resnet18", None, 3])
def test_a_bundle_whose_model_is_no_table_is_not_the_network_asked_for(
    work: Path, model: Any
) -> None:
    folder = work / "runs" / "net"
    architecture = json.loads((folder / "architecture.json").read_text())
    content = json.dumps({**architecture, "model": model}).encode()
    bundle = rewrite(folder, "architecture.json", content)
    data = Data(open_dataset("digits"), bundle.preprocess)
    assert not is_fine_tuned(bundle, ModelSpec("resnet18", 3), data)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02." * 20, b"\xff" * 100])
def test_weights_that_are_no_safetensors_are_refused(work: Path, content: bytes) -> None:
    bundle = rewrite(work / "runs" / "net", "weights.safetensors", content)
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        load_network(bundle, OWN)


def test_a_full_disk_is_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    from vcompress.compress.models import changes

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(changes, "save_tensors", full)
    with pytest.raises(UserError, match=r"could not be written .*No space left.* Make room"):
        save_network(load_network(Bundle.open("runs/net"), OWN), work)
