"""Hostile inputs of every kind that vcompress reads, made from whole ones by seeded mutation.

    python tests/benchmarks/hostile_inputs.py [--share 0.1] [--seed 0] [--kinds onnx archives]

Each kind runs in processes of its own with 4 GB of memory and a minute for an input. An input is
refused (`UserError`, one message) or taken. Bad is: a crash, another exception (a traceback for the
user), a hang, a file outside the target that was written or opened, code that ran, or an input that
was taken and that another reader understands otherwise (the `onnx` package, ONNX Runtime, tarfile).
A crash of ONNX Runtime itself is counted apart: vbench and lint run it in a process of their own.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import pickle
import random
import resource
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from vcompress.bench.errors import UserError

HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path[:0] = [str(HERE), str(TESTS / "export")]
SECONDS = 60
MEMORY = 4 * 2**30
Attempt = Callable[[random.Random], bool]
"""Makes one input and reads it; whether it was taken. Raises UserError where it was refused."""


class Ambiguous(Exception):
    """It was taken, and should not have been."""


def stage(name: str) -> None:
    """Say whose code runs from here on."""
    print(f"# {name}", flush=True)


def onnx_corpus() -> list[bytes]:
    import onnx
    from lint_graphs import CASES
    from onnx import TensorProto, helper, numpy_helper

    found = [case.make().SerializeToString() for case in CASES]
    weight = numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
    outside = onnx.TensorProto()
    outside.CopyFrom(weight)
    outside.ClearField("raw_data")
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "weights.data"), ("offset", "0"), ("length", "16")):
        outside.external_data.add(key=key, value=value)
    sparse = onnx.SparseTensorProto(
        values=numpy_helper.from_array(np.float32([1, 2]), "s"),
        indices=numpy_helper.from_array(np.array([0, 3])),
        dims=[4],
    )
    info = helper.make_tensor_value_info
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=outside)], "inner", [],
        [info("c", 1, [4])],
    )  # fmt: skip
    whole = helper.make_function(
        "f", "F", ["a"], ["b"],
        [helper.make_node("Constant", [], ["k"], value=outside),
         helper.make_node("Add", ["a", "k"], ["b"])], opsets,
    )  # fmt: skip
    bodies: list[tuple[list[Any], list[Any]]] = [
        ([helper.make_node("Add", ["x", "w"], ["y"])], [outside]),
        ([helper.make_node("Add", ["x", "w"], ["y"])], [weight]),
        ([helper.make_node("Constant", [], ["k"], sparse_value=sparse),
          helper.make_node("Add", ["x", "k"], ["y"])], []),
        ([helper.make_node("If", ["go"], ["k"], then_branch=inner, else_branch=inner),
          helper.make_node("Add", ["x", "k"], ["y"])],
         [numpy_helper.from_array(np.array(True), "go")]),
        ([helper.make_node("F", ["x"], ["y"], domain="f")], []),
    ]  # fmt: skip
    for nodes, held in bodies:
        graph = helper.make_graph(nodes, "g", [info("x", 1, [4])], [info("y", 1, [4])], held)
        functions = [whole] if nodes[-1].op_type == "F" else []
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
        found += [model.SerializeToString()] * 12  # as often as the cases without other files
    return found


def onnx_files(folder: Path) -> Attempt:
    """Read and checked; what was taken goes to the `onnx` package and ONNX Runtime."""
    import onnx
    import onnxruntime
    from _hostile import Opened, by_onnx, changed_message, havoc

    from vcompress.bench import onnx_file

    corpus = onnx_corpus()
    place = folder / "models"
    place.mkdir()
    (place / "weights.data").write_bytes(np.arange(64, dtype=np.float32).tobytes())
    (folder / "secret.bin").write_bytes(bytes(256))
    (place / "link.data").symlink_to("../secret.bin")
    path = place / "m.onnx"
    outside = Opened(folder)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1

    def attempt(rng: random.Random) -> bool:
        content = rng.choice(corpus)
        if rng.random() < 0.7:
            content = changed_message(content, rng)
            if rng.random() < 0.3:
                content = changed_message(content, rng)
        else:
            content = havoc(content, rng, rng.choice(corpus))
        path.write_bytes(content)
        outside.names()
        facts = onnx_file.read(path)
        beside = onnx_file.check_external(path, facts)
        try:
            model = onnx.ModelProto.FromString(content)
        except Exception:  # what protobuf does not read no tool of theirs runs
            model = None
        if model is not None:
            operators, places = by_onnx(model)
            ours = {item.location for item in facts.external}
            if not places <= ours:
                raise Ambiguous(f"onnx sees {places}, we saw {ours}")
            if dict(operators) != facts.operators:
                raise Ambiguous("onnx sees other operators")
        stage("onnxruntime")
        with suppress(Exception):  # its errors have no common base
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        if "secret.bin" in outside.names():
            raise Ambiguous("ONNX Runtime opened a file outside the folder")
        if any(not file.is_relative_to(place.resolve()) for file in beside):
            raise Ambiguous(f"{beside} are not in the folder")
        return True

    return attempt


def lint_files(folder: Path) -> Attempt:
    """The whole of lint, here without the process of its own."""
    from _hostile import changed_message, havoc

    from vcompress.export.lint import TARGETS, lint

    corpus = onnx_corpus()
    (folder / "weights.data").write_bytes(bytes(256))
    path = folder / "m.onnx"

    def attempt(rng: random.Random) -> bool:
        content = rng.choice(corpus)
        changed = changed_message(content, rng) if rng.random() < 0.8 else havoc(content, rng)
        path.write_bytes(changed)
        target = rng.choice(list(TARGETS))
        stage("onnxruntime")  # and the checker of the onnx package
        report = lint(path, target, apart=False)
        return report.verdict != "blocked"

    return attempt


def mutations() -> Any:
    file = TESTS / "bench" / "verify" / "mutations.py"
    spec = importlib.util.spec_from_file_location("mutations", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def whole_bundle(path: Path, key: Path | None = None) -> Path:
    """A small bundle, as an archive too, signed where a key is given."""
    from vcompress.bench import onnx_file
    from vcompress.bench.bundle import InputSpec, Preprocess, create
    from vcompress.bench.bundle.archive import pack, unpack
    from vcompress.bench.bundle.history import Entry

    with create(
        path.with_name("plain"), input=InputSpec("x", (3, 32, 32)), preprocess=Preprocess((32, 32)),
        labels=tuple("abcdefghij"), data=None,
        history=(Entry("import", "tiny", started="2026-01-01T00:00:00"),),
    ) as inside:  # fmt: skip
        (inside / "model.onnx").write_bytes(onnx_file.identity_model())
        arrays = {"input": np.zeros((4, 3, 2, 2), np.float32),
                  "output.y": np.zeros((4, 10), np.float32)}  # fmt: skip
        np.savez(inside / "golden.npz", **arrays)
        (inside / "weights.safetensors").write_bytes(bytes(range(256)) * 5)
        (inside / "notes").mkdir()
        (inside / "notes" / "card.txt").write_text("a model\n")
    pack(path.with_name("plain"), path.with_suffix(".vcb"), key)
    unpack(path.with_suffix(".vcb"), path)
    return path


def manifests(folder: Path) -> Attempt:
    """Bundles whose files or manifests were changed, the manifest's hash with it."""
    from _hostile import havoc

    from vcompress.bench.bundle import Bundle
    from vcompress.bench.verify.check import verify

    kinds = mutations()
    whole = whole_bundle(folder / "whole")
    arena = folder / "arena"

    def attempt(rng: random.Random) -> bool:
        shutil.rmtree(arena, ignore_errors=True)
        arena.mkdir()
        shutil.copytree(whole, arena / "b")
        must_fail = rng.random() < 0.5
        if must_fail:
            rng.choice(kinds.FOLDERS)(arena / "b", rng)
        else:
            text = (arena / "b" / "manifest.json").read_bytes()
            kinds.reseal(arena / "b", havoc(text, rng))
        beside = sorted(arena.iterdir())
        bundle = Bundle.open(arena / "b")
        bundle.verify()
        found = verify(arena / "b", golden=False)
        if sorted(arena.iterdir()) != beside:
            raise Ambiguous("something was written outside the bundle")
        if not found.ok:
            raise UserError("; ".join(found.problems))
        if must_fail:
            raise Ambiguous("a changed bundle verified")
        content = (arena / "b" / "manifest.json").read_bytes()
        if twice := _keys_twice(content):
            raise Ambiguous(f"{twice} stand twice")
        return True

    return attempt


def _keys_twice(content: bytes) -> list[str]:
    found: list[str] = []

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        return dict(pairs)

    json.loads(content, object_pairs_hook=table)
    return found


def archives(folder: Path) -> Attempt:
    """Archives that were changed; taken ones must be what tarfile reads."""
    from _hostile import havoc

    from vcompress.bench.bundle.archive import unpack
    from vcompress.bench.verify.check import verify

    kinds = mutations()
    whole = whole_bundle(folder / "whole").with_suffix(".vcb")
    arena = folder / "arena"

    def attempt(rng: random.Random) -> bool:
        shutil.rmtree(arena, ignore_errors=True)
        arena.mkdir()
        file = arena / "b.vcb"
        shutil.copy(whole, file)
        if rng.random() < 0.6:
            rng.choice(kinds.ARCHIVES)(file, rng)
        else:
            file.write_bytes(havoc(file.read_bytes(), rng))
        same = file.read_bytes() == whole.read_bytes()
        beside = {*arena.iterdir()} | {arena / "out"}
        try:
            unpack(file, arena / "out")
        finally:
            if not {*arena.iterdir()} <= beside or (folder / "evil").exists():
                raise Ambiguous("something was written outside the target")
        found = verify(arena / "out", golden=False)
        if not found.ok:
            raise Ambiguous(f"what was unpacked does not verify: {found.problems}")
        with tarfile.open(file) as tar:
            theirs = {m.name for m in tar if m.isreg()}
        ours = {p.relative_to(arena / "out").as_posix() for p in (arena / "out").rglob("*")
                if p.is_file()}  # fmt: skip
        if theirs | {"manifest.sha256"} != ours | {"manifest.sha256"}:
            raise Ambiguous("tarfile reads other files")
        if not same and file.stat().st_size != whole.stat().st_size:
            raise Ambiguous("another length was taken")
        return True

    return attempt


def small_network() -> Any:
    from torch import nn

    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def _weights(folder: Path, write: Callable[[random.Random, Path], None], suffix: str) -> Attempt:
    import torch

    from vcompress.compress.models.checkpoints import infer_classes, load_into

    torch.set_num_threads(1)
    path = folder / f"w{suffix}"

    def attempt(rng: random.Random) -> bool:
        write(rng, path)
        model = small_network()
        infer_classes(path, model, ("3",))
        load_into(model, path, heads=("3",))
        return True

    return attempt


def safetensors(folder: Path) -> Attempt:
    """Headers and bytes; what is taken must be what the library reads."""
    import safetensors.torch
    from _hostile import havoc

    content = safetensors.torch.save(small_network().state_dict())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    odd = (-1, 0, 2**63, 10**12, 10**30, 1.5, None, "9", [], {}, True)

    def write(rng: random.Random, path: Path) -> None:
        if rng.random() < 0.5:
            path.write_bytes(havoc(content, rng))
            return
        changed = json.loads(json.dumps(header))
        name = rng.choice(list(changed))
        key = rng.choice(("shape", "data_offsets", "dtype"))
        values: list[Any] = list(odd)
        values += [[10**12], [10**12, 0], [2**40, 2**40], [0, 2**62], "F64"]
        changed[name][key] = rng.choice(values)
        if rng.random() < 0.2:
            changed["__metadata__"] = rng.choice(values)
        text = json.dumps(changed).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return _weights(folder, write, ".safetensors")


class _Runs:
    """Unpickled by Python itself it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def pth(folder: Path) -> Attempt:
    """Archives of torch and old pickles; code in them must not run."""
    import torch
    from _hostile import havoc

    canary = folder / "ran"
    state = small_network().state_dict()
    corpus: list[bytes] = []
    for held in (state, {"model": state, "epoch": 3}, {"state_dict": state, "x": _Runs(canary)}):
        for new in (True, False):
            stream = io.BytesIO()
            torch.save(held, stream, _use_new_zipfile_serialization=new)
            corpus.append(stream.getvalue())
    corpus.append(pickle.dumps(_Runs(canary)))

    def write(rng: random.Random, path: Path) -> None:
        if canary.exists():
            raise Ambiguous("code of a checkpoint ran")
        content = rng.choice(corpus)
        if content[:2] != b"PK" or rng.random() < 0.4:
            path.write_bytes(havoc(content, rng, rng.choice(corpus)))
            return
        with zipfile.ZipFile(io.BytesIO(content)) as old:
            items = {name: old.read(name) for name in old.namelist()}
        name = rng.choice(list(items))
        name = next(n for n in items if n.endswith(".pkl")) if rng.random() < 0.6 else name
        items[name] = havoc(items[name], rng, rng.choice(corpus))
        kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(path, "w", kind) as made:
            for name, held in items.items():
                made.writestr(name, held)

    attempt = _weights(folder, write, ".pth")

    def watched(rng: random.Random) -> bool:
        try:
            return attempt(rng)
        finally:
            if canary.exists():
                raise Ambiguous("code of a checkpoint ran")

    return watched


def npz(folder: Path) -> Attempt:
    """Arrays of --inputs and of golden.npz."""
    from _hostile import havoc

    from vcompress.bench.runtimes.session import TensorSpec
    from vcompress.bench.timing.inputs import from_file
    from vcompress.bench.verify.golden import load

    path = folder / "a.npz"
    stream = io.BytesIO()
    arrays = {"input": np.zeros((4, 3, 2, 2), np.float32), "output.y": np.ones((4, 10), np.float32)}
    np.savez(stream, **arrays)
    content = stream.getvalue()

    def attempt(rng: random.Random) -> bool:
        if rng.random() < 0.5:
            path.write_bytes(havoc(content, rng))
        else:
            with zipfile.ZipFile(path, "w", rng.choice((0, 8))) as made:
                for name, array in arrays.items():
                    held = io.BytesIO()
                    np.save(held, array)
                    text = havoc(held.getvalue(), rng)
                    if rng.random() < 0.3:
                        shape = str(rng.choice(((10**12,), (0, 10**12), (-1,), (2**40, 2**40))))
                        text = held.getvalue().replace(b"(4, ", shape.encode()[:4] + b", ")
                    made.writestr(f"{name}.npy", text)
        if rng.random() < 0.5:
            load(path)
        else:
            from_file(path, [TensorSpec("input", ("n", 3, 2, 2), "float32")])
        return True

    return attempt


RECIPE = b"""out = "runs/all"
[options]
data = "digits"
image_size = 32
[[stages]]
stage = "finetune"
model = "r18"
epochs = 3
lr = 0.01
[[stages]]
stage = "prune"
macs = 0.5
[[stages]]
stage = "quantize"
target = "onnxruntime"
"""
FACTORIES = (b'"own:net"', b'"http.server:test"', b'"os:system"', b'"code:interact"')


def recipes(folder: Path) -> Attempt:
    """TOML; a factory in it must not be imported."""
    import os

    from _hostile import havoc

    from vcompress.compress.pipeline.recipe import read_recipe

    os.chdir(folder)
    (folder / "own.py").write_text("open('ran', 'w')\ndef net(num_classes): ...\n")
    path = folder / "r.toml"
    lines = RECIPE.splitlines()

    def attempt(rng: random.Random) -> bool:
        kind, text = rng.randrange(4), RECIPE
        if kind == 0:
            text = havoc(RECIPE, rng)
        elif kind == 1:
            some = rng.sample(lines, rng.randrange(len(lines)))
            text = b"\n".join(some)
        elif kind == 2:
            value = rng.choice((*FACTORIES, b"[" * 5000, b"nan", b"-1", b"9" * 400, b"[]", b"{}"))
            at = rng.choice([i for i, line in enumerate(lines) if b" = " in line])
            changed = [*lines]
            changed[at] = changed[at].partition(b" = ")[0] + b" = " + value
            text = b"\n".join(changed)
        else:
            extra = rng.choice((b'trust = "own:net"', b"resume = true", b"a." * 3000 + b"b = 1"))
            text = RECIPE.replace(b"[options]\n", b"[options]\n" + extra + b"\n")
        path.write_bytes(text)
        try:
            recipe = read_recipe(path)
        finally:
            if (folder / "ran").exists():
                raise Ambiguous("a recipe ran code")
        if any(":" in value for step in recipe.steps for value in step.given.values()):
            raise Ambiguous("a factory was taken")
        return True

    return attempt


def images(folder: Path) -> Attempt:
    """Every format that is read, and EPS under another name."""
    from _hostile import havoc
    from PIL import Image, features

    from vcompress.bench.bundle import Preprocess
    from vcompress.bench.data.preprocess import apply, read_image

    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
    corpus: list[bytes] = []
    for name in ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000", "TGA", "EPS",
                 "AVIF", "QOI"):  # fmt: skip
        stream = io.BytesIO()
        try:
            Image.fromarray(noise).save(stream, name)
        except (OSError, KeyError, ValueError):  # Pillow was built without it
            continue
        corpus.append(stream.getvalue())
    for mode in ("L", "P", "I;16", "1", "CMYK"):
        stream = io.BytesIO()
        Image.fromarray(noise).convert("L").convert("I;16" if mode == "I;16" else mode).save(
            stream, "TIFF")  # fmt: skip
        corpus.append(stream.getvalue())
    assert features.check("webp")
    path = folder / "cat.jpg"

    def attempt(rng: random.Random) -> bool:
        path.write_bytes(havoc(rng.choice(corpus), rng, rng.choice(corpus)))
        found = apply(Preprocess((16, 16)), read_image(path))
        if found.shape != (3, 16, 16) or not np.isfinite(found).all():
            raise Ambiguous(f"an image of {found.shape}")
        return True

    return attempt


def signatures(folder: Path) -> Attempt:
    """Signatures and keys; a changed one must not hold unless it says the same."""
    from _hostile import havoc

    from vcompress.bench.bundle import signature

    key = folder / "k.pem"
    public, _ = signature.make_keys(key)
    manifest = b'{"format": "vcompress-bundle"}'
    signed, pem = signature.sign(manifest, key), public.read_bytes()
    right = signature.parse(signed, "s")

    def attempt(rng: random.Random) -> bool:
        kind = rng.randrange(4)
        if kind == 0:  # the key
            other = folder / "o.pub.pem"
            other.write_bytes(havoc(rng.choice((pem, key.read_bytes())), rng))
            same = signature.read_public(other) == signature.read_public(public)
            signature.check(right, manifest, other, "m")
            if not same:
                raise Ambiguous("another key was taken")
            return True
        if kind == 1:  # the private key
            other = folder / "o.pem"
            other.write_bytes(havoc(rng.choice((pem, key.read_bytes())), rng))
            signature.sign(manifest, other)
            return True
        if kind == 2:  # the signature
            found = signature.parse(havoc(signed, rng), "s")
            signature.check(found, manifest, public, "m")
            if found != right:
                raise Ambiguous("another signature was taken")
            return True
        changed = havoc(manifest, rng)  # what was signed
        signature.check(right, changed, public, "m")
        if changed != manifest:
            raise Ambiguous("a changed manifest was taken")
        return True

    return attempt


def tables(folder: Path) -> Attempt:
    """labels.csv, targets.csv and their JSON lines, gates, baselines, lists of classes."""
    from _hostile import havoc
    from PIL import Image

    from vcompress.bench.data.classes import read_classes
    from vcompress.bench.data.tables import labels_dataset, numbers_dataset
    from vcompress.bench.gates import baseline, gate

    for number in range(12):
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(folder / f"{number}.png")
    parts = ("train", "val", "test")
    rows = [f"{n}.png,{'a;b' if n % 2 else 'b'},{parts[n % 3]}" for n in range(12)]
    labels = "\n".join(["image,labels,split", *rows]).encode()
    targets = [f"{n}.png,{n / 3},{n},{parts[n % 3]}" for n in range(12)]
    numbers = "\n".join(["image,x,y,split", *targets]).encode()
    lines = b"\n".join(json.dumps({"image": f"{n}.png", "labels": ["a"], "split": "train"}).encode()
                       for n in range(12))  # fmt: skip
    limits = b'limits = ["latency_ms<=4", "top1>=0.9"]\nmax_size_mb = 3.0\n'
    saved = json.dumps({"schema_version": 1, "environment": {}, "models": [{
        "artefact": {"name": "m"}, "runtime": {}, "workload": {"shapes": {"x": [1, 3]}},
        "samples_ns": [100, 101, 99], "accuracy": None}]}).encode()  # fmt: skip
    readers: list[tuple[str, bytes, Callable[[Path], object]]] = [
        ("labels.csv", labels, lambda p: labels_dataset(str(p), 0)),
        ("labels.jsonl", lines, lambda p: labels_dataset(str(p), 0)),
        ("targets.csv", numbers, lambda p: numbers_dataset(str(p), 0)),
        ("gate.toml", limits, gate.read), ("saved.json", saved, baseline.read),
        ("classes.txt", b"cat\ndog\nbird\n", read_classes),
    ]  # fmt: skip

    def attempt(rng: random.Random) -> bool:
        name, content, read = rng.choice(readers)
        deep = rng.random() < 0.05
        changed = content + rng.choice((b"[", b'{"a":')) * 100_000 if deep else havoc(content, rng)
        (folder / name).write_bytes(changed)
        read(folder / name)
        return True

    return attempt


KINDS: dict[str, tuple[Callable[[Path], Attempt], int]] = {
    "onnx": (onnx_files, 20_000), "lint": (lint_files, 400), "manifests": (manifests, 2000),
    "archives": (archives, 1600), "safetensors": (safetensors, 1000), "pth": (pth, 1000),
    "npz": (npz, 800), "recipes": (recipes, 800), "images": (images, 1500),
    "signatures": (signatures, 800), "tables": (tables, 1000),
}  # fmt: skip


def child(kind: str, seed: int, start: int, end: int) -> None:
    """Attempts `start` to `end`, a line before and after each."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        attempt = KINDS[kind][0](Path(folder).resolve())
        for number in range(start, end):
            print(f"> {number}", flush=True)
            try:
                said = "taken" if attempt(random.Random(f"{kind} {seed} {number}")) else "refused"
            except UserError:
                said = "refused"
            except BaseException as error:  # each of them is what this script looks for
                text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                said = f"bad {text}"
            print(f"< {said}", flush=True)


def run(kind: str, seed: int, count: int, keep: list[str]) -> Counter[str]:
    """Attempts in as many processes as crash or hang."""
    found: Counter[str] = Counter()
    start = 0
    while start < count:
        command = [sys.executable, __file__, "--child", kind, str(seed), str(start), str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            at, whose, hung = start - 1, "", False
            while True:
                ready, _, _ = select.select([process.stdout], [], [], SECONDS)
                if not ready:
                    hung = True
                    process.kill()
                    break
                line = process.stdout.readline().decode(errors="replace").rstrip("\n")
                if not line:
                    break
                if line.startswith("> "):
                    at, whose = int(line[2:]), ""
                elif line.startswith("# "):
                    whose = line[2:]
                elif line.startswith("< "):
                    word = line[2:].partition(" ")[0]
                    found[word] += 1
                    if word == "bad":
                        keep.append(f"{kind} {at}: {line[6:]}")
                    start = at + 1
            process.stdout.close()
            trouble = process.stderr.read().decode(errors="replace").strip()[-600:]
        if start >= count:
            break
        ended = "hung" if hung else f"ended with {process.returncode}"
        if at < start:
            raise SystemExit(f"{kind}: the process {ended} before its first input: {trouble}")
        word = "runtime" if whose and not hung else "bad"
        found[word] += 1
        keep.append(f"{kind} {at}: {ended} {whose} {trouble[-200:] if not whose else ''}")
        start = at + 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--share", type=float, default=1.0, help="of the number of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    asked = parser.parse_args()
    keep: list[str] = []
    total: Counter[str] = Counter()
    print("| kind | inputs | refused | taken | crash of the runtime | bad | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in asked.kinds:
        begin = time.monotonic()
        found = run(kind, asked.seed, max(int(KINDS[kind][1] * asked.share), 1), keep)
        total += found
        row(kind, found, time.monotonic() - begin)
    row("all", total, None)
    print(*keep, sep="\n", file=sys.stderr)
    return 1 if total["bad"] else 0


def row(kind: str, found: Counter[str], seconds: float | None) -> None:
    cells = [found[word] for word in ("refused", "taken", "runtime", "bad")]
    took = "" if seconds is None else f"{seconds:.0f}"
    print(f"| {kind} | {sum(found.values()):,} | {' | '.join(f'{c:,}' for c in cells)} | {took} |",
          flush=True)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        sys.exit(main())
