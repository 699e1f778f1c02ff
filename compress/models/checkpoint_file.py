"""What a checkpoint file holds, read by torch's restricted loader; no code of the file's runs.

Training scripts put more beside the weights than tensors: paths, dates, parsed arguments, numpy
arrays, configurations. A stand-in that does nothing takes the place of each such class.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from vcompress.bench.errors import UserError

from .changes import load_tensors

_SAVE = "torch.save(model.state_dict(), 'weights.pth')"
_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes them; load it into a network of PyTorch "
    f"and save that: {_SAVE}",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; run git lfs pull",
    b"GGUF": f"a GGUF file of language models; expected the weights of a vision network: {_SAVE}",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"<": "a page of HTML or XML, such as a download that was refused; download it again",
}
_ARCHIVES = {
    "constants.pkl": "a TorchScript archive; where it was made, save the weights alone: "
    "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')",
    "archive_format": "a program of torch.export (.pt2); save its weights alone: "
    "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')",
    "serialized_exported_program.json": "a program of torch.export; save its weights alone: "
    "torch.save(torch.export.load(FILE).state_dict, 'weights.pth')",
    "model.weights.h5": f"a network of Keras; save one of PyTorch: {_SAVE}",
}
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_OLD_PICKLES = 4
"""A file of the old format is so many pickles before its tensors: magic number, version, system,
content."""
_MOST_KINDS = 1000
"""Largest number of classes that a file may name: torch's loader looks through all of them at each
name, so that a megabyte of names would keep it busy for hours."""


class _Kind(type):
    """The class of stand-ins, which torch's loader takes for dictionaries: only those get items."""

    def __eq__(cls, other: object) -> bool:
        return cls is other or other is OrderedDict

    def __hash__(cls) -> int:
        return id(cls)


class StandIn(list[Any], metaclass=_Kind):
    """An object of a class that is not loaded: it takes whatever the file gives it and does
    nothing. What was set by key is kept, since a state_dict may be a dictionary of another class.
    """

    kind = "object"

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.items: dict[Any, Any] = {}

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        made = super().__new__(cls)
        made.items = {}
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __setstate__(self, state: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def read(path: Path) -> Mapping[Any, Any]:
    """The content of a checkpoint: named tensors, or dictionaries that hold them somewhere.

    Raises:
        UserError: no such file, a file of another kind, or one that torch's restricted loader
            refuses.
    """
    if path.is_dir():
        inside = next((file.name for end in _SUFFIXES for file in path.glob(f"*{end}")), None)
        said = f"give the file in it, {path / inside}" if inside else "expected a checkpoint's file"
        raise UserError(f"{path}: a folder; {said}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected a .safetensors or a .pth checkpoint.")
    if path.suffix == ".safetensors" or _is_safetensors(path):
        return load_tensors(path)
    if (kind := _other_kind(path)) is not None:
        raise UserError(f"{path}: {kind}.")
    kinds = _kinds(path)
    if len(kinds) > _MOST_KINDS:
        raise UserError(
            f"{path}: names {len(kinds):,} classes, expected {_MOST_KINDS:,} at most. Where it was "
            f"made, save the weights alone: {_SAVE}."
        )
    stand_ins: list[Any] = [
        (type("StandIn", (StandIn,), {"kind": kind}), kind) for kind in sorted(kinds)
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused by torch's restricted loader: {_reason(error)}. Where it was made, "
            f"save the weights alone: {_SAVE}."
        ) from None
    except Exception as error:  # a damaged file makes the loader stumble in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a checkpoint that torch can read ({reason}).") from None
    if isinstance(content, (list, tuple)) and not isinstance(content, StandIn):
        content = dict(enumerate(content))
    if isinstance(content, StandIn):
        if not content.items:
            raise UserError(
                f"{path}: holds a whole object of the class {content.kind}, which only its code "
                f"can load. Where it was made, save the weights alone: {_SAVE}."
            )
        content = content.items
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected named tensors.")
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether a file of another name is one: the size of a header of JSON, and that header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size


def _other_kind(path: Path) -> str | None:
    """What the file is instead of a checkpoint, and what to do; None where it may be one."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except Exception:  # the table at the end of an archive is not there
            return "damaged, or not all of it has arrived; copy or download it again"
        names = {entry.filename.rpartition("/")[2] for entry in entries}
        said = next((said for name, said in _ARCHIVES.items() if name in names), None)
        unpacked = sum(entry.file_size for entry in entries)
        if said is None and "data.pkl" not in names:
            some = ", ".join(sorted(names)[:3]) or "nothing"
            said = (
                f"an archive that torch.save has not written (it holds {some}); expected the "
                f"weights: {_SAVE}"
            )
        if said is None and unpacked > path.stat().st_size:  # a megabyte may hold a gigabyte
            said = (
                f"{path.stat().st_size:,} bytes that unpack to {unpacked:,}; torch.save compresses "
                f"nothing. Where it was made, save it again: {_SAVE}"
            )
        return said
    if path.suffix == ".onnx" or (start[:1] == b"\x08" and start[2:3] == b"\x12"):
        return (
            "an ONNX file, which is measured as it is (vbench) and cannot be trained; give the "
            f"checkpoint that it was exported from: {_SAVE}"
        )
    if not start:
        return "an empty file; copy or download it again"
    said = next((said for magic, said in _MAGIC.items() if start.startswith(magic)), None)
    if said is None and start[:1] != _PICKLE and b"ustar" not in start:
        said = f"neither an archive nor a pickle, as torch.save writes them: {_SAVE}"
    return said


def _kinds(path: Path) -> set[str]:
    """The classes and functions that the file's pickles name; torch takes those that it allows
    before any stand-in."""
    found: set[str] = set()
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                with zipfile.ZipFile(file) as archive:
                    names = archive.namelist()
                    name = next(n for n in names if n.rpartition("/")[2] == "data.pkl")
                    found |= _globals(archive.open(name))
            else:
                file.seek(0)
                for _ in range(_OLD_PICKLES):
                    found |= _globals(file)
    except Exception:  # damaged, or no pickle at all: the loader says so
        pass
    return found


def _globals(file: IO[bytes]) -> set[str]:
    """Names `module.class` that the next pickle of `file` asks for, as torch spells them."""
    found = set()
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            old = (module, name)
            module, name = _compat_pickle.NAME_MAPPING.get(old, old)
            if (module, name) == old:
                module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            found.add(f"{module}.{name}")
    return found


def _reason(error: Exception) -> str:
    """The line of torch's long message that names what was refused."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = ("global", "unsupported", "can only", "trying to")
    named = next((line for line in lines if any(word in line.lower() for word in said)), lines[0])
    return named.split(". Please")[0].rstrip(".")[:200]
