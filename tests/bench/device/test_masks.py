"""A bundle that gives each pixel a class, on a device: masks at the image's own size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

from vcompress.bench import load
from vcompress.bench.bundle import InputSpec, Preprocess, create
from vcompress.bench.data.scenes import open_scenes
from vcompress.bench.device.pictures import colours, mask_picture, overlay
from vcompress.bench.tasks.pixels import _between, places
from vcompress.bench.verify.golden import compare
from vcompress.compress.cli import main as vcompress

LABELS = ("background", "red", "green", "blue")
PLAIN = Preprocess(size=(32, 48), mean=(0.0,) * 3, std=(1.0,) * 3)


def segmenter(path: Path, stride: int = 1, whole: bool = False) -> None:
    """The class of the strongest channel, and the first one where none is above 0.4."""
    weights = np.zeros((4, 3, 1, 1), np.float32)
    weights[1:, :, 0, 0] = np.eye(3)
    constants = [
        numpy_helper.from_array(weights, "w"),
        numpy_helper.from_array(np.array([0.4, 0, 0, 0], np.float32), "b"),
    ]
    nodes = [helper.make_node("Conv", ["input", "w", "b"], ["raw"], strides=[stride, stride])]
    last = (
        helper.make_node("ArgMax", ["raw"], ["logits"], axis=1, keepdims=0)
        if whole
        else helper.make_node("Identity", ["raw"], ["logits"])
    )
    shape = ["n", None, None] if whole else ["n", 4, None, None]
    graph = helper.make_graph(
        [*nodes, last], "colours",
        [helper.make_tensor_value_info("input", 1, ["n", 3, 32, 48])],
        [helper.make_tensor_value_info("logits", 7 if whole else 1, shape)], constants,
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )


def bundle(path: Path, preprocess: Preprocess = PLAIN, **form: object) -> Path:
    with create(
        path, input=InputSpec("input", (3, 32, 48)), preprocess=preprocess, labels=LABELS,
        data=None, history=(), task="segmentation",
    ) as folder:  # fmt: skip
        segmenter(folder / "model.onnx", **form)  # type: ignore[arg-type]
    return path


def quarters(height: int = 64, width: int = 96) -> Image.Image:
    """Black, red, green and blue, a quarter each."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, width // 2 :, 0] = 255
    pixels[height // 2 :, : width // 2, 1] = 255
    pixels[height // 2 :, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", [{}, {"stride": 2}, {"whole": True}])
def test_the_mask_has_the_size_of_the_image(tmp_path: Path, form: dict[str, object]) -> None:
    with load(bundle(tmp_path / "b", **form)) as model:
        found = model.predict(quarters())
        both = model.predict([quarters(), quarters(30, 40)])
        maps = model.scores([quarters()] * 3)
    assert found.mask is not None
    assert found.mask.shape == (64, 96)
    assert (found.mask[2:28, 2:44] == 0).all()
    assert (found.mask[2:28, 52:] == 1).all()
    assert (found.mask[36:, 2:44] == 2).all()
    assert (found.mask[36:, 52:] == 3).all()
    assert {p.label for p in found} == set(LABELS)
    assert [p.score for p in found] == pytest.approx([0.25] * 4, abs=0.02)
    assert [m.mask.shape for m in both if m.mask is not None] == [(64, 96), (30, 40)]
    assert maps.shape[0] == 3


def test_what_a_crop_does_not_show_is_not_counted(tmp_path: Path) -> None:
    cut = Preprocess(size=(32, 48), resize=48, mean=(0.0,) * 3, std=(1.0,) * 3)
    with load(bundle(tmp_path / "b", cut)) as model:
        found = model.predict(quarters(96, 96))
    assert found.mask is not None
    assert (found.mask[:16] == 255).all()
    assert (found.mask[80:] == 255).all()
    assert (found.mask[16:80] != 255).all()
    assert sum(p.score for p in found) == pytest.approx(1)


def test_the_mask_is_torchs_wherever_the_resized_logits_are(tmp_path: Path) -> None:
    rng, scenes, same, pixels = np.random.default_rng(0), open_scenes(0), 0, 0
    with load(bundle(tmp_path / "b", stride=4)) as model:
        for i in range(200):
            size = tuple(int(x) for x in rng.integers(20, 140, 2))
            image = Image.fromarray(scenes.scene(i).pixels).resize(size)
            found = model.predict(image).mask
            logits = model.scores([image])
            resized = torch.nn.functional.interpolate(
                torch.from_numpy(logits), size=size[::-1], mode="bilinear", align_corners=False
            )[0].numpy()
            rows, columns = (
                places(n, m) for n, m in zip(logits.shape[2:], size[::-1], strict=True)
            )
            equal = (_between(_between(logits[0], columns, 2), rows, 1) == resized).all(0)
            assert found is not None
            assert (found == resized.argmax(0))[equal].all()
            same += int((found == resized.argmax(0)).sum())
            pixels += found.size
    assert same / pixels > 0.99999


def test_golden_outputs_compare_the_class_of_each_pixel() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4, 16, 24)).astype(np.float32)
    near = logits + 1e-4 * rng.normal(size=logits.shape).astype(np.float32)
    found = compare({"logits": logits}, {"logits": near}, limit=60.0, task="segmentation")
    assert found["state"] == "agrees"
    assert "pixel class equal in" in str(found["message"])
    turned = logits.copy()
    turned[0, :, :4] = np.roll(turned[0, :, :4], 1, 0)
    found = compare({"logits": logits}, {"logits": turned}, limit=40.0, task="segmentation")
    assert found["state"] == "differs"
    assert "another pixel class in" in str(found["message"])
    best = logits.argmax(1)
    found = compare({"classes": best}, {"classes": best}, limit=60.0, task="segmentation")
    assert found["state"] == "agrees"


def test_pictures_show_the_classes_in_colours_that_lie_apart() -> None:
    table = colours(tuple(map(str, range(24)))).astype(int)
    apart = np.abs(table[:24, None] - table[None, :24]).sum(2) + 999 * np.eye(24, dtype=int)
    assert apart.min() >= 50
    assert colours(LABELS)[0].tolist() == [0, 0, 0]
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6], mask[7] = 2, 255
    drawn = mask_picture(mask, LABELS)
    assert drawn.mode == "P"
    assert (np.asarray(drawn) == mask).all()
    assert np.asarray(drawn.convert("RGB"))[3, 3].tolist() == colours(LABELS)[2].tolist()
    grey = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    over = np.asarray(overlay(grey, mask, LABELS))
    assert over[0, 0].tolist() == [100, 100, 100]
    assert over[4, 4].tolist() == ((100 + colours(LABELS)[2].astype(int)) // 2).tolist()


def test_predict_writes_overlays_and_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle(tmp_path / "b")
    quarters().save("street.png")
    quarters(30, 40).save("other.png")
    assert vcompress(["predict", "b", "street.png", "--out", "over.jpg", "--mask", "m.png"]) == 0
    said = capsys.readouterr().out
    assert "0.2" in said
    assert "red" in said
    with Image.open("m.png") as mask, Image.open("over.jpg") as over:
        assert (mask.mode, mask.size, over.size) == ("P", (96, 64), (96, 64))
        assert np.asarray(mask)[5, 90] == 1
    argv = ["predict", "b", "street.png", "other.png", "--out", "all", "--mask", "all-masks"]
    assert vcompress([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["size"] for row in rows] == [[64, 96], [30, 40]]
    for row in rows:
        assert sum(p["pixels"] for p in row["predictions"]) == row["size"][0] * row["size"][1]
    assert {p.name for p in Path("all-masks").iterdir()} == {"street.png", "other.png"}
    with Image.open("all-masks/other.png") as mask:
        counts = np.bincount(np.asarray(mask).ravel(), minlength=4)
    assert {p["label"]: p["pixels"] for p in rows[1]["predictions"]} == dict(
        zip(LABELS, counts.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "over.txt"], "expected a file that ends in .png or .jpg"),
        (["--mask", "mask.jpg"], "expected a file that ends in .png"),
        (["--out", "street.png"], "would destroy it"),
        (["--out", "nowhere/over.png"], "there is no folder"),
        (["--out", "b/over.png"], "would destroy it"),
        (["x/street.png", "--out", "all"], "named for two results"),
        (["x/street.png", "--mask", "there.png"], "a file; for several images give a folder"),
        (["gone.png"], "no such image"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    more: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    bundle(tmp_path / "b")
    (tmp_path / "x").mkdir()
    for name in ("street.png", "x/street.png", "there.png"):
        quarters().save(name)
    before = Path("street.png").read_bytes()
    assert vcompress(["predict", "b", "street.png", *more]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert Path("street.png").read_bytes() == before


def test_a_network_of_whole_images_has_no_mask_to_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "means", [helper.make_tensor_value_info("input", 1, ["n", 3, 32, 48])],
        [helper.make_tensor_value_info("logits", 1, ["n", 3])],
    )  # fmt: skip
    with create(
        tmp_path / "b", input=InputSpec("input", (3, 32, 48)), preprocess=PLAIN,
        labels=LABELS[1:], data=None, history=(),
    ) as folder:  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
            folder / "model.onnx",
        )
    quarters().save("street.png")
    assert vcompress(["predict", "b", "street.png", "--out", "over.png"]) == 2
    assert "nothing of its pixels" in " ".join(capsys.readouterr().err.split())
    assert not Path("over.png").exists()
