"""Ways to change a bundle or an archive, by accident or on purpose. For test_hostile.py."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import archive
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.errors import UserError

Mutate = Callable[[Path, random.Random], str]
"""Changes the bundle's folder, or the archive; returns what was done."""

# By accident: any byte of any file, with no hash changed along.


def any_file(folder: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size))


def flip(content: bytes, rng: random.Random) -> bytes:
    place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def flip_a_bit(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    file.write_bytes(flip(file.read_bytes(), rng))
    return f"flip {file.name}"


def cut(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    os.truncate(file, rng.choice([0, rng.randrange(file.stat().st_size)]))
    return f"cut {file.name}"


def grow(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    with file.open("ab") as stream:
        stream.write(rng.randbytes(rng.choice([1, 512, 10_000])))
    return f"grow {file.name}"


def overwrite(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    content = bytearray(file.read_bytes())
    start = rng.randrange(len(content))
    length = min(rng.choice([4, 64, 4096]), len(content) - start)
    content[start : start + length] = bytes(
        b ^ rng.randrange(1, 256) for b in content[start:][:length]
    )
    file.write_bytes(content)
    return f"overwrite {file.name}"


def swap(folder: Path, rng: random.Random) -> str:
    one, two = rng.sample(sorted(p for p in folder.rglob("*") if p.is_file()), 2)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    return f"swap {one.name} {two.name}"


def remove(folder: Path, rng: random.Random) -> str:
    # Without its signature a bundle is whole, but not signed: that is for --key to find.
    file = rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".sig"])
    file.unlink()
    return f"remove {file.name}"


def add(folder: Path, rng: random.Random) -> str:
    name = rng.choice(["x", ".hidden", "notes/x", "engines/a.engine", "MANIFEST.json"])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(rng.randbytes(10))
    return f"add {name}"


def replace_by_a_link(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    outside = folder.parent / "same-content"
    file.rename(outside)
    file.symlink_to(outside)
    return f"link {file.name}"


def replace_by_something_else(folder: Path, rng: random.Random) -> str:
    file = any_file(folder, rng)
    file.unlink()
    kind = rng.choice(["folder", "pipe", "dangling link", "endless device"])
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "endless device" else "/nowhere/at/all")
    return f"{kind} for {file.name}"


# On purpose: the manifest and its hash changed together.

NAMES = [
    "../evil", "../../evil", "/tmp/evil", "a/../../evil", "..", ".", "", "a\0b", "..\\evil",
    "C:\\evil", "c:evil", "a//b", "./a", "a/", "manifest.json", "Manifest.Json", "manifest.sig",
    "x\n", "\u202ex", "con.", " a", "x" * 5000, "model.onnx/a", "MODEL.ONNX",
    "weights.safetensors/../../evil", "\ud800",
]  # fmt: skip
NUMBERS = [
    -1, 2**31, 2**63, 2**64, 10**400, -(10**400), 1e308, 0.5, 1e-300, True, False, None, "1",
    "9" * 4000, [], {}, [[]],
]  # fmt: skip
TYPES: list[Any] = [None, True, 1, -1.5, "x", [], {}, [1], {"a": 1}, [None], [[1]], "\0"]
TEXTS = [
    '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000, "[" * 50_000 + "]" * 50_000, "", " ", "null",
    "[]", "1", "NaN", '"x"', "{", '{"format": "vcompress-bundle"}', "\ufeff{}", "{}{}",
    '{"format": "vcompress-bundle", "schema_version": 1}', "{'a': 1}", '{"a": 1,}', "// x\n{}",
    '{"' + "k" * 10**6 + '": 1}', '{"a": ' + "9" * 10**6 + "}", '{"a": 1e99999}',
    '{"a": -Infinity}',
]  # fmt: skip


def reseal(folder: Path, text: str | bytes) -> None:
    content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.sha256").write_bytes(seal_of(content))


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value that the schema fixes, outside the history."""
    yield path
    if path and path[0] in ("history", "data"):
        return
    for key in (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield from leaves(value[key], (*path, key))


def put(manifest: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return manifest


def name_hostile_files(folder: Path, rng: random.Random) -> str:
    manifest = manifest_of(folder)
    name = rng.choice(NAMES)
    content = b"evil"
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    reseal(folder, json.dumps(manifest))
    (folder.parent / "evil").write_bytes(content)
    return f"name {name[:30]!r}"


def say_huge_numbers(folder: Path, rng: random.Random) -> str:
    manifest = manifest_of(folder)
    fixed = [
        ("schema_version",), ("files", "model.onnx", "bytes"), ("files", "model.onnx", "sha256"),
        ("input", "shape", rng.randrange(3)), ("preprocess", "size", rng.randrange(2)),
        ("preprocess", "std", 0), ("input", "shape"), ("preprocess", "mean"),
    ]  # fmt: skip
    path, number = rng.choice(fixed), rng.choice(NUMBERS)
    if path[-1] == "schema_version" and number is True:
        number = 2
    if (
        path == ("preprocess", "std", 0)
        and isinstance(number, (int, float))
        and number not in (True, False)
    ):
        number = -abs(number)  # a positive one is a preprocessing, if an odd one
    reseal(folder, json.dumps(put(manifest, path, number)))
    return f"{'.'.join(map(str, path))} = {str(number)[:20]}"


def say_other_types(folder: Path, rng: random.Random) -> str:
    manifest = manifest_of(folder)
    path = rng.choice([p for p in leaves(manifest) if p not in ((), ("data",), ("task",))])
    before = manifest
    for key in path:
        before = before[key]
    wrong = [v for v in TYPES if json.dumps(type(v).__name__) != json.dumps(type(before).__name__)]
    # These are values that the schema has room for.
    taken = {
        ("preprocess", "resize"): (int,), ("preprocess", "mean"): (list,), ("labels",): (list,),
        ("files",): (dict,), ("history",): (list,),
    }.get(path, ())  # fmt: skip
    wrong = [v for v in wrong if type(v) not in taken]
    if path[:1] == ("preprocess",) and path[-1] != "size":
        wrong = [v for v in wrong if isinstance(v, (str, dict))]
    value = rng.choice(wrong)
    reseal(folder, json.dumps(put(manifest, path, value)))
    return f"{'.'.join(map(str, path))} = {value!r}"


def say_other_types_in_the_history(folder: Path, rng: random.Random) -> str:
    manifest = manifest_of(folder)
    entry = manifest["history"][0]
    entry["metrics"] = {
        "test": {"n": 4, "correct": 3, "top1": 0.75, "interval": [0.2, 0.9]}, "parameters": 1,
        "macs": 1, "onnx_bytes": 1,
        "latency": {"median_ms": 1.0, "low_ms": 1.0, "high_ms": 1.0, "batch": 1, "threads": 1,
                    "steady": True, "provider": "p", "cpu": "c"},
    }  # fmt: skip
    texts, numbers, tables = TYPES[:4] + TYPES[5:-1], ["x", [], {}, [1], "\0", [None]], TYPES[1:5]
    wrong: dict[tuple[str, ...], list[Any]] = {
        ("stage",): texts, ("model",): texts, ("versions",): [*tables, [1]], ("config",): tables,
        ("inputs",): [*tables, {"a": 1}, [1]], ("details",): tables, ("seconds",): numbers,
        ("licences",): [*tables, {"data": 1}], ("metrics",): [*tables, [], {}, {"a": 1}],
        ("metrics", "test"): [*tables, [], {}], ("metrics", "macs"): [*numbers, -1, 10**400, 0.5],
        ("metrics", "onnx_bytes"): [0, -1, 2**63, None, True], ("metrics", "latency"): [{}, "x"],
        ("metrics", "latency", "median_ms"): [*numbers, None, True, 0, -1, 10**400, 1e308],
        ("metrics", "test", "interval"): [[], [1], [1, 2, 3], "ab", ["a", "b"]],
        ("metrics", "test", "top1"): [*numbers, None, True, 10**400],
    }  # fmt: skip
    path = rng.choice(list(wrong))
    value = rng.choice(wrong[path])
    reseal(folder, json.dumps(put(manifest, ("history", 0, *path), value)))
    return f"history.{'.'.join(path)} = {str(value)[:20]!r}"


def take_or_add_keys(folder: Path, rng: random.Random) -> str:
    manifest = manifest_of(folder)
    tables = [manifest, manifest["input"], manifest["files"]["model.onnx"]]
    needed = [["format", "schema_version", "input", "preprocess", "labels", "files"],
              ["name", "shape"], ["sha256", "bytes"]]  # fmt: skip
    number = rng.randrange(3)
    if rng.random() < 0.5:
        key = rng.choice(needed[number])
        del tables[number][key]
    else:
        key = rng.choice(["__class__", "extra", "labls", ""])
        tables[number][key] = rng.choice(TYPES)
    reseal(folder, json.dumps(manifest))
    return f"key {key!r}"


def write_other_text(folder: Path, rng: random.Random) -> str:
    text = rng.choice(TEXTS)
    reseal(folder, text)
    return f"text {text[:20]!r}"


def break_the_text(folder: Path, rng: random.Random) -> str:
    content = (folder / "manifest.json").read_bytes()
    kind = rng.choice(["double key", "not a number", "not utf-8", "cut", "trailing", "nul", "deep"])
    changed = {
        "double key": content.replace(b'"task"', b'"task": "x", "task"', 1),
        "not a number": content.replace(b'"seconds": 1', b'"seconds": NaN', 1).replace(
            b'"stage"', b'"loss": NaN, "stage"', 1
        ),
        "not utf-8": content.replace(b"tiny", b"t\xff\xfey", 1),
        "cut": content[: rng.randrange(1, len(content) - 2)],
        "trailing": content + b"{}",
        "nul": content.replace(b"\n", b"\0", 1),
        "deep": content.replace(b'"tiny"', b"[" * 200 + b"]" * 200 + b', "x": "y"', 1),
    }[kind]
    assert changed != content
    reseal(folder, changed)
    return kind


# Archives.


def archive_flip(file: Path, rng: random.Random) -> str:
    file.write_bytes(flip(file.read_bytes(), rng))
    return "flip"


def archive_flip_head(file: Path, rng: random.Random) -> str:
    """In the headers, the manifest and the signature, which are a small part of the whole."""
    content = file.read_bytes()
    file.write_bytes(flip(content[:8192], rng) + content[8192:])
    return "flip the head"


def archive_cut(file: Path, rng: random.Random) -> str:
    size = file.stat().st_size
    length = rng.choice([0, 1, 511, 512, size - 1, size - 512, size - 1024, rng.randrange(size)])
    os.truncate(file, length)
    return f"cut to {length}"


def archive_grow(file: Path, rng: random.Random) -> str:
    tail = rng.choice([b"\0", bytes(512), bytes(1024), b"x" * 100, file.read_bytes()])
    with file.open("ab") as stream:
        stream.write(tail)
    return f"{len(tail)} more"


def archive_by_tar(file: Path, rng: random.Random) -> str:
    """Rebuilt by a tool that knows links, devices and paths outside."""
    kinds = ("as it is", "order", "twice", "link", "hard link", "device", "pipe", "outside",
             "absolute", "folder", "pax", "gnu name", "first", "mode", "owner", "time")  # fmt: skip
    kind = rng.choice(kinds)
    with tarfile.open(file) as old:
        items = [(m, old.extractfile(m).read()) for m in old]  # type: ignore[union-attr]
    extra = tarfile.TarInfo(
        {"outside": "../evil", "absolute": "/tmp/evil-vcompress"}.get(kind, "x")
    )
    extra.type = {
        "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
        "pipe": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE,
    }.get(kind, tarfile.REGTYPE)  # fmt: skip
    extra.linkname = "/etc/passwd"
    if kind == "order":
        items[2:] = reversed(items[2:])
    elif kind == "twice":
        items.append(items[3])
    elif kind == "first":
        items.insert(0, (extra, b""))
    elif kind in ("mode", "owner", "time"):
        setattr(items[2][0], {"mode": "mode", "owner": "uid", "time": "mtime"}[kind], 0o4755)
    elif kind == "gnu name":
        items[3][0].name = "n" * 150
    elif kind not in ("as it is", "pax"):
        items.insert(rng.randrange(1, len(items) + 1), (extra, b""))
    if kind == "link":  # and a file that would go through it
        below = tarfile.TarInfo("x/evil")
        items.append((below, b""))
    form = tarfile.PAX_FORMAT if kind == "pax" else tarfile.GNU_FORMAT
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for item, content in items:
            if kind == "pax":
                item.pax_headers = {"path": "../evil"}
            tar.addfile(item, io.BytesIO(content))
    file.write_bytes(made.getvalue())
    return f"tar: {kind}"


def archive_of_another_kind(file: Path, rng: random.Random) -> str:
    content = file.read_bytes()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("../evil", bytes(10**6))
    kind, other = rng.choice([
        ("gzip", gzip.compress(content)), ("zip", made.getvalue()), ("zeros", bytes(10_240)),
        ("zip behind", content + made.getvalue()), ("nothing", b""), ("text", b"manifest.json\n"),
        ("name", b"manifest.json\0"), ("noise", b"manifest.json\0" + rng.randbytes(2000)),
    ])  # fmt: skip
    file.write_bytes(other)
    return kind


def archive_with_a_hostile_manifest(file: Path, rng: random.Random) -> str:
    """Its head is as `pack` would write it; what the manifest says is not."""
    with tarfile.open(file) as old:
        items = [(m.name, old.extractfile(m).read()) for m in old]  # type: ignore[union-attr]
    manifest = json.loads(items[0][1])
    rest = [item for item in items if not item[0].startswith("manifest.")]
    kind = rng.choice(["name", "bytes", "text", "fewer", "more", "lie"])
    if kind == "name":
        name = rng.choice(NAMES)
        manifest["files"][name] = {"sha256": hashlib.sha256(b"evil").hexdigest(), "bytes": 4}
        rest.append((name, b"evil"))
    elif kind == "bytes":
        manifest["files"]["model.onnx"]["bytes"] = rng.choice([0, 1, 2**40, 2**62, -1, 8**11 - 1])
    elif kind == "fewer":
        del manifest["files"]["model.onnx"]
    elif kind == "more":
        manifest["files"]["more"] = {"sha256": "0" * 64, "bytes": rng.choice([0, 5])}
    elif kind == "lie":
        manifest["files"]["model.onnx"]["sha256"] = "0" * 64
    text = json.dumps(manifest).encode()
    if kind == "text":
        text = rng.choice(TEXTS).encode()
    made = io.BytesIO()
    for name, content in [
        ("manifest.json", text),
        ("manifest.sha256", seal_of(text)),
        *sorted(rest),
    ]:
        made.write(_header(name, len(content)) + content + bytes(-len(content) % 512))
    file.write_bytes(made.getvalue() + bytes(1024))
    return f"manifest: {kind}"


def _header(name: str, size: int) -> bytes:
    try:
        return archive.header(name, size)
    except (UserError, UnicodeEncodeError):
        return archive.header("x", size)


def archive_with_a_huge_size(file: Path, rng: random.Random) -> str:
    content = file.read_bytes()
    size = rng.choice([8**11 - 1, 2**30, 2**25 + 1, 10**6])
    file.write_bytes(archive.header("manifest.json", size) + content[512:])
    return f"a manifest of {size} bytes"


FOLDERS: list[Mutate] = [
    flip_a_bit, cut, grow, overwrite, swap, remove, add, replace_by_a_link,
    replace_by_something_else, name_hostile_files, say_huge_numbers, say_other_types,
    say_other_types_in_the_history, take_or_add_keys, write_other_text, break_the_text, flip_a_bit,
]  # fmt: skip
ARCHIVES: list[Mutate] = [
    archive_flip, archive_flip_head, archive_cut, archive_grow, archive_by_tar,
    archive_of_another_kind, archive_with_a_hostile_manifest, archive_with_a_huge_size,
    archive_flip_head,
]  # fmt: skip
