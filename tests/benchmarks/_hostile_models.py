"""For hostile_inputs.py: models, weights, arrays and images."""

from __future__ import annotations

import io
import json
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from _hostile import Ambiguous, Attempt, Opened, by_onnx, changed_message, havoc, stage


def onnx_corpus() -> list[bytes]:
    """The labelled graphs of lint's tests, and graphs with tensors in every place there is."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "export"))
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


def images(folder: Path) -> Attempt:
    """Every format that is read, and EPS under another name."""
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
