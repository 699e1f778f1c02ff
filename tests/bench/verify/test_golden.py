"""Golden outputs: how they are read, what a runtime may differ by, and runtimes that misbehave."""

from __future__ import annotations

import io
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError
from vcompress.bench.verify import golden
from vcompress.bench.verify.golden import compare

Make = Callable[..., Bundle]


def test_golden_arrays_are_not_unpacked_to_more_than_they_are(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", input=np.zeros((1, 10**7)))
    with pytest.raises(UserError, match="is compressed"):
        golden.load(tmp_path / "bomb.npz")
    np.savez(tmp_path / "objects.npz", input=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="not golden arrays"):
        golden.load(tmp_path / "objects.npz")
    np.savez(tmp_path / "other.npz", input=np.zeros((2, 3)), **{"output.y": np.zeros((3, 1))})
    with pytest.raises(UserError, match="no golden outputs"):
        golden.load(tmp_path / "other.npz")


def test_golden_arrays_that_are_damaged_are_one_message(tmp_path: Path) -> None:
    file = tmp_path / "golden.npz"
    huge = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},), }}"
    for header in ("{", "{[]: 1}", "-" * 5000 + "1", huge):
        with zipfile.ZipFile(file, "w") as archive:
            length = len(header).to_bytes(2, "little")
            archive.writestr("input.npy", b"\x93NUMPY\x01\x00" + length + header.encode())
        with pytest.raises(UserError, match="not golden arrays"):
            golden.load(file)
    with zipfile.ZipFile(file, "w") as archive:  # without the ending .npy NumPy gives bytes
        for name in ("input", "output.y"):
            archive.writestr(name, b"bytes")
    with pytest.raises(UserError, match="not golden arrays"):
        golden.load(file)
    np.savez(file, input=np.zeros((2, 3)), **{"output.y": np.zeros((2, 1))})
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"PK\x01\x02") + 8] |= 1  # says that the first array is encrypted
    file.write_bytes(whole)
    with pytest.raises(UserError, match="not golden arrays"):
        golden.load(file)


def test_golden_arrays_that_share_their_bytes_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each array but the innermost is the header and the bytes of the next one."""
    content, entries = b"", []
    for name in ("input", "output.a", "output.b", "output.c"):
        array = io.BytesIO()
        inner = np.frombuffer(content or bytes(100_000), np.uint8)
        np.lib.format.write_array(array, inner, allow_pickle=False)
        entry = zipfile.ZipInfo(f"{name}.npy")
        entry.file_size = entry.compress_size = len(array.getvalue())
        entry.CRC = zlib.crc32(array.getvalue())
        entries.append((entry, len(array.getvalue())))
        content = entry.FileHeader() + array.getvalue()
    with zipfile.ZipFile(tmp_path / "nested.npz", "w") as archive:
        archive.fp.write(content)
        for entry, size in entries:
            entry.header_offset = len(content) - size - len(entry.FileHeader())
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive.start_dir, archive._didModify = len(content), True
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(UserError, match="its 4 entries overlap"):
        golden.load(tmp_path / "nested.npz")


def test_a_batch_that_does_not_divide_is_filled_up() -> None:
    images = np.arange(10.0).reshape(5, 2)
    parts = list(golden._batches(images, 4))
    assert [p.shape for p in parts] == [(4, 2), (4, 2)]
    assert np.array_equal(np.concatenate(parts)[:5], images)
    (whole,) = golden._batches(images, 5)
    assert np.array_equal(whole, images)


def test_a_crash_and_a_hang_of_a_runtime_are_findings(
    whole_bundle: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = whole_bundle(tmp_path / "b")
    (tmp_path / "python").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "sleeper").write_text("#!/bin/sh\nexec sleep 60\n")
    for name, timeout_s, message in (
        ("python", 60.0, "crashed (SIGSEGV) on this file"),
        ("sleeper", 0.5, "did not come back within 0.5 s"),
    ):
        (tmp_path / name).chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / name))
        found = golden.check(
            made.file("model.onnx"), made.file("golden.npz"), runtime="onnxruntime", device="cpu",
            task="classification", precision="float32", timeout_s=timeout_s,
        )  # fmt: skip
        assert (found.state, found.message) == ("fails", message)


def outputs(error: float, n: int = 8) -> tuple[dict[str, Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((n, 10))
    noise = rng.standard_normal((n, 10)) * error
    return {"y": logits.astype(np.float32)}, {"y": (logits + noise).astype(np.float32)}


@pytest.mark.parametrize(
    ("error", "precision", "state"),
    [
        (1e-6, "float32", "agrees"), (1e-3, "float32", "differs"), (1e-3, "float16", "agrees"),
        (2e-2, "float16", "differs"), (1e-2, "bfloat16", "agrees"), (5e-2, "bfloat16", "differs"),
        (5e-2, "int8", "agrees"), (0.3, "int8", "differs"),
    ],
)  # fmt: skip
def test_the_tolerance_is_that_of_the_precision(error: float, precision: str, state: str) -> None:
    found = compare(*outputs(error), limit=golden.limit_db(precision, "cpu"), task="classification")
    assert found["state"] == state
    assert found["sqnr_db"] == pytest.approx(-20 * np.log10(error), abs=1.5)


def test_a_gpu_computes_float32_in_tf32() -> None:
    assert golden.limit_db("float32", "cpu") == 80
    assert golden.limit_db("float32", "cuda") == 50
    assert golden.limit_db("int8", "cuda") == 20


def test_another_best_class_counts_where_the_margin_was_clear() -> None:
    clear = {"y": np.array([[10.0, 0.0], [10.0, 0.0]] * 50)}
    one_wrong = {"y": clear["y"].copy()}
    one_wrong["y"][0] = [4.9, 5.1]  # 23 dB over all: within the limit of int8
    found = compare(clear, one_wrong, limit=20, task="classification")
    assert found["state"] == "differs"
    assert found["message"] == "another best class in 1 place(s) that were clear"
    assert compare(clear, one_wrong, limit=20, task="detection")["state"] == "agrees"
    close = {"y": np.array([[10.0, 9.9], [10.0, 0.0]] * 50)}
    swapped = {"y": close["y"].copy()}
    swapped["y"][0] = [9.9, 10.0]
    found = compare(close, swapped, limit=20, task="classification")
    assert (found["state"], found["top1_agreement"]) == ("agrees", 0.99)


def test_other_shapes_values_that_are_not_finite_and_other_indices_are_differences() -> None:
    reference, other = outputs(0.0)
    assert compare(reference, other, limit=80, task="classification")["message"] == (
        "equal to the bit"
    )
    for wrong, message in (
        ({"y": other["y"][:, :9]}, "y is [8, 9], recorded was [8, 10]"),
        ({"y": other["y"] * np.nan}, "y is not finite"),
    ):
        assert compare(reference, wrong, limit=20, task="x")["message"] == message
    indices = {"k": np.arange(8)}
    assert compare(indices, {"k": np.arange(8)}, limit=80, task="x")["state"] == "agrees"
    found = compare(indices, {"k": np.zeros(8)}, limit=80, task="x")
    assert found["message"] == "only 12% of k is as recorded"
    endless = {"y": np.array([[np.inf, 1.0]])}
    found = compare(endless, {"y": np.array([[2.0, 1.0]])}, limit=20, task="x")
    assert found["state"] == "differs"
    nothing = {"y": np.zeros((2, 3))}
    assert compare(nothing, {"y": np.ones((2, 3))}, limit=20, task="x")["state"] == "differs"


def test_an_engine_that_takes_fewer_inputs_is_fed_in_parts(
    whole_bundle: Make, tmp_path: Path
) -> None:
    made = whole_bundle(tmp_path / "b")
    for batch in ((1, 3), (6, 6), (1, 100)):
        found = golden.check(
            made.file("model.onnx"), made.file("golden.npz"), runtime="onnxruntime", device="cpu",
            task="classification", precision="float32", batch=batch,
        )  # fmt: skip
        assert found.state == "agrees"


def test_a_file_that_changed_since_it_was_hashed_is_not_run(
    whole_bundle: Make, tmp_path: Path
) -> None:
    bundle = whole_bundle(tmp_path / "b")
    file = bundle.path / "model.onnx"
    known: Any = {
        "runtime": "onnxruntime",
        "device": "cpu",
        "task": bundle.task,
        "precision": "float32",
    }
    arrays = bundle.path / "golden.npz"
    digest = bundle.files["model.onnx"].sha256
    assert golden.check(file, arrays, **known, sha256=digest).state == "agrees"
    file.write_bytes(file.read_bytes() + b"\x1a\x00")
    found = golden.check(file, arrays, **known, sha256=digest)
    assert (found.state, found.message) == ("fails", "changed since it was hashed")
