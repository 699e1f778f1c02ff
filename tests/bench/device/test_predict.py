"""A bundle on a device: from an image of any kind to labels and scores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from vcompress.bench import load
from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, create
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.data.preprocess import apply, read_image
from vcompress.bench.errors import UserError
from vcompress.bench.run.subject import subjects

LABELS = ("red", "green", "blue", "none")
PREPROCESS = Preprocess((8, 8), resize=10, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
DENSE = np.array([[4, -1, 0, 0.5], [0, 3, -2, 0.1], [-1, 0, 5, 0.2]], np.float32)


def colour_model(batch: int | str = "batch", extra: Any = None) -> onnx.ModelProto:
    """Scores by the mean of each channel: [batch, 3, 8, 8] -> [batch, 4]."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["logits" if extra is None else "raw"]),
    ]
    graph = helper.make_graph(
        nodes + ([extra] if extra else []), "colour",
        [helper.make_tensor_value_info("input", 1, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, [batch, 4])],
        [numpy_helper.from_array(DENSE, "d")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def colours(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "colours", model: onnx.ModelProto | None = None, **changes: Any) -> Path:
        told: dict[str, Any] = {
            "input": InputSpec("input", (3, 8, 8)), "preprocess": PREPROCESS, "labels": LABELS,
            "data": None, "history": (),
        }  # fmt: skip
        with bundles.create(tmp_path / name, **(told | changes)) as folder:
            onnx.save(model or colour_model(), str(folder / "model.onnx"))
        return tmp_path / name

    return write


def picture(width: int = 23, height: int = 17, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def expected(image: Image.Image) -> Any:
    logits = apply(PREPROCESS, image).mean((1, 2)) @ DENSE
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_labels_and_scores_are_those_of_the_network_behind_the_bundles_preprocessing(
    colours: Callable[..., Path], tmp_path: Path
) -> None:
    image = picture()
    image.save(tmp_path / "a.png")
    scores = expected(image)
    order = np.argsort(-scores)
    with load(colours()) as model:
        for given in (tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)):
            best = model.predict(given, top=3)
            assert [p.label for p in best] == [LABELS[i] for i in order[:3]]
            assert [p.index for p in best] == order[:3].tolist()
            assert np.allclose([p.score for p in best], scores[order[:3]], atol=1e-6)
        assert len(model.predict(image)) == len(LABELS)
        assert np.isclose(sum(p.score for p in model.predict(image)), 1, atol=1e-6)


def test_a_list_is_batched_and_a_fixed_batch_is_filled_up(
    colours: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.bench.runtimes.onnxruntime import OnnxRuntimeSession

    images = [picture(seed=n) for n in range(7)]
    want = np.stack([expected(image) for image in images])
    calls: list[int] = []
    run = OnnxRuntimeSession.run

    def counted(session: OnnxRuntimeSession, fed: Any) -> Any:
        calls.append(len(fed["input"]))
        return run(session, fed)

    monkeypatch.setattr(OnnxRuntimeSession, "run", counted)
    for batch, sizes in (("batch", [7]), (1, [1] * 7), (3, [3] * 3)):
        with load(colours(f"b{batch}", colour_model(batch))) as model:
            found = model.predict(images, top=4)
            assert isinstance(found, list)
            assert len(found) == 7
            calls.clear()
            assert np.allclose(model.scores(images), want, atol=1e-6)
            assert calls == sizes
            assert [f[0].index for f in found] == want.argmax(1).tolist()
            assert model.predict([]) == []
            assert model.scores([]).shape == (0, 4)


def test_images_of_every_kind_are_read_as_the_training_side_reads_them(
    colours: Callable[..., Path], tmp_path: Path
) -> None:
    plain = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    plain.save(tmp_path / "turned.jpg", exif=exif)
    plain.convert("L").save(tmp_path / "grey.png")
    plain.convert("CMYK").save(tmp_path / "cmyk.jpg")
    plain.convert("P").save(tmp_path / "palette.gif")
    plain.convert("RGBA").save(tmp_path / "alpha.png")
    deep = (np.arange(17 * 23).reshape(17, 23) * 160).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with load(colours()) as model:
        files = sorted(p for p in tmp_path.iterdir() if p.is_file())
        assert len(files) == 6
        for file, scores in zip(files, model.scores(files), strict=True):
            assert np.allclose(scores, expected(read_image(file)), atol=1e-6), file.name
        with Image.open(tmp_path / "turned.jpg") as lazy:
            turned = model.scores([lazy])
        assert np.array_equal(turned, model.scores([tmp_path / "turned.jpg"]))
        grey = np.asarray(plain.convert("L"))
        alpha = np.asarray(plain.convert("RGBA"))
        same = model.scores([grey, grey[..., None], alpha, np.asarray(plain)[:, ::-1][:, ::-1]])
        assert np.allclose(same[0], same[1])
        assert np.allclose(same[2], same[3])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("nothing.png", "no such image"),
        ("broken.png", "cannot be read as an image"),
        ("cut.jpg", "cannot be read as an image"),
        (np.zeros((4, 4, 3), np.float32), "float32; expected uint8"),
        (np.zeros((4, 4, 2), np.uint8), "expected uint8"),
        (np.zeros((1, 4, 4, 3), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (b"bytes", "got bytes"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_one_message(
    colours: Callable[..., Path], tmp_path: Path, image: Any, says: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    picture(64, 64).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with load(colours()) as model, pytest.raises(UserError, match=says):
        model.predict(tmp_path / image if isinstance(image, str) else image)


def test_a_changed_file_another_task_and_outputs_that_do_not_fit_are_refused(
    colours: Callable[..., Path],
) -> None:
    changed = colours("changed")
    data = bytearray((changed / "model.onnx").read_bytes())
    data[-9] ^= 1
    (changed / "model.onnx").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.onnx: changed after it was written"):
        load(changed)
    with pytest.raises(UserError, match="predict knows classification"):
        load(colours("boxes", task="detection"))
    with (
        load(colours("few", labels=("a", "b"))) as model,
        pytest.raises(UserError, match="2 labels"),
    ):
        model.predict(picture())
    broken = colours("nan", colour_model(extra=helper.make_node("Log", ["raw"], ["logits"])))
    with load(broken) as model, pytest.raises(UserError, match="NaN or infinity"):
        model.predict(np.zeros((8, 8, 3), np.uint8))
    with load(colours()) as model, pytest.raises(UserError, match="top = 0"):
        model.predict(picture(), top=0)
    with pytest.raises(UserError, match="no runtime 'tvm'"):
        load(colours(), runtime="tvm")


def test_openvino_gives_the_same_scores(colours: Callable[..., Path]) -> None:
    pytest.importorskip("openvino")
    images = [picture(seed=n) for n in range(3)]
    with load(colours()) as ours, load(colours("two"), runtime="openvino") as theirs:
        assert theirs.session.facts.runtime == "openvino"
        assert np.allclose(ours.scores(images), theirs.scores(images), atol=1e-5)


def test_a_prediction_needs_nothing_of_the_training_side(
    colours: Callable[..., Path], tmp_path: Path
) -> None:
    picture().save(tmp_path / "a.png")
    code = (
        "import sys, json; from vcompress.bench import load\n"
        "assert 'numpy' not in sys.modules\n"
        "best = load(sys.argv[1]).predict(sys.argv[2])\n"
        "print(json.dumps([best[0].label, sorted({n.split('.')[0] for n in sys.modules})]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(colours()), str(tmp_path / "a.png")],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    label, modules = json.loads(done.stdout)
    assert label == LABELS[int(expected(picture()).argmax())]
    assert not set(modules) & {"torch", "torchvision", "onnx", "scipy", "rich", "tyro", "sklearn"}


def test_the_command_prints_a_table_or_json(
    colours: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vcompress.compress.cli import main

    image = tmp_path / "a.png"
    picture().save(image)
    where = str(colours(labels=("a\x1b[31m", "b\u202e", "c", "d")))
    assert main(["predict", where, str(image), str(image), "--json", "--top", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [str(image)] * 2
    best = rows[0]["predictions"]
    assert len(best) == 2
    assert np.isclose(best[0]["score"], expected(picture()).max(), atol=1e-6)
    assert main(["predict", where, str(image)]) == 0
    shown = capsys.readouterr().out
    assert f"{best[0]['score']:.4f}" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert main(["predict", where, str(tmp_path / "no.png")]) == 2
    assert "no such image" in capsys.readouterr().err
    assert main(["predict", where]) == 2


def test_what_was_hashed_is_what_runs(
    whole_bundle: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is exchanged between the hash and the opening: the runtime gets what was hashed."""
    from vcompress.bench import onnx_file
    from vcompress.bench.device import predict

    whole_bundle(tmp_path / "b")
    file = tmp_path / "b" / "model.onnx"
    image, held = np.full((32, 32, 3), 100, np.uint8), file.read_bytes()

    def exchanged(bundle: Bundle, name: str) -> bytes:
        found = bundles.content_of(bundle, name)
        file.write_bytes(onnx_file.identity_model())
        return found

    for runtime in ("onnxruntime", "openvino"):
        with load(tmp_path / "b", runtime=runtime, threads=1) as model:
            wanted = model.predict(image, 1)
        with monkeypatch.context() as patch:
            patch.setattr(predict, "content_of", exchanged)
            with load(tmp_path / "b", runtime=runtime, threads=1) as model:
                assert model.predict(image, 1) == wanted
        assert file.read_bytes() == onnx_file.identity_model()
        file.write_bytes(held)
    file.write_bytes(onnx_file.identity_model())
    with pytest.raises(UserError, match="changed after it was written"):
        load(tmp_path / "b", threads=1)


def test_a_file_that_is_read_in_small_pieces_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: Callable[..., Path]
) -> None:
    """As some file systems give it: fewer bytes than were asked for."""
    bundle = Bundle.open(colours())
    opened = Path.open

    class Short:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *error: object) -> None:
            self.stream.close()

        def read(self, size: int) -> bytes:
            content: bytes = self.stream.read(min(size, 10))
            return content

    whole = (bundle.path / "model.onnx").read_bytes()
    assert len(whole) > 100
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: Short(opened(path, *a, **k)))
    assert bundles.content_of(bundle, "model.onnx") == whole


def test_torch_opens_no_model_file(colours: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"opens no model file. Choose onnxruntime or openvino"):
        load(colours(), runtime="torch")


def test_weights_in_a_second_file_are_hashed_too(tmp_path: Path) -> None:
    dense = np.random.default_rng(0).standard_normal((3 * 32 * 32, 10)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])],
        "g", [helper.make_tensor_value_info("x", 1, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("y", 1, ["batch", 10])],
        [numpy_helper.from_array(dense, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with create(
        tmp_path / "b", input=InputSpec("x", (3, 32, 32)), preprocess=Preprocess((32, 32)),
        labels=tuple("abcdefghij"), data=None, history=(),
    ) as folder:  # fmt: skip
        onnx.save(
            proto, str(folder / "model.onnx"), save_as_external_data=True,
            location="model.onnx.data", size_threshold=0,
        )  # fmt: skip
    image = np.full((32, 32, 3), 100, np.uint8)
    with load(tmp_path / "b", threads=1) as model:
        prepared = model.task.prepare(model.bundle.preprocess, Image.fromarray(image)).values
        assert model.predict(image, 1)[0].label == "abcdefghij"[(prepared.ravel() @ dense).argmax()]
    data = tmp_path / "b" / "model.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
    with pytest.raises(UserError, match=r"model\.onnx\.data: changed after it was written"):
        load(tmp_path / "b", threads=1)
    with pytest.raises(UserError, match=r"model\.onnx\.data: changed after it was written"):
        subjects([tmp_path / "b"], None)
