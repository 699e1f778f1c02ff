"""For hostile_inputs.py: what an attempt is, how bytes are changed, what ONNX's own parser finds in
a file, and which files a process opens."""

from __future__ import annotations

import ctypes
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Attempt = Callable[[random.Random], bool]
"""Makes one input and reads it; whether it was taken. Raises UserError where it was refused."""


class Ambiguous(Exception):
    """It was taken, and should not have been."""


def stage(name: str) -> None:
    """Say whose code runs from here on."""
    print(f"# {name}", flush=True)


INTERESTING = (0, 1, 2, 127, 128, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1,
               2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
TOKENS = (
    b"../secret.bin", b"/etc/passwd", b"location", b"offset", b"length", b"_ORT_MEM_ADDR_", b"\0",
    b"\xff\xfe", b"weights.data", b"link.data", b"", b"-1", b"9" * 40, b"1e999", b"NaN", b"null",
    b"{", b"[" * 300, b'"' * 3, b"\xe2\x80\xae", b"%s%n", b"\n", b"inf", b"true", b"os:system",
)  # fmt: skip


def havoc(content: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """A copy with one to eight changes of the kinds that fuzzers make."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        size = len(data)
        at = rng.randrange(size + 1)
        span = min(rng.choice((1, 1, 2, 4, 8, 32, 256)), size - at)
        kind = rng.randrange(9)
        if kind == 0 and at < size:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < size:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice("<>")
            value = rng.choice(INTERESTING) % 2 ** (8 * width)
            packed = struct.pack(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[width], value)
            data[at : at + width] = packed
        elif kind == 3:
            del data[at : at + span]
        elif kind == 4:
            data[at:at] = data[at : at + span]
        elif kind == 5:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 6:
            token = rng.choice(TOKENS)
            data[at : at + len(token)] = token
        elif kind == 7 and other:
            start = rng.randrange(len(other))
            data[at : at + span] = other[start : start + rng.choice((span, 64, 1024))]
        elif kind == 8:
            del data[rng.randrange(size + 1) :]
    return bytes(data)


# The wire format of protobuf.
Field = tuple[int, int, Any]
"""Number, kind (0 varint, 1 and 5 fixed, 2 bytes), and the value: an int, or bytes."""
PLANTED: tuple[Field, ...] = (
    (14, 0, 1), (14, 0, 2**32 + 1), (14, 0, 2**64 - 1), (1, 0, 2**40), (2, 0, 2**32 + 1),
    (13, 2, b"\x0a\x08location\x12\x0d../secret.bin"), (13, 2, b"\x0a\x08location\x12\x00"),
    (13, 2, b"\x12\x0d../secret.bin\x0a\x08location"), (13, 2, b"\x0a\x06length\x12\x0299"),
    (13, 2, b"\x0a\x08location\x12\x0cweights.data\x12\x0d../secret.bin"),
    (8, 2, b"\x0a\x00\x10\x11"), (7, 2, b""), (22, 2, b"\x0a\x02\x10\x01"), (20, 2, b"\x0a\x00"),
    (5, 2, b"\x70\x01\x6a\x19\x0a\x08location\x12\x0d../secret.bin"), (25, 2, b"\x0a\x01f"),
)  # fmt: skip


def varint(value: int, padding: int = 0) -> bytes:
    """`padding` more bytes than it needs, which parsers take too."""
    value %= 2**70
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    for _ in range(padding):
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def fields(data: bytes) -> list[Field] | None:
    """The fields of a message; None where the bytes are none."""
    found: list[Field] = []
    at = 0

    def number() -> int | None:
        nonlocal at
        value = shift = 0
        while at < len(data) and shift < 64:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        return None

    while at < len(data):
        tag = number()
        if tag is None or not 0 < tag >> 3 < 2**29:
            return None
        kind = tag & 7
        if kind == 0:
            value: Any = number()
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
        elif kind == 2:
            length = number()
            if length is None or at + length > len(data):
                return None
            value, at = data[at : at + length], at + length
        else:
            return None
        if value is None or at > len(data):
            return None
        found.append((tag >> 3, kind, value))
    return found


def encode(message: Sequence[Field], rng: random.Random | None = None) -> bytes:
    """With `rng` one number is written in an unusual way."""
    odd = rng.randrange(len(message)) if rng and message else -1
    out = bytearray()
    for place, (number, kind, value) in enumerate(message):
        strange = rng.randrange(4) if rng and place == odd else -1
        tag = number << 3 | kind
        if strange == 0:
            tag |= 1 << rng.choice((32, 33, 35, 60))  # type: ignore[union-attr]
        out += varint(tag, 2 if strange == 1 else 0)
        if kind == 0:
            out += varint(value, 3 if strange == 2 else 0)
        elif kind == 2:
            length = len(value) + (2**32 if strange == 3 else 0)
            out += varint(length, 1 if strange == 2 else 0) + value
        else:
            out += value
    return bytes(out)


def changed_message(data: bytes, rng: random.Random) -> bytes:
    """A message in which one field, at any depth, is another; the lengths around it are right."""
    found = fields(data)
    if not found:
        return data + encode([rng.choice(PLANTED)])
    place = rng.randrange(len(found))
    number, kind, value = found[place]
    inner = fields(value) if kind == 2 and len(value) > 1 else None
    if inner and rng.random() < 0.85:
        found[place] = (number, kind, changed_message(value, rng))
        return encode(found)
    what = rng.randrange(8)
    if what == 0:
        del found[place]
    elif what == 1:
        found.insert(rng.randrange(len(found) + 1), found[place])
    elif what == 2:
        found.insert(rng.randrange(len(found) + 1), rng.choice(PLANTED))
    elif what == 3:
        rng.shuffle(found)
    elif what == 4:
        found[place] = (rng.choice((number, rng.randrange(1, 30))), kind, value)
    elif what == 5:
        return encode(found, rng)
    elif kind == 0:
        found[place] = (number, 0, rng.choice(INTERESTING))
    elif kind == 2:
        found[place] = (number, 2, rng.choice((rng.choice(TOKENS), havoc(value, rng))))
    return encode(found)


def by_onnx(model: Any) -> tuple[Counter[str], set[str]]:
    """Operators, and names of other files, that the `onnx` package sees in a model."""
    import onnx

    operators: Counter[str] = Counter()
    places: set[str] = set()

    def text(value: str | bytes) -> str:
        """Protobuf gives bytes where they are no UTF-8."""
        return value if isinstance(value, str) else value.decode("utf-8", "replace")

    def graphs(graph: Any) -> None:
        for node in graph.node:
            one(node)
        for tensor in graph.initializer:
            held(tensor)
        for sparse in graph.sparse_initializer:
            held(sparse.values)
            held(sparse.indices)

    def one(node: Any) -> None:
        domain = f"{text(node.domain)}." if node.domain else ""
        operators[f"{domain}{text(node.op_type)}"] += 1
        for attribute in node.attribute:
            of(attribute)

    def of(attribute: Any) -> None:
        for tensor in (attribute.t, *attribute.tensors):
            held(tensor)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            held(sparse.values)
            held(sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            graphs(graph)

    def held(tensor: Any) -> None:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found = {text(e.key): text(e.value) for e in tensor.external_data}
            places.add(found.get("location", ""))

    graphs(model.graph)
    for function in model.functions:
        for node in function.node:
            one(node)
        for attribute in function.attribute_proto:
            of(attribute)
    for info in model.training_info:
        graphs(info.initialization)
        graphs(info.algorithm)
    return operators, places


class Opened:
    """Names of the files that anybody opens in some folders, by Linux's inotify."""

    def __init__(self, *folders: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        in_open = 0x20
        for folder in folders:
            if self._libc.inotify_add_watch(self._file, bytes(folder), in_open) < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def names(self) -> set[str]:
        """Those that were opened since the last call."""
        return set(self._read())

    def _read(self) -> Iterator[str]:
        while True:
            try:
                data = os.read(self._file, 65536)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                length = struct.unpack_from("iIII", data, at)[3]
                yield os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0"))
                at += 16 + length
