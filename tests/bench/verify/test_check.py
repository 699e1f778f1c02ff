"""`verify`: one changed byte anywhere is named, and what computes otherwise is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.archive import pack
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.bundle.signature import make_keys
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.verify import check as verifying
from vcompress.bench.verify.check import DoesNotVerify, main
from vcompress.bench.verify.check import verify as check
from vcompress.bench.verify.golden import Found

Make = Callable[..., Bundle]


def reseal(folder: Path, **files: bytes) -> None:
    """Change files and all hashes with them, as a hostile author would."""
    import hashlib

    manifest = json.loads((folder / "manifest.json").read_text())
    for name, content in files.items():
        target = {"model": "model.onnx", "golden": "golden.npz"}[name]
        (folder / target).write_bytes(content)
        manifest["files"][target] = {
            "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)
        }  # fmt: skip
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal_of(text))


def test_a_whole_bundle_verifies(
    whole_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = whole_bundle(tmp_path / "b")
    assert main([str(tmp_path / "b"), "--runtime", "onnxruntime"]) == 0
    text = capsys.readouterr().out
    assert f"files      4, {made.size_bytes:,} bytes: hashes agree" in text
    assert "manifest   held by manifest.sha256" in text
    assert "signature  none" in text
    assert "cpu agrees: equal to the bit (float32, at least 80 dB)" in text
    assert text.endswith(f"{tmp_path / 'b'} verifies\n")


def test_every_file_with_a_changed_byte_is_named(whole_bundle: Make, tmp_path: Path) -> None:
    made = whole_bundle(tmp_path / "b")
    for name in (*made.files, "manifest.json", "manifest.sha256"):
        file = tmp_path / "b" / name
        before = file.read_bytes()
        for place in (0, len(before) // 2, len(before) - 1):
            file.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            if name.startswith("manifest"):
                with pytest.raises(DoesNotVerify, match=r"manifest\.json: changed"):
                    check(tmp_path / "b", golden=False)
            else:
                found = check(tmp_path / "b", golden=False)
                assert found.problems == (f"{name}: changed (its SHA-256 differs)",)
        file.write_bytes(before)
    assert check(tmp_path / "b", golden=False).ok


def test_everything_that_is_wrong_is_named_at_once(
    whole_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_bundle(tmp_path / "b")
    folder = tmp_path / "b"
    (folder / "model.onnx").unlink()
    (folder / "golden.npz").write_bytes(b"x")
    (folder / "stranger").write_text("x")
    (folder / "weights.safetensors").rename(tmp_path / "w")
    (folder / "weights.safetensors").symlink_to(tmp_path / "w")
    (folder / "notes").rename(tmp_path / "notes")
    (folder / "notes").symlink_to(tmp_path / "notes")
    assert main([str(folder)]) == 1
    said = capsys.readouterr()
    for line in (
        "golden.npz: changed (1 bytes, the manifest says", "model.onnx: missing",
        "notes/card.txt: missing, or not a plain file", "notes: not named by the manifest",
        "weights.safetensors: missing, or not a plain file", "stranger: not named by the manifest",
    ):  # fmt: skip
        assert line in said.err, line
    assert "golden     not run" in said.out


def test_a_bundle_of_before_says_that_its_manifest_is_not_protected(
    whole_bundle: Make, tmp_path: Path
) -> None:
    whole_bundle(tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    del manifest["history"][0]["sealed_by"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "b" / "manifest.sha256").unlink()
    found = check(tmp_path / "b", golden=False)
    assert found.ok and not found.protected
    assert any("not protected" in line for line in verifying.lines(found, golden=False))


def test_a_signature_is_checked_with_a_key_and_mentioned_without(
    whole_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("cryptography")
    public, name = make_keys(tmp_path / "k.pem")
    other, _ = make_keys(tmp_path / "o.pem")
    whole_bundle(tmp_path / "b")
    pack(tmp_path / "b", tmp_path / "b.vcb", tmp_path / "k.pem")
    archive = tmp_path / "b.vcb"
    assert check(archive, golden=False, key=public).signature == f"holds, by the key {name}"
    assert check(archive, golden=False).signature.endswith(f"{name}, not checked: give --key")
    with pytest.raises(DoesNotVerify, match="signed by the key"):
        check(archive, golden=False, key=other)
    assert check(tmp_path / "b", golden=False, key=public).problems[0].endswith("--sign KEY.pem")
    for path in (archive, tmp_path / "b"):
        assert main([str(path), "--no-golden", "--key", str(tmp_path / "nothing")]) == 2
        assert "no such key" in capsys.readouterr().err
    # The name of the key is the beginning of the bundle's.
    shutil.copytree(tmp_path / "b", tmp_path / "k.pub.pem, a bundle")
    with pytest.raises(DoesNotVerify):
        verifying.show(
            tmp_path / "k.pub.pem, a bundle", key=public, golden=False, runtimes=(), timeout_s=1
        )
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for path in (archive, tmp_path / "b"):
        with pytest.raises(EnvironmentLacks, match="signatures need the package cryptography"):
            check(path, golden=False, key=public)


def test_an_archive_is_verified_as_a_folder_is(
    whole_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_bundle(tmp_path / "b")
    pack(tmp_path / "b", tmp_path / "b.vcb")
    found = check(tmp_path / "b.vcb", runtimes=("onnxruntime",))
    assert found.ok and found.golden[0].state == "agrees"
    (tmp_path / "b.vcb").write_bytes((tmp_path / "b.vcb").read_bytes()[:-1])
    assert main([str(tmp_path / "b.vcb")]) == 1
    assert "cut off" in capsys.readouterr().err


def test_what_is_no_bundle_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert main([str(tmp_path)]) == 2
    assert "not a bundle (no manifest.json)" in capsys.readouterr().err


def test_another_network_with_right_hashes_is_found(whole_bundle: Make, tmp_path: Path) -> None:
    made = whole_bundle(tmp_path / "b")
    content = bytearray(made.file("model.onnx").read_bytes())
    weights = np.frombuffer(content, np.uint8)
    place = len(weights) // 2
    content[place + 3 - place % 4 :: 97] = bytes(len(content[place + 3 - place % 4 :: 97]))
    reseal(tmp_path / "b", model=bytes(content))
    found = check(tmp_path / "b", runtimes=("onnxruntime",))
    assert not found.ok
    assert found.golden[0].state in ("differs", "fails")


def test_a_model_that_is_none_with_right_hashes_is_a_finding(
    whole_bundle: Make, tmp_path: Path
) -> None:
    whole_bundle(tmp_path / "b")
    reseal(tmp_path / "b", model=b"not a model")
    found = check(tmp_path / "b")
    assert not found.ok
    assert "is not a whole ONNX file" in found.problems[0]
    with pytest.raises(UserError, match="There is no runtime 'onnxruntim'"):
        check(tmp_path / "b", runtimes=("onnxruntim",))


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"PK\x05\x06" + bytes(18)])
def test_golden_files_that_are_none_are_one_message(
    whole_bundle: Make, tmp_path: Path, content: bytes
) -> None:
    whole_bundle(tmp_path / "b")
    reseal(tmp_path / "b", golden=content)
    found = check(tmp_path / "b", runtimes=("onnxruntime",))
    assert found.problems
    for problem in found.problems:
        assert problem.startswith("model.onnx: onnxruntime ")
        assert "golden.npz" in problem and "golden arrays" in problem


def test_a_fixed_batch_and_float16_run_too(whole_bundle: Make, tmp_path: Path) -> None:
    whole_bundle(tmp_path / "fixed", "fixed")
    whole_bundle(tmp_path / "half", "half")
    for name, precision in (("fixed", "float32"), ("half", "float16")):
        found = check(tmp_path / name, runtimes=("onnxruntime",))
        assert found.ok and found.golden[0].precision == precision


def result(runtime: str, state: Any, file: str = "model.onnx", device: str = "cpu") -> Found:
    return Found(runtime, device, file, state, "as it is")


@pytest.mark.parametrize(
    ("found", "asked", "problems"),
    [
        # ONNX Runtime wrote the golden outputs and decides; another runtime is told of.
        ([("onnxruntime", "agrees"), ("openvino", "differs")], (), 0),
        ([("onnxruntime", "differs"), ("openvino", "agrees")], (), 1),
        ([("onnxruntime", "fails")], (), 1),
        # Where it is missing, whatever is present decides.
        ([("onnxruntime", "absent"), ("openvino", "differs")], (), 1),
        ([("onnxruntime", "absent"), ("openvino", "absent")], (), 0),
        # What was named must be present and agree.
        ([("openvino", "agrees")], ("openvino",), 0),
        ([("openvino", "differs")], ("openvino",), 1),
        ([("openvino", "absent")], ("openvino",), 1),
        ([], ("openvino",), 1),
    ],
)
def test_which_runtime_decides(found: Any, asked: Any, problems: int) -> None:
    assert len(verifying._judged([result(*item) for item in found], asked)) == problems


@pytest.mark.parametrize(
    ("found", "problems"),
    [
        # The runtime that the network was quantised for decides where it is present.
        ([("onnxruntime", "differs"), ("openvino", "agrees")], []),
        ([("onnxruntime", "agrees"), ("openvino", "differs")], ["openvino"]),
        ([("onnxruntime", "agrees"), ("openvino", "fails")], ["openvino"]),
        # Where it is missing, ONNX Runtime does, which wrote the golden outputs.
        ([("onnxruntime", "differs"), ("openvino", "absent")], ["onnxruntime"]),
        ([("onnxruntime", "agrees"), ("openvino", "absent")], []),
    ],
)
def test_the_runtime_that_a_network_was_quantised_for_decides(found: Any, problems: Any) -> None:
    told = verifying._judged([result(*item) for item in found], (), "openvino")
    assert told == [
        f"model.onnx: {name} cpu {state}: as it is" for name, state in found if name in problems
    ]


def test_a_network_for_engines_is_judged_by_its_engine_and_its_file() -> None:
    found = [result("onnxruntime", "differs"), result("openvino", "differs")]
    engine = result("tensorrt", "agrees", "engines/a.engine", "cuda")
    told = verifying._judged([*found, engine], (), "tensorrt")
    assert told == ["model.onnx: onnxruntime cpu differs: as it is"]


def test_an_engine_that_can_run_here_decides() -> None:
    reference = result("onnxruntime", "agrees")
    engine = result("tensorrt", "differs", "engines/a.engine", "cuda")
    assert verifying._judged([reference, engine], ()) == [
        "engines/a.engine: tensorrt cuda differs: as it is"
    ]


def test_it_loads_neither_torch_nor_numpy_where_only_files_are_checked(
    whole_bundle: Make, tmp_path: Path
) -> None:
    whole_bundle(tmp_path / "b")
    script = (
        "import sys; from vcompress.bench.verify.check import main; status = main(sys.argv[1:]); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'torch', 'numpy', 'onnxruntime', 'tyro', 'rich'})); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "b"), "--no-golden"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_verifies_and_ends_with_the_same_status(
    whole_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = pytest.importorskip("vcompress.compress.cli").main
    whole_bundle(tmp_path / "b")
    assert command(["verify", str(tmp_path / "b"), "--no-golden"]) == 0
    os.truncate(tmp_path / "b" / "model.onnx", 5)
    assert command(["verify", str(tmp_path / "b"), "--no-golden"]) == 1
    said = capsys.readouterr()
    assert "verifies" in said.out
    assert "model.onnx: changed (5 bytes" in said.err


def built(*batch: Any) -> dict[str, Any]:
    return {"build": {"settings": {"batch": batch}}}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"onnx": "half.onnx", "build": {"settings": {"batch": [1, 2, 4]}}}, ("half.onnx", (1, 4))),
        (
            {"onnx": "gone.onnx", "build": {"settings": {"batch": [2, 2, 2]}}},
            ("model.onnx", (2, 2)),
        ),
        ({"onnx": ["x"], "build": {"settings": {"batch": [1, 1, 1]}}}, ("model.onnx", None)),
        (
            {"onnx": "half.onnx", "build": {"settings": {"batch": [1, "x", 1]}}},
            ("model.onnx", None),
        ),
        ([], ("model.onnx", None)),
    ],
)
def test_an_engine_is_held_to_the_precision_of_the_file_that_it_was_built_from(
    tmp_path: Path, record: Any, expected: Any
) -> None:
    from vcompress.bench.bundle import InputSpec, Preprocess, create

    with create(
        tmp_path / "b", input=InputSpec("x", (3, 8, 8)), preprocess=Preprocess((8, 8)), labels=(),
        data=None, history=(),
    ) as folder:  # fmt: skip
        (folder / "half.onnx").write_text("x")
        (folder / "e").mkdir()
        (folder / "e" / "a.engine").write_text("x")
        (folder / "e" / "a.json").write_text(json.dumps(record))
        (folder / "e" / "b.engine").write_text("x")
    bundle = Bundle.open(tmp_path / "b")
    assert verifying._source(bundle, "e/a.engine") == expected
    assert verifying._source(bundle, "e/b.engine") == ("model.onnx", None)
