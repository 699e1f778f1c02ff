"""The bill of materials: valid by the format's own schema, complete, the same every time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create
from vcompress.bench.bundle.history import read
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.compress.bundles.sbom import bill_of_materials
from vcompress.compress.cli import main

pytest.importorskip("cyclonedx")

FINGERPRINT = "ab" * 32
ENTRY = {
    "stage": "finetune", "model": "resnet18", "started": "2026-11-22T01:02:03+00:00",
    "versions": {"python": "3.11.7", "torch": "2.14.1+cpu", "onnx": "1.23.2"},
    "licences": {"data": "CC-BY-4.0", "weights": "Apache-2.0 OR MIT"},
}  # fmt: skip


def write(path: Path, *history: dict[str, Any], data: bool = True) -> Bundle:
    record = {
        "source": "digits", "root": None, "seed": 0, "fingerprint": FINGERPRINT,
        "splits": {"train": 3, "val": 1, "test": 1},
    }  # fmt: skip
    with create(
        path, input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)),
        labels=("cat", "dog"), data=record if data else None,
        history=read(history or (ENTRY,)),
    ) as folder:  # fmt: skip
        (folder / "model.onnx").write_text("model")
        (folder / "golden.npz").write_text("golden")
    return Bundle.open(path)


def parsed(bundle: Bundle) -> Any:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = bill_of_materials(bundle)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    return json.loads(text)


def test_it_holds_the_model_the_files_the_data_the_packages_and_the_licences(
    tmp_path: Path,
) -> None:
    before = {**ENTRY, "stage": "import", "versions": {"torch": "2.9.0"}}
    bundle = write(tmp_path / "b", before, ENTRY)
    found = parsed(bundle)
    assert found["specVersion"] == "1.6"
    model = found["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "resnet18")
    assert model["hashes"] == [{"alg": "SHA-256", "content": bundle.files["model.onnx"].sha256}]
    assert model["licenses"] == [{"expression": "Apache-2.0 OR MIT"}]
    assert [c["name"] for c in model["components"]] == ["golden.npz", "model.onnx"]
    assert {"name": "vcompress:stage:2", "value": "finetune resnet18"} in model["properties"]
    parts = {c["bom-ref"]: c for c in found["components"]}
    assert parts["data"]["type"] == "data"
    assert parts["data"]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert parts["data"]["hashes"][0]["content"] == FINGERPRINT
    assert sorted(ref for ref in parts if ref != "data") == [
        "package:onnx@1.23.2", "package:python@3.11.7", "package:torch@2.14.1+cpu",
        "package:torch@2.9.0",
    ]  # fmt: skip
    assert parts["package:onnx@1.23.2"]["purl"] == "pkg:pypi/onnx@1.23.2"
    (needs,) = [d["dependsOn"] for d in found["dependencies"] if d["ref"] == "model"]
    assert set(needs) == set(parts)


def test_every_package_that_was_loaded_is_listed_once(tmp_path: Path) -> None:
    entry = {**ENTRY, "packages": {"pillow": "13.0.0", "onnx": "1.23.2"}}
    refs = [c["bom-ref"] for c in parsed(write(tmp_path / "b", entry))["components"]]
    assert refs.count("package:pillow@13.0.0") == refs.count("package:onnx@1.23.2") == 1


def test_the_same_bundle_gives_the_same_text_and_another_one_another_number(
    tmp_path: Path,
) -> None:
    one = write(tmp_path / "b")
    assert bill_of_materials(one) == bill_of_materials(one)
    other = write(tmp_path / "c", {**ENTRY, "seed": 1})
    assert parsed(one)["serialNumber"] != parsed(other)["serialNumber"]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("unknown", None),
        ("cc-by-4.0", [{"license": {"id": "CC-BY-4.0"}}]),
        ("ours alone", [{"license": {"name": "ours alone"}}]),
    ],
)
def test_a_licence_is_an_identifier_or_a_name_or_left_out(
    tmp_path: Path, licence: str, expected: Any
) -> None:
    entry = {**ENTRY, "licences": {"data": "MIT", "weights": licence}}
    found = parsed(write(tmp_path / "b", entry))["metadata"]["component"]
    assert found.get("licenses") == expected
    said = {"name": "vcompress:licence:weights", "value": "unknown"} in found["properties"]
    assert said == (expected is None)


def test_a_bundle_of_before_licences_and_without_data_has_one_too(tmp_path: Path) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != "licences"}
    found = parsed(write(tmp_path / "b", entry, data=False))
    assert "licenses" not in found["metadata"]["component"]
    assert all(c["type"] != "data" for c in found["components"])


@pytest.mark.parametrize(
    "changes",
    [
        {"started": "yesterday"}, {"started": None},
        {"versions": {"torch@evil": "1"}}, {"versions": {"torch": "1?x=2"}},
    ],
)  # fmt: skip
def test_a_history_that_is_not_ours_is_one_message(tmp_path: Path, changes: Any) -> None:
    with pytest.raises(UserError, match="its history is not one that vcompress writes"):
        bill_of_materials(write(tmp_path / "b", {**ENTRY, **changes}))


def test_a_changed_file_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write(tmp_path / "b")
    (tmp_path / "b" / "model.onnx").write_text("other")
    with pytest.raises(UserError, match=r"model\.onnx: changed"):
        bill_of_materials(bundle)
    monkeypatch.setitem(sys.modules, "cyclonedx.model.bom", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install -e '/.*\[release\]'"):
        bill_of_materials(bundle)


def test_a_reader_of_the_output_gets_the_bill_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "b", ENTRY)
    assert main(["sbom", str(tmp_path / "b"), "-o", "/dev/stdout"]) == 0
    assert json.loads(capfd.readouterr().out)["bomFormat"] == "CycloneDX"
    assert main(["sbom", str(tmp_path / "b"), "-o", str(tmp_path / "b.json")]) == 0
    assert "bytes" in capfd.readouterr().out
