from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.runtimes.session import TensorSpec
from vcompress.bench.timing import inputs

IMAGE = TensorSpec("x", ("batch", 3, "height", "width"), "float32")


def test_a_free_first_axis_is_the_batch_and_others_must_be_given() -> None:
    flat = TensorSpec("x", ("n", 3, 8, 8), "float32")
    assert inputs.resolve_shapes([flat], 5) == {"x": (5, 3, 8, 8)}
    with pytest.raises(UserError, match=r"--shape x=2x3x<height>x<width>"):
        inputs.resolve_shapes([IMAGE], 2)
    assert inputs.resolve_shapes([IMAGE], 2, {"x": (1, 3, 64, 32)}) == {"x": (1, 3, 64, 32)}


def test_a_symbol_means_the_same_size_in_every_input() -> None:
    sound = TensorSpec("sound", ("batch", "length"), "float32")
    state = TensorSpec("state", (2, "batch", 128), "float32")
    mask = TensorSpec("mask", ("batch", "length"), "bool")
    found = inputs.resolve_shapes([sound, state, mask], 1, {"sound": (3, 512)})
    assert found == {"sound": (3, 512), "state": (2, 3, 128), "mask": (3, 512)}
    with pytest.raises(UserError, match=r"--shape square=1x<n> with"):
        inputs.resolve_shapes([TensorSpec("square", ("n", "n"), "float32")])


@pytest.mark.parametrize(
    ("given", "message"),
    [({"y": (1,)}, "no such input. It has x"), ({"x": (1, 4, 8, 8)}, "does not fit"),
     ({"x": (1, 3, 8)}, "does not fit")],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_refused(
    given: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        inputs.resolve_shapes([IMAGE], 1, given)


def test_a_batch_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="batch of 8 does not fit"):
        inputs.resolve_shapes([TensorSpec("x", (1, 3), "float32")], 8)


def test_the_ring_holds_different_values_and_never_zeros() -> None:
    feed = inputs.synthetic([TensorSpec("x", (1, 3, 8, 8), "float32")], {"x": (1, 3, 8, 8)})
    assert len(feed.ring) == 64
    assert len({feed["x"].tobytes() for feed in feed.ring}) == 64
    assert abs(feed.ring[0]["x"].std() - 1) < 0.2


def test_a_large_ring_is_kept_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST_BYTES", 10 * 3 * 32 * 32 * 4)
    feed = inputs.synthetic([TensorSpec("x", (), "float32")], {"x": (1, 3, 32, 32)})
    assert len(feed.ring) == 10
    assert sum(arrays["x"].nbytes for arrays in feed.ring) <= inputs.MOST_BYTES


def test_a_ring_of_images_takes_each_image_before_one_comes_again() -> None:
    images = np.arange(256, dtype=np.float32).reshape(256, 1, 1, 1)
    feed = inputs.from_images(TensorSpec("x", ("b", 1, 1, 1), "float16"), images, 4, "images")
    assert len(feed.ring) == 64
    assert sorted(np.concatenate([f["x"].ravel() for f in feed.ring])) == list(range(256))
    assert feed.ring[0]["x"].dtype == np.float16


def test_a_batch_of_images_is_no_larger_than_half_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, images = TensorSpec("x", ("b", 1, 1, 1), "float32"), np.ones((4, 1, 1, 1), np.float32)
    monkeypatch.setattr(inputs, "memory_limit", lambda: 800)
    monkeypatch.setattr(inputs, "MOST_BYTES", 400)
    with pytest.raises(UserError, match=r"4.04e-07 GB, more than half .* Give a smaller --batch"):
        inputs.from_images(spec, images, 101, "images")
    assert len(inputs.from_images(spec, images, 100, "images").ring) == 1


def test_arrays_of_the_users_own_are_checked(tmp_path: Path) -> None:
    spec = TensorSpec("x", ("batch", 2), "int64")
    np.savez(tmp_path / "good.npz", x=np.ones((3, 2), np.int64))
    feed = inputs.from_file(tmp_path / "good.npz", [spec])
    assert feed.shapes == {"x": (3, 2)}
    np.savez(tmp_path / "type.npz", x=np.ones((3, 2), np.float32))
    np.savez(tmp_path / "name.npz", y=np.ones((3, 2), np.int64))
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez(tmp_path / "pickle.npz", x=np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        archive.writestr("x", b"no array")
    for name, message in (
        ("bytes", "the model takes"), ("type", "is float32"), ("name", "no array 'x'"),
        ("bad", "not a readable"), ("pickle", "not a readable"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            inputs.from_file(tmp_path / f"{name}.npz", [spec])


def test_a_damaged_archive_is_one_message(tmp_path: Path) -> None:
    spec = TensorSpec("x", ("batch", 2), "float32")
    file = tmp_path / "a.npz"
    sized = "{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}"
    for header in (
        "{", "[[", "-" * 5000 + "1", "{'descr': '<f4', 'shape': (10**30,)}", "{[]: 1}",
        sized.format(10**12), sized.format(10**30),
    ):  # fmt: skip
        with zipfile.ZipFile(file, "w") as archive:
            length = len(header).to_bytes(2, "little")
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + length + header.encode())
        with pytest.raises(UserError, match="not a readable"):
            inputs.from_file(file, [spec])
    np.savez_compressed(file, x=np.random.default_rng(0).random((99, 2), np.float32))
    whole = file.read_bytes()
    entry = whole.rindex(b"PK\x01\x02")
    for place in (entry + 8, entry + 10, 100):  # flags (one means encrypted), method, the bytes
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with pytest.raises(UserError, match="not a readable"):
            inputs.from_file(file, [spec])


def test_arrays_are_no_larger_than_half_the_memory_and_others_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TensorSpec("x", ("batch", 2), "float32")
    large = np.zeros((1000, 2), np.float32)
    monkeypatch.setattr(inputs, "memory_limit", lambda: 10_000)
    np.savez_compressed(tmp_path / "large.npz", x=large)
    with pytest.raises(UserError, match=r"8.13e-06 GB, more than half .* Give smaller arrays"):
        inputs.from_file(tmp_path / "large.npz", [spec])
    np.savez_compressed(tmp_path / "other.npz", x=large[:3], other=large)
    assert inputs.from_file(tmp_path / "other.npz", [spec]).shapes == {"x": (3, 2)}


def test_a_batch_is_the_axis_that_is_called_so_and_not_the_length_before_it() -> None:
    state = [
        TensorSpec("x", ("T", "N", 4), "float32"), TensorSpec("h", (1, "N", 8), "float32"),
    ]  # fmt: skip
    with pytest.raises(UserError, match="--shape x=<T>x3x4 with"):
        inputs.resolve_shapes(state, 3)
    shapes = inputs.resolve_shapes(state, 3, {"x": (7, 3, 4)})
    assert shapes == {"x": (7, 3, 4), "h": (1, 3, 8)}
    assert inputs.synthetic(state, shapes).batch == 3
    fixed = [TensorSpec("x", (7, 2, 4), "float32"), TensorSpec("h", (1, 2, 8), "float32")]
    assert inputs.batch_of(fixed, inputs.resolve_shapes(fixed)) == 1
    assert inputs.batch_of([IMAGE], {"x": (5, 3, 8, 8)}) == 5
    assert inputs.batch_of([TensorSpec("x", (), "float32")], {"x": ()}) == 1


def test_a_batch_beside_shapes_that_hold_another_is_refused() -> None:
    inputs.check_batch([IMAGE], {"x": (4, 3, 8, 8)}, 4, "--shape")
    with pytest.raises(UserError, match=r"--batch 2 and --shape do not agree: .* a batch of 4"):
        inputs.check_batch([IMAGE], {"x": (4, 3, 8, 8)}, 2, "--shape")


def test_an_input_without_dimensions_gets_arrays() -> None:
    specs = [TensorSpec(k, (), k) for k in ("float32", "float16", "int64", "bool", "uint8")]
    feed = inputs.synthetic(specs, inputs.resolve_shapes(specs))
    for spec in specs:
        array = feed.ring[0][spec.name]
        assert isinstance(array, np.ndarray)
        assert (array.shape, str(array.dtype)) == ((), spec.dtype)
    assert feed.doubtful == ("int64",)


def test_an_input_of_unknown_rank_takes_the_shape_that_is_given() -> None:
    spec = TensorSpec("x", (), "float32", ranked=False)
    with pytest.raises(UserError, match="--shape x="):
        inputs.resolve_shapes([spec])
    assert inputs.resolve_shapes([spec], 1, {"x": (2, 3)}) == {"x": (2, 3)}


def test_floats_become_the_nearest_bfloat16(tmp_path: Path) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    values[:4] = (1 + 2**-8, 1 + 3 * 2**-8, np.nan, -np.inf)  # two ties
    spec = TensorSpec("x", (1000,), "bfloat16")
    np.savez(tmp_path / "floats.npz", x=values)
    np.savez(tmp_path / "bits.npz", x=values.astype(ml_dtypes.bfloat16))
    right = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    for name in ("floats", "bits"):
        found = inputs.from_file(tmp_path / f"{name}.npz", [spec]).ring[0]["x"]
        assert np.array_equal(np.delete(found, 2), np.delete(right, 2))
        assert np.isnan(found.view(ml_dtypes.bfloat16)[2])
