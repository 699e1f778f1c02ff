"""Files that are read without running what is in them, and files that are not what they seem."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.models.checkpoint_file import StandIn, read
from vcompress.compress.models.checkpoints import load_into

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


@pytest.fixture
def net(tiny_nets: Any) -> nn.Module:
    model: nn.Module = tiny_nets.batch(num_classes=4)
    return model


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    net: nn.Module, tmp_path: Path, legacy: bool
) -> None:
    target = tmp_path / "ran"
    content = {"state_dict": net.state_dict(), "extra": Evil(target)}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match="refused by torch's restricted loader") as caught:
        read(tmp_path / "c.pth")
    assert "torch.save(model.state_dict()" in str(caught.value)
    assert "system" in str(caught.value)
    assert not target.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(UserError):
        read(tmp_path / "plain.pth")
    assert not target.exists()


def test_a_whole_pickled_module_is_refused(net: nn.Module, tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "c.pth")
    with pytest.raises(UserError, match="save the weights alone"):
        read(tmp_path / "c.pth")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "nothing.pth")
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    for name, content, said in (
        ("empty.pth", b"", "an empty file"),
        ("text.pth", b"hello world\n", "neither an archive nor a pickle"),
        ("zip.pth", b"PK\x03\x04" + b"\0" * 90, "not all of it has arrived"),
        ("arrays.npz", (tmp_path / "arrays.npz").read_bytes(), "has not written (it holds a.npy)"),
        ("empty.safetensors", b"", ""), ("text.safetensors", b"hello world, no tensors", ""),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert name in str(caught.value) and said in str(caught.value)


def test_a_file_without_weights_says_what_it_has(net: nn.Module, tmp_path: Path) -> None:
    for content in ([1, 2], 5, {"epoch": 3}, {"state_dict": {}}, torch.ones(2)):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(UserError, match=r"odd\.pth: (holds a|no weights found)"):
            load_into(net, tmp_path / "odd.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_is_read_or_named_and_nothing_else(tmp_path: Path, legacy: bool) -> None:
    torch.save(
        {"model": {"fc.weight": torch.ones(3, 4)}, "args": argparse.Namespace(lr=1)},
        tmp_path / "whole.pth", _use_new_zipfile_serialization=not legacy,
    )  # fmt: skip
    content = (tmp_path / "whole.pth").read_bytes()
    rng, refused, file = random.Random(0), 0, tmp_path / "damaged.pth"
    for n in range(150):
        damaged = bytearray(content[: rng.randrange(1, len(content))] if n % 3 == 0 else content)
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            read(file)
        except UserError as error:
            assert "damaged.pth" in str(error)
            refused += 1
    assert refused > 50


class Phase(enum.Enum):
    WARM = 1


class Settings(dict[str, Any]):
    """As configurations are that give their keys as attributes."""


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = Path("a")


EXTRAS: dict[str, Any] = {
    "path": Path("/data/run"), "numpy array": np.ones((3, 2)), "numpy number": np.float64(0.5),
    "objects in an array": np.array([1, "a"], dtype=object),
    "numpy generator": np.random.default_rng(0),
    "date": datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc),
    "partial": functools.partial(max, 3), "defaultdict": collections.defaultdict(list, a=[1]),
    "enum": Phase.WARM, "enum as a key": {Phase.WARM: Path("x")},
    "namespace": argparse.Namespace(out=Path("x"), lr=0.1), "deque": collections.deque([1, 2]),
    "dictionary of a class": Settings(a=Settings(b=1)), "slots": Slotted(),
    "decimal": decimal.Decimal("0.1"), "a function": max, "frozen set": frozenset([1]),
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("extra", list(EXTRAS))
def test_tensors_are_read_beside_harmless_extras(tmp_path: Path, extra: str, legacy: bool) -> None:
    content = {"state_dict": {"w": torch.tensor([1.0, 2.0])}, "extra": EXTRAS[extra]}
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    assert read(tmp_path / "c.pth")["state_dict"]["w"].tolist() == [1.0, 2.0]


def test_a_state_dict_of_another_class_of_dictionary_is_one(net: nn.Module, tmp_path: Path) -> None:
    source = {k: v + 1 for k, v in net.state_dict().items()}
    for kind in (Settings, functools.partial(collections.defaultdict, None)):
        torch.save({"model": kind(source)}, tmp_path / "c.pth")
        assert load_into(net, tmp_path / "c.pth").key == "model"
        assert torch.equal(net.state_dict()["9.bias"], source["9.bias"])
        torch.save(kind(source), tmp_path / "c.pth")
        assert load_into(net, tmp_path / "c.pth").key is None


class Called:
    """Would be called with an argument when it is loaded."""

    calls = 0

    def __init__(self, by: int) -> None:
        Called.calls += 1

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return Called, (1,)

    def __setstate__(self, state: Any) -> None:
        Called.calls += 1


def test_a_class_of_the_file_is_never_made_though_it_is_imported(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "x": Called(1)}, tmp_path / "c.pth")
    before = Called.calls
    found = read(tmp_path / "c.pth")
    assert Called.calls == before
    assert isinstance(found["x"], StandIn)
    assert found["x"].kind == f"{__name__}.Called"


def test_a_file_that_names_very_many_classes_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    names = b"\x80\x02(" + b"".join(b"cmodule\nname_%d\n" % n for n in range(20_000)) + b"t."
    with zipfile.ZipFile(tmp_path / "zip.pth", "w") as archive:
        archive.writestr("c/data.pkl", names)
        archive.writestr("c/version", "3\n")
    head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
    (tmp_path / "old.pth").write_bytes(b"".join(head) + names)
    for name in ("zip.pth", "old.pth"):
        with pytest.raises(UserError, match="names 20,000 classes, expected 1,000 at most"):
            read(tmp_path / name)


def test_an_attribute_that_a_file_gives_its_dictionary_is_never_called(
    net: nn.Module, tmp_path: Path
) -> None:
    class Sets:
        def __reduce__(self) -> Any:
            kind = collections.OrderedDict
            return kind, (), {"items": kind}, None, iter(net.state_dict().items())

    torch.save(Sets(), tmp_path / "c.pth")
    again = read(tmp_path / "c.pth")
    assert again.items() == {}
    assert load_into(net, tmp_path / "c.pth").missing == ()


def test_builtins_that_run_code_are_not_called(tmp_path: Path) -> None:
    class Runs:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.call = function, arguments

        def __reduce__(self) -> Any:
            return self.call

    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    for call in (Runs(exec, code), Runs(eval, code), Runs(open, str(tmp_path / "ran"), "w")):
        torch.save({"w": torch.ones(1), "x": call}, tmp_path / "c.pth")
        assert read(tmp_path / "c.pth")["w"].tolist() == [1.0]
        assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
def test_files_of_other_kinds_are_named_for_what_they_are(net: nn.Module, tmp_path: Path) -> None:
    example = torch.zeros(2, 3, 8, 8)
    torch.jit.trace(net.eval(), example).save(tmp_path / "script.pth")
    torch.export.save(torch.export.export(net.eval(), (example,)), tmp_path / "program.pt2")
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    for name, content in (
        ("net.onnx", b"\x08\x0a\x12\x07pytorch"), ("renamed.pth", b"\x08\x0a\x12\x07pytorch"),
        ("net.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 90),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("page.pth", b"<!DOCTYPE html><html></html>"), ("packed.pth", b"\x1f\x8b" + b"\0" * 9),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    for name, said in (
        ("script.pth", "a TorchScript archive"), ("program.pt2", "torch.export"),
        ("net.keras", "a network of Keras"), ("net.onnx", "an ONNX file"),
        ("renamed.pth", "an ONNX file"), ("net.h5", "an HDF5 file"), ("lfs.pth", "git lfs pull"),
        ("page.pth", "a page of HTML"), ("packed.pth", "compressed by gzip"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert f"{name}: " in str(caught.value)
        assert said in str(caught.value)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1000, 1000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 10_000
    assert read(tmp_path / "plain.pth")["fc.weight"].shape == (1000, 1000)
    with pytest.raises(
        UserError, match=r"bytes that unpack to 4,00\d,\d{3}; torch.save compresses"
    ):
        read(tmp_path / "bomb.pth")


def test_safetensors_of_another_name_are_read_and_a_folder_names_its_file(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "weights.bin")
    assert read(tmp_path / "weights.bin")["w"].tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match=r"a folder; give the file in it, .*weights.bin"):
        read(tmp_path)
