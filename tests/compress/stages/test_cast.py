"""`vcompress cast`: the bundle remembers what its file is exported in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from vcompress.bench.bundle import Bundle, Preprocess
from vcompress.bench.bundle.history import Entry
from vcompress.bench.errors import UserError
from vcompress.compress.bundles.store import Network, load_network
from vcompress.compress.models.catalogue import build, make_spec
from vcompress.compress.models.precision import precision_of
from vcompress.compress.pipeline.finish import finish
from vcompress.compress.reporting.terminal import rows
from vcompress.compress.stages import cast

SIZE = (32, 32)


def bundle(folder: Path, dtype: Any) -> Bundle:
    torch.manual_seed(0)
    spec = make_spec("r18", 2, SIZE)
    context: Any = None
    outcome = cast.apply(build(spec), cast.Config(dtype=dtype), context)
    entry = Entry("cast", "resnet18", details=outcome.details)
    return finish(
        Network(outcome.model, spec), folder, entry, (), labels=("a", "b"),
        preprocess=Preprocess(size=SIZE), dataset=None, task="classification",
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vcompress.compress.pipeline.measure.LATENCY_SECONDS", 0.05)
        patch.setattr("vcompress.compress.bundles.recorded.PARITY_IMAGES", 8)
        yield


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, short: None) -> Bundle:
    return bundle(tmp_path_factory.mktemp("half") / "b", "fp16")


def test_a_bundle_in_float16_is_measured_and_stays_trainable_in_float32(half: Bundle) -> None:
    made = half
    metrics = made.history[0].metrics
    assert metrics.latency.median_ms > 0
    assert metrics.parity["optimised"]["sqnr_db"] > 40
    assert metrics.export["cast"]["casts"] == 2
    assert made.input.dtype == "float32"
    proto = onnx.load(str(made.file("model.onnx")))
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    model = load_network(made).model
    assert precision_of(model) == "fp16"
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_bfloat16_says_what_was_not_measured_instead_of_a_number(tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", "bf16")
    metrics = made.history[0].metrics
    assert metrics.latency is None
    assert metrics.test is None
    assert "reference evaluator" in metrics.parity["message"]
    assert rows(made.history)[0][-1] == "not measured"
    assert "nothing was measured there" in made.file("report.html").read_text()
    made.verify()


def test_a_precision_that_is_not_known_is_refused(half: Bundle, tmp_path: Path) -> None:
    made = Bundle.open(shutil.copytree(half.path, tmp_path / "b"))
    file = made.path / "architecture.json"
    assert json.loads(file.read_text())["precision"] == "fp16"
    body = json.loads(file.read_text()) | {"precision": "fp7"}
    file.write_text(json.dumps(body))
    entry = made.files["architecture.json"]
    changed = {**made.files, "architecture.json": _again(entry, file)}
    with pytest.raises(UserError, match="precision 'fp7'"):
        load_network(Bundle(made.path, made.input, made.preprocess, made.labels, changed))


def _again(entry: Any, file: Path) -> Any:
    from dataclasses import replace

    from vcompress.bench.bundle import sha256

    return replace(entry, sha256=sha256(file), bytes=file.stat().st_size)
