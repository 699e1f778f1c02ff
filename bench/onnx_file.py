"""Read what an ONNX file says about itself, without the onnx package and without running it.

A reader of the protobuf wire format, for the few fields that a benchmark reports or must check
before a runtime sees the file: opsets, operators, the types of the weights, external data.
https://protobuf.dev/programming-guides/encoding and onnx.proto give the field numbers.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .errors import UserError

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    8: "string", 9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64",
    14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
    24: "float8e8m0", 25: "uint2", 26: "int2",
}  # fmt: skip
BITS = {
    "float64": 64, "int64": 64, "uint64": 64, "complex64": 64, "complex128": 128, "float32": 32,
    "int32": 32, "uint32": 32, "float16": 16, "bfloat16": 16, "int16": 16, "uint16": 16,
    "int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2,
}  # fmt: skip
MOST_DIMENSIONS = 64  # of a tensor: the product of a million takes minutes
MOST_FIELDS = 5_000_000  # of the whole file: 250,000 nodes, and some ten seconds
DEEPEST = 32  # subgraphs in subgraphs: a corrupt file must not exhaust the stack


@dataclass(frozen=True)
class External:
    """A tensor whose bytes lie in another file."""

    tensor: str
    location: str
    offset: str = ""
    """Decimal digits; empty: from the start."""
    length: str = ""
    """Decimal digits; empty: what the tensor needs."""


@dataclass(frozen=True)
class OnnxFacts:
    """What the file says, not what a runtime makes of it."""

    ir_version: int
    producer: str
    opsets: dict[str, int]
    operators: dict[str, int]
    """How often each operator stands in the graph, subgraphs and functions included."""
    weight_bytes: dict[str, int]
    """Bytes of the constant tensors by type."""
    external: tuple[External, ...]
    int8_reach: int = 0
    """Largest magnitude in the int8 tensors: 63 says 7-bit weights. 0 where there are none."""
    unranked: tuple[str, ...] = ()
    """Inputs and outputs that do not say how many dimensions they have."""

    @property
    def precision(self) -> str:
        """The type that holds most of the weights, counted in elements, such as int8."""
        held = {
            t: size * 8 / BITS.get(t, 8) for t, size in self.weight_bytes.items() if t != "string"
        }
        return max(held, key=lambda t: held[t]) if held else "none"


class _Broken(Exception):
    """The bytes do not follow the wire format, or take too long to read."""


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at  # as the parsers of all runtimes cut it
        shift += 7
    raise _Broken


def _int32(value: int) -> int:
    """A number that the format has 32 bits for. One that needs more is refused: C++ takes 2**32 + 1
    for 1, others do not."""
    if 2**31 <= value < 2**64 - 2**31:
        raise _Broken
    return value


def _text(data: memoryview, start: int, end: int) -> str:
    return bytes(data[start:end]).decode("utf-8", "replace")


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.operators: Counter[str] = Counter()
        self.weight_bytes: Counter[str] = Counter()
        self.external: list[External] = []
        self.int8_reach = 0
        self.unranked: list[str] = []
        self.left = MOST_FIELDS

    def fields(
        self, at: int, end: int, integers: Collection[int] = (), packed: int = 0
    ) -> Iterator[tuple[int, int, int, int]]:
        """(field number, integer value, start, end of the bytes) of a message.

        Args:
            integers: fields that are numbers; all others are bytes. One of the other kind is
                unknown to the parsers, and left out here too.
            packed: the one of them that may be several numbers in bytes.
        """
        data = self.data
        while at < end:
            self.left -= 1
            if self.left < 0:
                raise _Broken(f"it holds more than {MOST_FIELDS:,} fields")
            tag, at = _varint(data, at, end)
            if tag > 0xFFFF_FFFF:  # C++ cuts it to 32 bits, and reads another field
                raise _Broken
            number, wire = tag >> 3, tag & 7
            value, start, stop = 0, at, at
            if wire == 0:
                value, at = _varint(data, at, end)
            elif wire == 1:
                at = stop = at + 8
            elif wire == 5:
                at = stop = at + 4
            elif wire == 2:
                length, start = _varint(data, at, end)
                length = _int32(length)
                at = stop = start + length
            else:
                raise _Broken
            if at > end or number == 0:
                raise _Broken
            if wire == (0 if number in integers else 2) or (wire == 2 and number == packed):
                yield number, value, start, stop

    def tensor(self, start: int, end: int) -> None:
        data, dtype, name, entries, outside = self.data, 0, "", dict[str, str](), False
        dims: list[int] = []
        raw: tuple[int, int] | None = None
        for number, value, a, b in self.fields(start, end, (1, 2, 14), packed=1):
            if len(dims) > MOST_DIMENSIONS:
                raise _Broken
            if number == 1 and a == b:
                dims.append(value)
            elif number == 1:  # packed
                while a < b and len(dims) <= MOST_DIMENSIONS:
                    size, a = _varint(data, a, b)
                    dims.append(size)
            elif number == 2:
                dtype = _int32(value)
            elif number == 8:
                name = _text(data, a, b)
            elif number == 9:
                raw = a, b
            elif number == 13:
                key = content = ""
                for n, _, c, d in self.fields(a, b):
                    if n == 1:
                        key = _text(data, c, d)
                    elif n == 2:
                        content = _text(data, c, d)
                if key in entries:  # one reader takes the first, another the last
                    raise _Broken
                entries[key] = content
            elif number == 14:
                outside = _int32(value) == 1
        if len(dims) > MOST_DIMENSIONS:
            raise _Broken
        kind = DTYPES.get(dtype, f"type {dtype}")
        elements: int = prod(dims, start=1)
        self.weight_bytes[kind] += (elements * BITS.get(kind, 8) + 7) // 8
        if kind == "int8" and all(dims):
            self.int8_reach = max(self.int8_reach, self._reach(raw))
        if outside or entries:
            where = (entries.get(key, "") for key in ("location", "offset", "length"))
            self.external.append(External(name, *where))

    def _reach(self, raw: tuple[int, int] | None) -> int:
        """Largest magnitude of int8 values; the most there can be where they lie elsewhere."""
        if raw is None or raw[0] == raw[1]:
            return 128
        import numpy as np

        values = np.frombuffer(self.data[slice(*raw)], np.int8)
        return max(int(values.max()), -int(values.min()))

    def graph(self, start: int, end: int, depth: int) -> None:
        if depth > DEEPEST:
            raise _Broken
        for number, _, a, b in self.fields(start, end):
            if number == 1:
                self.node(a, b, depth)
            elif number == 5:
                self.tensor(a, b)
            elif number in (11, 12) and depth == 0:
                self.value(a, b)
            elif number == 15:
                self.sparse_tensor(a, b)

    def sparse_tensor(self, start: int, end: int) -> None:
        for number, _, a, b in self.fields(start, end):
            if number in (1, 2):  # values, indices
                self.tensor(a, b)

    def value(self, start: int, end: int) -> None:
        """An input or an output: its name, and whether its tensor type has a shape."""
        name, shaped = "", True
        for number, _, a, b in self.fields(start, end):
            if number == 1:
                name = _text(self.data, a, b)
            elif number == 2:
                for n, _, c, d in self.fields(a, b):
                    if n == 1:  # of a tensor; sequences and maps have no shape of their own
                        shaped = any(field == 2 for field, *_ in self.fields(c, d))
        if not shaped:
            self.unranked.append(name)

    def node(self, start: int, end: int, depth: int) -> None:
        operator = domain = ""
        for number, _, a, b in self.fields(start, end):
            if number == 4:
                operator = _text(self.data, a, b)
            elif number == 7:
                domain = _text(self.data, a, b)
            elif number == 5:
                self.attribute(a, b, depth)
        self.operators[f"{domain}.{operator}" if domain else operator] += 1

    def attribute(self, start: int, end: int, depth: int) -> None:
        for number, _, a, b in self.fields(start, end):
            if number in (5, 10):
                self.tensor(a, b)
            elif number in (6, 11):
                self.graph(a, b, depth + 1)
            elif number in (22, 23):
                self.sparse_tensor(a, b)


def is_onnx(path: Path) -> bool:
    """Whether the file's ending is that of ONNX models, in any case of its letters."""
    return path.suffix.lower() == ".onnx"


def read(path: str | Path, content: bytes | None = None) -> OnnxFacts:
    """What an ONNX file holds. Raises `UserError` where the bytes are not those of a model.

    Args:
        content: the bytes of the file where they were read before; `path` then stands in messages.
    """
    path = Path(path)
    if content is not None:
        return _facts(path, memoryview(content), len(content))
    size = path.stat().st_size if path.is_file() else 0
    if size == 0:
        raise UserError(f"{path}: an empty file or none. Expected an ONNX model.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data = memoryview(mapped)
        try:
            return _facts(path, data, size)
        finally:
            data.release()


def _facts(path: Path, data: memoryview, size: int) -> OnnxFacts:
    try:
        return _read(data, size)
    except _Broken as broken:
        why = str(broken) or "it is cut off, damaged or of another kind"
        raise UserError(
            f"{path} ({size} bytes) is not a whole ONNX file: {why}. Export or copy it again."
        ) from None


def _read(data: memoryview, size: int) -> OnnxFacts:
    reader, ir_version, producer, opsets, graphs = _Reader(data), 0, "", {}, 0
    for number, value, a, b in reader.fields(0, size, (1,)):
        if number == 1:
            ir_version = value
        elif number in (2, 3) and a < b:
            producer = f"{producer} {_text(data, a, b)}".strip()
        elif number == 7:
            graphs += 1
            reader.graph(a, b, 0)
        elif number == 8:
            domain, version = "", 0
            for n, v, c, d in reader.fields(a, b, (2,)):
                if n == 1:
                    domain = _text(data, c, d)
                elif n == 2:
                    version = v
            opsets[domain or "ai.onnx"] = version
        elif number == 25:
            for n, _, c, d in reader.fields(a, b):
                if n == 7:
                    reader.node(c, d, 1)
                elif n == 11:  # the values of attributes that a node leaves out
                    reader.attribute(c, d, 1)
        elif number == 20:  # graphs that train it
            for n, _, c, d in reader.fields(a, b):
                if n in (1, 2):
                    reader.graph(c, d, 1)
    if not graphs or not opsets:
        raise _Broken
    return OnnxFacts(
        ir_version=ir_version, producer=producer, opsets=opsets,
        operators=dict(reader.operators.most_common()),
        weight_bytes=dict(reader.weight_bytes.most_common()), external=tuple(reader.external),
        int8_reach=reader.int8_reach, unranked=tuple(reader.unranked),
    )  # fmt: skip


def check_external(path: str | Path, facts: OnnxFacts) -> tuple[Path, ...]:
    """The files beside the model that hold its tensors, as they are without links.

    A model from elsewhere must not name files of ours: a location that leaves the model's folder,
    also by a link, raises `UserError`, and so does one that is missing. A model and its weights
    that are links into one folder, as a cache of downloads has them, are taken.
    """
    path = Path(path)
    try:
        found: dict[str, tuple[Path, int]] = {}
        for item in facts.external:  # thousands of tensors may lie in one file
            if item.location not in found:
                target = _located(path, item)
                found[item.location] = target, target.stat().st_size
            _check_span(path, item, found[item.location][1])
    except (OSError, RuntimeError) as error:  # a name that is too long, a circle of links
        raise UserError(f"{path}: its external data cannot be found ({error}).") from None
    return tuple(dict.fromkeys(target for target, _ in found.values()))


def _pointer(path: Path, item: External) -> str:
    return f"{path}: the tensor {item.tensor[:200]!r} points to {item.location[:200]!r}"


def _located(path: Path, item: External) -> Path:
    folder, real = path.parent.resolve(), path.resolve()
    where = _pointer(path, item)
    if "\0" in item.location:
        raise UserError(f"{where}, which no file can be called. Export the model again.")
    if "_MEM_ADDR_" in item.location.upper() or "\ufffd" in item.location:
        raise UserError(f"{where}, which is no file's name but an address. It is not read.")
    beside = folder / item.location
    inside = not Path(item.location).is_absolute() and ".." not in Path(item.location).parts
    target = beside.resolve()
    # Where the model is a link the weights may be one as well, into the same folder.
    roots = (folder, real.parent) if path.is_symlink() and beside.is_symlink() else (folder,)
    if not item.location or not inside or not any(target.is_relative_to(root) for root in roots):
        raise UserError(
            f"{where}, outside the model's folder. Expected a file below {folder}; a model is not "
            "read that names others."
        )
    if not target.is_file():
        raise UserError(
            f"{path}: the tensor {item.tensor[:200]!r} lies in {item.location[:200]!r}, which is "
            f"missing. Copy that file to {_shown(beside)}."
        )
    # One runtime looks beside the link, another beside the file that it leads to.
    other = (real.parent / item.location).resolve()
    if target.samefile(real) or (other.exists() and not other.samefile(target)):
        raise UserError(f"{where}, which runtimes read in different ways. Export the model again.")
    return target


def _check_span(path: Path, item: External, size: int) -> None:
    """Raise a UserError where the tensor does not lie within the `size` bytes of its file."""
    for number in (item.offset, item.length):
        if number and not re.fullmatch("[0-9]{1,19}", number):
            raise UserError(
                f"{_pointer(path, item)} at {number[:40]!r}, which is no number of bytes."
            )
    if int(item.offset or 0) + int(item.length or 0) > size:
        raise UserError(f"{_pointer(path, item)} beyond that file's end. Copy the file again.")


def _shown(path: Path) -> str:
    text = str(path)
    return text if text.isprintable() else repr(text)


def files_of(path: Path) -> tuple[Path, ...]:
    """The model and the files beside it that a runtime reads with it, where they can be told."""
    beside: tuple[Path, ...] = ()
    if is_onnx(path):
        with suppress(UserError, OSError):
            beside = check_external(path, read(path))
    elif path.suffix.lower() == ".xml":
        beside = (path.with_suffix(".bin"),)
    return path, *beside


def _emit(number: int, content: int | bytes | str) -> bytes:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def identity_model() -> bytes:
    """An ONNX file of one Identity on one float32: what is left is the harness and the runtime."""
    shape = _emit(2, _emit(1, _emit(1, 1)))
    value = _emit(2, _emit(1, _emit(1, 1) + shape))
    node = _emit(1, "x") + _emit(2, "y") + _emit(4, "Identity")
    graph = _emit(1, node) + _emit(2, "identity")
    graph += _emit(11, _emit(1, "x") + value) + _emit(12, _emit(1, "y") + value)
    return _emit(1, 8) + _emit(7, graph) + _emit(8, _emit(1, "") + _emit(2, 17))


def chain_model(side: int = 192, length: int = 4) -> bytes:
    """An ONNX file of alternating matrix products and tanh on [side, side] float32.

    It has no weights, and the tanh keeps the values bounded: about a millisecond of honest work.
    """
    dims = _emit(1, _emit(1, side)) * 2
    value = _emit(2, _emit(1, _emit(1, 1) + _emit(2, dims)))
    graph, last = b"", "x"
    for i in range(length):
        product = _emit(1, last) + _emit(1, "x") + _emit(2, f"p{i}") + _emit(4, "MatMul")
        bounded = "y" if i == length - 1 else f"t{i}"
        tanh = _emit(1, f"p{i}") + _emit(2, bounded) + _emit(4, "Tanh")
        graph += _emit(1, product) + _emit(1, tanh)
        last = bounded
    graph += _emit(2, "chain") + _emit(11, _emit(1, "x") + value) + _emit(12, _emit(1, "y") + value)
    return _emit(1, 8) + _emit(7, graph) + _emit(8, _emit(1, "") + _emit(2, 17))
