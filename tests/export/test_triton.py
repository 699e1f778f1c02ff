"""A model repository for Triton: read back with the protobuf definition that tritonclient ships."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from vcompress.bench.bundle import InputSpec, Preprocess
from vcompress.bench.bundle import bundle as bundles
from vcompress.bench.errors import UserError
from vcompress.compress.delivery.triton import default_name, export_triton
from vcompress.export.triton import Serving, Tensor, check, config, write_repository

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

LABELS = ("red", "green and \u201cblue\u201d", "c\\d")


def parse(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def model(batch: int | str = "batch") -> onnx.ModelProto:
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "d"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes, "tiny", [helper.make_tensor_value_info("input", 1, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, [batch, 3])],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), "d")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    def write(
        batch: int | str = "batch", labels: tuple[str, ...] = LABELS, flavour: str | None = None,
        batch_of_engine: Sequence[int] = (1, 4, 16),
    ) -> Path:  # fmt: skip
        path = tmp_path / "a bundle"
        with bundles.create(
            path, input=InputSpec("input", (3, 8, 8)), preprocess=Preprocess((8, 8)),
            labels=labels, data=None, history=(),
        ) as folder:  # fmt: skip
            onnx.save(model(batch), str(folder / "model.onnx"))
            if flavour is not None:
                (folder / "engines").mkdir()
                (folder / "engines" / "e.engine").write_bytes(b"engine")
                settings = {"flavour": flavour, "batch": list(batch_of_engine)}
                record = {"build": {"settings": settings}}
                (folder / "engines" / "e.json").write_text(json.dumps(record))
        return path

    return write


def test_the_repository_serves_the_bundles_file(
    bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = bundle(), tmp_path / "repository"
    said = export_triton(path, out, Serving(name=default_name(path), max_batch=16, instances=2))
    assert "parses with Triton's own definition" in said
    folder = out / "a-bundle"
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == [
        "a-bundle/1/model.onnx", "a-bundle/config.pbtxt", "a-bundle/labels.txt",
    ]  # fmt: skip
    assert (folder / "1/model.onnx").read_bytes() == (path / "model.onnx").read_bytes()
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(LABELS)
    found = parse((folder / "config.pbtxt").read_text())
    assert (found.name, found.backend, found.max_batch_size) == ("a-bundle", "onnxruntime", 16)
    assert found.default_model_filename == "model.onnx"
    (entry,), (output,), (group,) = found.input, found.output, found.instance_group
    assert (entry.name, list(entry.dims)) == ("input", [3, 8, 8])
    assert entry.data_type == output.data_type == model_config_pb2.TYPE_FP32
    assert (output.name, list(output.dims), output.label_filename) == ("logits", [3], "labels.txt")
    assert group.count == 2
    assert group.kind == model_config_pb2.ModelInstanceGroup.KIND_AUTO
    assert found.HasField("dynamic_batching")
    assert found.dynamic_batching.max_queue_delay_microseconds == 100
    assert [w.batch_size for w in found.model_warmup] == [1, 16]
    assert all(list(w.inputs["input"].dims) == [3, 8, 8] for w in found.model_warmup)
    assert len(found.parameters["vcompress.sha256"].string_value) == 64
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_fixed_batch_is_left_to_the_model(bundle: Callable[..., Path], tmp_path: Path) -> None:
    export_triton(bundle(4), tmp_path / "repository", Serving(name="fixed"))
    found = parse((tmp_path / "repository/fixed/config.pbtxt").read_text())
    assert found.max_batch_size == 0
    assert list(found.input[0].dims) == [4, 3, 8, 8]
    assert not found.HasField("dynamic_batching")
    assert [w.batch_size for w in found.model_warmup] == [1]


def test_an_engine_is_served_on_the_gpu(bundle: Callable[..., Path], tmp_path: Path) -> None:
    path = bundle(flavour="tensorrt")
    export_triton(path, tmp_path / "repository", Serving(name="e", max_batch=16), engine="e")
    assert (tmp_path / "repository/e/1/model.plan").read_bytes() == b"engine"
    found = parse((tmp_path / "repository/e/config.pbtxt").read_text())
    assert (found.backend, found.default_model_filename) == ("tensorrt", "model.plan")
    assert found.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    with pytest.raises(UserError, match="takes 1 to 16 images"):
        export_triton(path, tmp_path / "r2", Serving(name="e", max_batch=32), engine="e")
    with pytest.raises(UserError, match="no engine 'f'"):
        export_triton(path, tmp_path / "r2", Serving(name="e"), engine="f")
    other = bundle(flavour="tensorrt-rtx")
    with pytest.raises(UserError, match="Triton runs engines of classic TensorRT"):
        export_triton(other, tmp_path / "r2", Serving(name="e"), engine="e")
    damaged = bundle(flavour="tensorrt", batch_of_engine=[1, 2])
    with pytest.raises(UserError, match=r"e\.json: not a record of an engine"):
        export_triton(damaged, tmp_path / "r2", Serving(name="e"), engine="e")
    assert not (tmp_path / "r2").exists()


def test_pixels_of_any_size_and_the_best_classes_are_described() -> None:
    serving = Serving(name="pixels", max_batch=1)
    text = config(
        serving, [Tensor("image", (None, None, None, 3), "uint8")],
        [Tensor("scores", (None, 5), "float32"), Tensor("classes", (None, 5), "int64")],
        engine=False, classes=1000, properties={"odd": 'a "quote" \\ and\nline \u00fc'},
    )  # fmt: skip
    assert check(text, serving)
    found = parse(text)
    assert list(found.input[0].dims) == [-1, -1, 3]
    assert found.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert [o.data_type for o in found.output] == [
        model_config_pb2.TYPE_FP32, model_config_pb2.TYPE_INT64,
    ]  # fmt: skip
    assert [o.label_filename for o in found.output] == ["", ""]
    assert list(found.model_warmup[0].inputs["image"].dims) == [256, 256, 3]
    assert len(found.model_warmup) == 1
    assert found.parameters["odd"].string_value == 'a "quote" \\ and\nline \u00fc'


def test_what_triton_cannot_serve_is_refused(bundle: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("", "../up", "a/b", ".hidden", "x" * 101, "a b"):
        with pytest.raises(UserError, match="expected letters, digits"):
            Serving(name=name)
    with pytest.raises(UserError, match="max_batch = 0"):
        Serving(name="a", max_batch=0)
    out = tmp_path / "repository"
    export_triton(bundle(), out, Serving(name="a"))
    before = (out / "a/config.pbtxt").read_bytes()
    with pytest.raises(UserError, match="there is something already"):
        export_triton(bundle(), out, Serving(name="a", max_batch=2))
    assert (out / "a/config.pbtxt").read_bytes() == before
    with pytest.raises(UserError, match="one label a line"):
        export_triton(bundle(labels=("a\nb", "c", "d")), out, Serving(name="b"))
    assert [p.name for p in out.iterdir()] == ["a"]
    with pytest.raises(UserError, match="complex64 is no type"):
        config(
            Serving(name="a"), [Tensor("x", (None, 3), "complex64")], [], engine=False, classes=1,
            properties={},
        )  # fmt: skip
    with pytest.raises(UserError, match="not one that it reads"):
        check('name: "a" nonsense: 1', Serving(name="a"))


def test_a_repository_that_is_a_mount_of_its_own_is_written_to(tmp_path: Path) -> None:
    mount, model = Path("/dev/shm"), tmp_path / "model.onnx"
    if not mount.is_mount() or not os.access(mount, os.W_OK):
        pytest.skip("/dev/shm is no file system of its own here")
    model.write_bytes(b"a network")
    serving = Serving(name=f"vcompress-{os.getpid()}")
    try:
        made = write_repository(mount, model, LABELS, "text", serving, engine=False)
        assert (made / "1" / "model.onnx").read_bytes() == b"a network"
        assert not list(mount.glob(".vcompress-*"))
    finally:
        shutil.rmtree(mount / serving.name, ignore_errors=True)


def test_the_command_serves_a_file_with_pixels_in_and_classes_out(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vcompress.compress.cli import main

    argv = ["export", "runs/net", "--trust", "tiny_nets:batch", "--to", "triton"]
    assert main(argv) == 2
    assert "give --out FOLDER" in capsys.readouterr().err
    more = ["--out", "repository", "--embed-preprocess", "normalise", "--top-k", "2"]
    assert main([*argv, *more, "--serve-name", "colours"]) == 0
    assert "SQNR" in capsys.readouterr().out
    found = parse((work / "repository/colours/config.pbtxt").read_text())
    assert list(found.input[0].dims) == [16, 16, 3]
    assert [o.name for o in found.output] == ["scores", "classes"]
    served = onnx.load(str(work / "repository/colours/1/model.onnx"))
    assert [i.name for i in served.graph.input] == ["image"]
