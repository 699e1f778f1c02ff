"""An ONNX file of its own: pixels in, probabilities or the best classes out, a cleaned graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.bundle.history import Entry, Licences, Metrics
from vcompress.bench.data.preprocess import apply, crop
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.export.onnx_export import ExportError
from vcompress.export.onnx_options import (
    OnnxOptions,
    add_answer,
    drawn_images,
    fix_batch,
    quantisers,
    refine,
    session,
    slim,
)
from vcompress.export.onnx_preprocess import preprocess_model
from vcompress.export.onnx_properties import properties

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESS = Preprocess((24, 32), 40, MEAN, STD)
SIZES = ((93, 71), (71, 93), (64, 64), (200, 40), (9, 8), (301, 299), (640, 480))


def network(quantised: bool = False, opset: int = 20) -> onnx.ModelProto:
    """[batch, 3, 24, 32] -> [batch, 7]; a convolution, with Q/DQ on both operands where asked."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((8, 3, 5, 5)).astype(np.float32) / 5
    dense = rng.standard_normal((8, 7)).astype(np.float32) * 4
    constants = {"d": dense}
    nodes = []
    if quantised:
        step = np.float32(np.abs(weights).max() / 127)
        constants |= {
            "w8": np.rint(weights / step).astype(np.int8), "ws": step, "z": np.int8(0),
            "xs": np.float32(2.7 / 127),
        }  # fmt: skip
        nodes += [
            helper.make_node("QuantizeLinear", ["input", "xs", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "xs", "z"], ["x"], "dq"),
            helper.make_node("DequantizeLinear", ["w8", "ws", "z"], ["w"], "dw"),
        ]
    else:
        constants["w"] = weights
    nodes += [
        helper.make_node("Conv", ["x" if quantised else "input", "w"], ["c"], "conv"),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "d"], ["logits"], "dense"),
    ]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("input", 1, ["batch", 3, 24, 32])],
        [helper.make_tensor_value_info("logits", 1, ["batch", 7])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model.metadata_props.add(key="vcompress.model", value="tiny")
    return model


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(quantised: bool = False, opset: int = 20) -> Path:
        onnx.save(network(quantised, opset), str(tmp_path / "model.onnx"))
        return tmp_path / "model.onnx"

    return write


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    noisy = (pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def pixels(image: Image.Image) -> Any:
    array = np.asarray(image)
    return (array[..., None] if array.ndim == 2 else array)[None]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [((24, 32), 40), ((33, 24), 37), ((32, 32), None)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_embedded_resize_is_pillows_within_one_level(
    interpolation: Literal["nearest", "bilinear", "bicubic"], size: tuple[int, int],
    resize: int | None, mode: Literal["RGB", "L"],
) -> None:  # fmt: skip
    count = len(mode) if mode == "RGB" else 1
    prepared = Preprocess(size, resize, MEAN[:count], STD[:count], mode, interpolation)
    model = preprocess_model(prepared, "resize", opset=18, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    run = session(model.SerializeToString())
    apart = []
    for seed, (width, height) in enumerate(SIZES):
        image = photo(width, height, seed, mode)
        found = run({"image": pixels(image)})[0][0]
        wanted = apply(prepared, image)
        assert found.shape == wanted.shape
        apart.append(np.abs(found - wanted) * np.float32(STD[:count])[:, None, None] * 255)
        assert apart[-1].max() < 1.01, (width, height)
    share = np.mean([np.mean(a > 0.5) for a in apart])
    assert share < (1e-9 if interpolation == "nearest" else 0.005)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_embedded_normalisation_is_numpys_to_the_last_bit(mode: Literal["RGB", "L"]) -> None:
    count = len(mode) if mode == "RGB" else 1
    prepared = Preprocess((24, 32), 40, MEAN[:count], STD[:count], mode)
    model = preprocess_model(prepared, "normalise", opset=13, ir_version=8, batch=2)
    run = session(model.SerializeToString())
    images = [photo(60 + n, 50, n, mode) for n in range(2)]
    fed = np.concatenate([pixels(crop(prepared, image)) for image in images])
    assert fed.dtype == np.uint8
    found = run({"image": fed})[0]
    assert np.array_equal(found, np.stack([apply(prepared, image) for image in images]))


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("embedding", [None, "normalise", "resize"])
def test_a_file_with_all_options_answers_as_the_plain_one(
    file: Callable[..., Path], quantised: bool, embedding: Literal["normalise", "resize"] | None
) -> None:
    pytest.importorskip("onnxslim")
    path = file(quantised)
    plain = session(path.read_bytes())
    images = drawn_images(3)
    options = OnnxOptions(
        embed_preprocess=embedding, softmax=True, top_k=3, static_batch=2, slim=True,
        infer_shapes=True,
    )  # fmt: skip
    notes = refine(path, options, PREPROCESS, images).notes
    assert any("SQNR" in note for note in notes)
    assert any("onnxslim" in note for note in notes)
    proto = onnx.load(str(path))
    (entry,) = proto.graph.input
    shape = [d.dim_value or d.dim_param for d in entry.type.tensor_type.shape.dim]
    assert [o.name for o in proto.graph.output] == ["scores", "classes"]
    assert quantisers(proto).total() == (3 if quantised else 0)
    assert {p.key for p in proto.metadata_props} == {"vcompress.model", "vcompress.options"}
    run = session(path.read_bytes())
    for image in images:
        wanted = plain({"input": apply(PREPROCESS, image)[None]})[0][0].astype(np.float64)
        probabilities = np.exp(wanted - wanted.max()) / np.exp(wanted - wanted.max()).sum()
        if embedding is None:
            assert shape == [2, 3, 24, 32]
            fed = apply(PREPROCESS, image)[None]
        elif embedding == "normalise":
            assert shape == [2, 24, 32, 3]
            fed = pixels(crop(PREPROCESS, image))
        else:
            assert shape == [2, "height", "width", 3]
            fed = pixels(image)
        scores, classes = run({entry.name: np.concatenate([fed, fed])})
        assert scores.shape == classes.shape == (2, 3)
        order = np.argsort(-probabilities)[:3]
        assert classes[0].tolist() == classes[1].tolist() == order.tolist()
        assert np.allclose(scores[0], probabilities[order], atol=2e-3)


def test_each_option_does_only_what_it_says(file: Callable[..., Path]) -> None:
    image, fed = drawn_images(1), {"input": apply(PREPROCESS, drawn_images(1)[0])[None]}
    logits = session(file().read_bytes())(fed)[0]
    path = file()
    refine(path, OnnxOptions(softmax=True), PREPROCESS, image)
    (found,) = session(path.read_bytes())(fed)
    assert np.isclose(found.sum(), 1, atol=1e-6)
    assert np.allclose(found, np.exp(logits) / np.exp(logits).sum(), atol=1e-6)
    path = file()
    refine(path, OnnxOptions(top_k=2), PREPROCESS, image)
    scores, classes = session(path.read_bytes())(fed)
    assert np.array_equal(scores[0], np.sort(logits[0])[::-1][:2])
    assert np.array_equal(logits[0][classes[0]], scores[0])
    path = file()
    refine(path, OnnxOptions(infer_shapes=True), PREPROCESS, image)
    named = {v.name for v in onnx.load(str(path)).graph.value_info}
    assert {"c", "r", "p", "f"} <= named
    path = file()
    before = path.read_bytes()
    refine(path, OnnxOptions(), PREPROCESS, image)
    assert onnx.load_from_string(before) == onnx.load(str(path))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 8}, "the network has 7 classes"),
        ({"embed_preprocess": "resize"}, "needs operator set 18 or later, this file has 17"),
    ],
)
def test_what_the_network_does_not_take_is_refused_and_the_file_stays(
    file: Callable[..., Path], options: dict[str, Any], says: str
) -> None:
    path = file(opset=17)
    before = path.read_bytes()
    with pytest.raises(UserError, match=says):
        refine(path, OnnxOptions(**options), PREPROCESS, drawn_images(1))
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="must be 1 or more"):
        OnnxOptions(top_k=0)
    segments = network()
    segments.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 8
    with pytest.raises(UserError, match="logits has 3 axes"):
        add_answer(segments, OnnxOptions(softmax=True))
    fixed = network()
    fix_batch(fixed, 4)
    with pytest.raises(UserError, match="fixed at 4"):
        fix_batch(fixed, 2)


def test_a_preprocessing_that_pillow_does_not_share_is_refused(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.export import onnx_options

    def another(preprocess: Preprocess, *given: Any, **more: Any) -> onnx.ModelProto:
        wrong = Preprocess(**(asdict(preprocess) | {"interpolation": "bicubic"}))
        return preprocess_model(wrong, *given, **more)

    monkeypatch.setattr(onnx_options, "preprocess_model", another)
    path = file()
    before = path.read_bytes()
    with pytest.raises(ExportError, match="differs from Pillow's by"):
        refine(path, OnnxOptions(embed_preprocess="resize"), PREPROCESS, drawn_images(2))
    assert path.read_bytes() == before


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """What an optimiser may do to stored int8 weights: expand them."""
    by_name = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    node = next(n for n in model.graph.node if n.name == "dw")
    weights = (by_name["w8"].astype(np.float32) * by_name["ws"]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    model.graph.node.remove(node)
    return model


def doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    dense = next(t for t in model.graph.initializer if t.name == "d")
    dense.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(dense) * 2, "d"))
    return model


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "answer"
    return model


def broken(model: onnx.ModelProto) -> onnx.ModelProto:
    raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (folded, "it removed 1 of 3 quantisers"),
        (doubled, "the numbers changed"),
        (renamed, "it changed the inputs or outputs"),
        (broken, r"it failed \(RuntimeError: a bug\)"),
    ],
)
def test_what_onnxslim_spoils_is_not_taken_and_is_said(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    does: Callable[[onnx.ModelProto], onnx.ModelProto], says: str,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "onnxslim", SimpleNamespace(slim=does))
    path = file(quantised=True)
    before = onnx.load(str(path))
    notes = refine(path, OnnxOptions(slim=True), PREPROCESS, drawn_images(2)).notes
    import re

    assert "was not taken" in notes[-1]
    assert re.search(says, notes[-1])
    after = onnx.load(str(path))
    assert after.graph == before.graph


def test_a_missing_onnxslim_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(EnvironmentLacks, match="pip install onnxslim"):
        slim(network(), lambda proto: None)


def test_the_properties_tell_labels_preprocessing_licences_and_what_was_done() -> None:
    history = [
        Entry("finetune", "r18", seed=1, metrics=Metrics(None, 1, 1, 1, None), config={"lr": 1}),
        Entry(
            "quantize", "r18", seed=2, versions={"torch": "2"},
            licences=Licences("CC0-1.0", "Apache-2.0"),
            inputs={"model": {"weights_sha256": "ab"}, "odd": {"name": "r18"}},
        ),
    ]  # fmt: skip
    found = properties("r18", ("a", "b\n"), PREPROCESS, history)
    assert json.loads(found["vcompress.labels"]) == ["a", "b\n"]
    assert json.loads(found["vcompress.preprocess"])["size"] == [24, 32]
    assert found["vcompress.licence.weights"] == "Apache-2.0"
    assert found["vcompress.licence.data"] == "CC0-1.0"
    assert json.loads(found["vcompress.versions"]) == {"torch": "2"}
    assert json.loads(found["vcompress.provenance"]) == [
        {"stage": "finetune", "model": "r18", "seed": 1},
        {"stage": "quantize", "model": "r18", "seed": 2, "weights_sha256": {"model": "ab"}},
    ]
    assert properties("r18", (), PREPROCESS, ())["vcompress.licence.data"] == "unknown"


def test_vbench_measures_a_file_that_takes_pixels(
    file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vcompress.bench.cli import main

    path = file()
    refine(path, OnnxOptions(embed_preprocess="resize", top_k=2), PREPROCESS, drawn_images(1))
    out = str(tmp_path / "result.json")
    argv = [str(path), "--seconds", "0.2", "--no-cold-start", "--threads", "1", "--json", out]
    assert main(argv) == 2
    assert "--shape image=1x<height>x<width>x3" in capsys.readouterr().err
    assert main([*argv, "--shape", "image=1x48x64x3"]) == 0


def test_the_command_writes_a_file_of_its_own_and_leaves_the_bundle(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vcompress.bench import load
    from vcompress.compress.cli import main

    before = {p.name: p.read_bytes() for p in (work / "runs/net").iterdir()}
    argv = ["export", "runs/net", "--trust", "tiny_nets:batch", "--softmax", "--embed-preprocess"]
    assert main([*argv, "resize"]) == 2
    assert "give --out FILE.onnx" in " ".join(capsys.readouterr().err.split())
    assert main([*argv, "resize", "--out", "own/net.onnx"]) == 0
    assert "embedded preprocessing: " in capsys.readouterr().out
    assert [p.name for p in (work / "own").iterdir()] == ["net.onnx"]
    assert {p.name: p.read_bytes() for p in (work / "runs/net").iterdir()} == before
    image = Image.open(next((work / "images").rglob("*.png"))).convert("RGB")
    run = session((work / "own/net.onnx").read_bytes())
    with load("runs/net") as model:
        wanted = model.scores([image])
        assert np.allclose(run({"image": pixels(image)})[0], wanted, atol=5e-3)
        told = {p.key: p.value for p in onnx.load("own/net.onnx").metadata_props}
        assert json.loads(told["vcompress.labels"]) == list(model.bundle.labels)
        assert json.loads(told["vcompress.provenance"])[0]["stage"] == "finetune"
    inside = {p.key for p in onnx.load("runs/net/model.onnx").metadata_props}
    assert {"vcompress.provenance", "vcompress.licence.weights", "vcompress.versions"} <= inside
