"""Which runtime vbench measures in: the one asked for, else the one that a bundle was made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from vcompress.bench import cli
from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.manifest import seal_of
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.reports.result import artefact
from vcompress.bench.run.options import Options
from vcompress.bench.run.subject import (
    Images,
    Subject,
    images_for,
    runtime_for,
    subjects,
    threads_for,
)
from vcompress.bench.runtimes import openvino
from vcompress.bench.tasks import open_dataset


def subject(ships_in: Any, file: str = "model.onnx") -> Subject:
    """A model whose bundle says what it was quantised for."""
    bundle: Any = SimpleNamespace(ships_in=ships_in)
    return Subject(file, Path(file), bundle)


FLOAT = subject(None)


def record_latency(folder: Path, **more: Any) -> None:
    """Write metrics into the last stage of a bundle's history."""
    manifest = json.loads((folder / "manifest.json").read_text())
    latency = {
        "median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "batch": 1, "threads": 1, "steady": True,
        "provider": "CPU", "cpu": "a processor", "runtime": "openvino", **more,
    }  # fmt: skip
    manifest["history"][-1]["metrics"] = {
        "test": None, "parameters": 1, "macs": 1, "onnx_bytes": 1, "latency": latency
    }  # fmt: skip
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal_of(text))


def chosen(*found: Subject, **options: Any) -> tuple[str | None, list[str]]:
    models = tuple(s.path for s in found)
    return runtime_for(Options(models=models, **options), found)


@pytest.fixture
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "library", lambda: None)


@pytest.mark.usefixtures("present")
def test_a_bundle_chooses_its_runtime_for_itself_and_for_what_it_is_compared_with() -> None:
    said = "measured in openvino, which the network was quantised for; --runtime changes it"
    assert chosen(subject("openvino")) == ("openvino", [said])
    assert chosen(FLOAT, subject("openvino")) == ("openvino", [said])
    assert chosen(subject("openvino"), FLOAT) == ("openvino", [said])


@pytest.mark.usefixtures("present")
def test_what_was_asked_for_goes_before_the_bundle() -> None:
    made = subject("openvino")
    assert chosen(made, runtime="onnxruntime") == ("onnxruntime", [])
    assert chosen(made, device="cuda") == (None, [])
    name, (said,) = chosen(made, optimize=False)
    assert name is None
    assert said.endswith("--no-optimize belongs to onnxruntime; this model runs in openvino.")


@pytest.mark.usefixtures("present")
@pytest.mark.parametrize("ships_in", [None, "onnxruntime", "of-a-newer-version"])
def test_a_bundle_that_chooses_nothing_leaves_the_file_ending_to_decide(ships_in: Any) -> None:
    assert chosen(subject(ships_in)) == (None, [])
    assert chosen(Subject("m", Path("m.onnx"), None)) == (None, [])


@pytest.mark.usefixtures("present")
def test_where_the_bundle_cannot_choose_a_note_says_why() -> None:
    assert chosen(subject("openvino"), subject("onnxruntime")) == (
        None, ["quantised for onnxruntime and openvino: --runtime chooses where to measure"]
    )  # fmt: skip
    assert chosen(subject("tensorrt")) == (
        None, ["quantised for tensorrt, but not measured in it: it opens .engine, .plan, .trt"]
    )  # fmt: skip
    assert chosen(subject("tensorrt", "model.engine")) == (None, [])


def test_a_runtime_that_is_missing_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def library() -> Any:
        raise EnvironmentLacks("no openvino (simulated).")

    monkeypatch.setattr(openvino, "library", library)
    assert chosen(subject("openvino")) == (
        None,
        ["quantised for openvino, but not measured in it: no openvino (simulated)."],
    )


def test_vbench_measures_the_bundle_in_openvino(
    whole_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    assert whole_bundle(tmp_path / "q").ships_in is None
    record_latency(tmp_path / "q", ships_in="openvino")
    assert Bundle.open(tmp_path / "q").ships_in == "openvino"
    saved = tmp_path / "r.json"
    argv = [str(tmp_path / "q"), "--threads", "1", "--seconds", "0.1", "--no-cold-start"]
    assert cli.main([*argv, "--json", str(saved)]) == 0
    found = json.loads(saved.read_text())
    assert found["models"][0]["runtime"]["runtime"] == "openvino"
    assert len(found["notes"]) == 1
    assert "which the network was quantised for" in capsys.readouterr().out


def test_a_model_of_many_classes_is_scored_on_some_of_them(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten outputs, two of which have images: the same answers as of a loop of our own."""
    random = np.random.default_rng(0)
    for name in ("seven", "two"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    words = "zero one two three four five six seven eight nine"
    (tmp_path / "labels.txt").write_text(words.replace(" ", "\n"))
    pre = '{"size":[32,32],"mean":[0,0,0],"std":[1,1,1]}'
    flags = ["--classes", str(tmp_path / "labels.txt"), "--preprocess", pre, "--seconds", "0.05"]
    file, out = str(models / "classifier.onnx"), tmp_path / "r.json"
    status = cli.main(
        [file, "--data", str(tmp_path), *flags, "--no-cold-start", "--json", str(out)]
    )
    assert status == 0, capsys.readouterr()
    found = json.loads(out.read_text())["models"][0]["accuracy"]
    net, right = onnxruntime.InferenceSession(file), 0
    for name, number in (("seven", 7), ("two", 2)):
        for path in sorted((tmp_path / "val" / name).iterdir()):
            image = np.asarray(Image.open(path), np.float32).transpose(2, 0, 1)[None] / 255
            right += int(net.run(None, {"x": image})[0].argmax() == number)
    assert (found["n"], found["correct"]) == (12, right)
    assert sorted(set(found["labels"])) == [2, 7]


def timed(threads: int | None, file: str = "model.onnx") -> Subject:
    """A model whose bundle has a latency on so many threads, or none."""
    latency = None if threads is None else SimpleNamespace(threads=threads)
    entry = SimpleNamespace(metrics=SimpleNamespace(latency=latency))
    bundle: Any = SimpleNamespace(history=(entry,))
    return Subject(file, Path(file), bundle)


@pytest.mark.parametrize(
    ("found", "more", "threads"),
    [
        ([timed(2)], {}, 2),
        ([timed(2), timed(None)], {}, 2),
        ([timed(2), Subject("m", Path("m.onnx"), None)], {}, 2),
        ([timed(2), timed(1)], {}, None),
        ([timed(None)], {}, None),
        ([timed(2)], {"threads": 4}, 4),
        ([timed(2)], {"device": "cuda"}, None),
        ([timed(2, "m.engine")], {}, None),
    ],
)
def test_a_bundle_is_measured_on_the_threads_of_its_latency(
    found: list[Subject], more: dict[str, Any], threads: int | None
) -> None:
    got, notes = threads_for(Options(models=(), **more), found)
    assert got == threads
    assert bool(notes) == (threads == 2)


def images(folder: Path, *records: dict[str, Any], **options: Any) -> Images:
    """What is measured on with --data, for models of which these data are recorded."""
    bundles: list[Any] = [SimpleNamespace(data=record, task="classification") for record in records]
    found = [Subject("m", Path("m.onnx"), bundle) for bundle in bundles or [None]]
    chosen, notes = images_for(Options(models=(), data=str(folder), **options), found)
    assert chosen is not None and notes == []
    return chosen


def test_a_folder_that_nobody_has_divided_is_measured_on_as_a_whole(
    image_folder: Callable[..., Path],
) -> None:
    folder = image_folder(red=10, green=20)
    found = images(folder)
    assert found.indices.tolist() == list(range(30))
    assert found.source == f"{folder}, all images, 30 images"
    assert len(images(folder, split="test").indices) == 6
    assert len(images(folder, limit=10).indices) == 10
    assert len(images(image_folder("few", red=1, green=1)).indices) == 2
    with pytest.raises(UserError, match="--split dev: expected train, val, test, all"):
        images(folder, split="dev")


def test_a_folder_that_a_model_was_trained_on_is_measured_on_by_its_held_out_images(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = image_folder(red=10, green=20)
    dataset = open_dataset(str(folder))
    here = {"source": str(folder), "fingerprint": "of images that have changed since"}
    moved = {"source": "elsewhere", "fingerprint": dataset.fingerprint}
    other = {"source": "elsewhere", "fingerprint": "another"}
    for records in ((here,), (moved,), (other, here)):
        assert images(folder, *records).indices.tolist() == dataset.splits["test"].tolist()
    assert len(images(folder, other).indices) == 30


def test_splits_of_the_owner_stay(image_folder: Callable[..., Path]) -> None:
    image_folder("set/train", red=10, green=10)
    folder = image_folder("set/val", red=2, green=3).parent
    found = images(folder)
    assert found.source == f"{folder}, test split, 5 images"
    assert images(Path("digits")).source == "digits, test split, 359 images"


def test_a_bundles_file_is_hashed_once(
    whole_bundle: Callable[[Path], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = whole_bundle(tmp_path / "b")
    (found,) = subjects((made.path,), None)
    wanted = hashlib.sha256((made.path / "model.onnx").read_bytes()).hexdigest()
    assert found.sha256 == wanted
    monkeypatch.setattr(hashlib, "sha256", None)
    assert artefact(found.path, found.name, found.sha256).sha256 == wanted
