"""For hostile_inputs.py: bundles, archives, signatures, recipes and tables."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _hostile import Ambiguous, Attempt, havoc

from vcompress.bench.errors import UserError

TESTS = Path(__file__).parents[1]


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


def signatures(folder: Path) -> Attempt:
    """Signatures and keys; a changed one must not hold unless it says the same."""

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
