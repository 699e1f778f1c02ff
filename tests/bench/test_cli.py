from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from vcompress.bench import cli
from vcompress.bench.bundle import bundle
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.run import apart, job
from vcompress.bench.tasks import open_dataset
from vcompress.bench.timing.compare import CompareEffort
from vcompress.bench.timing.measure import Effort

QUICK = ["--threads", "1", "--seconds", "0.1", "--no-cold-start"]


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    status = cli.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return status, out, err


def test_help_is_there_at_once_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from vcompress.bench.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy','scipy','onnxruntime','torch','onnx','PIL','rich','tyro','dacite'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        took.append(time.perf_counter() - start)
    assert "LOADED []" in done.stdout
    assert "exit status: 0 the limits hold" in done.stdout
    # A quarter of a second on a quiet machine; others may use this one's cores now.
    assert min(took) < 0.5


def test_one_model_is_measured_and_every_output_written(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gate.toml").write_text("max_p50_ms = 1000\nmax_size_mb = 1\n")
    status, out, _ = run(
        capsys, models / "classifier.onnx", *QUICK[:-1], "--gate", tmp_path / "gate.toml",
        "--json", tmp_path / "r.json", "--html", tmp_path / "r.html",
        "--junit", tmp_path / "r.xml", "--markdown", tmp_path / "r.md", "--as", "perf_test",
        "--profile", "--concurrency", "2", "--rate", "200", "--batch", "1,2",
    )  # fmt: skip
    assert status == 0
    assert "latency, median" in out
    assert "PASS" in out
    assert "P50 Latency" in out
    found = json.loads((tmp_path / "r.json").read_text())
    model = found["models"][0]
    assert model["runtime"]["provider"] == "CPUExecutionProvider"
    assert model["cold_start"]["load_ms"] > 0
    assert model["throughput"]["images_per_second"] > 0
    assert [m["workload"]["batch"] for m in found["sweep"]] == [1, 2]
    assert found["gate"][0]["outcome"] == "pass"
    assert ElementTree.parse(tmp_path / "r.xml").getroot().tag == "testsuites"
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert "gate" in (tmp_path / "r.md").read_text()


def test_a_gate_that_fails_gives_status_one(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gate.toml").write_text("max_p50_ms = 0.000001\n")
    status, out, _ = run(
        capsys, models / "classifier.onnx", *QUICK, "--gate", tmp_path / "gate.toml"
    )
    assert status == 1
    assert "FAIL" in out


def test_a_limit_needs_no_file(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = models / "classifier.onnx"
    status, out, _ = run(
        capsys, model, *QUICK, "--require", "latency_ms<=0.000001", "--require", "size_mb<=1"
    )
    assert status == 1
    assert "latency_ms<=1e-06" in out and "size_mb<=1" in out
    status, _, error = run(capsys, model, *QUICK, "--require", "latency<4")
    assert status == 2 and "expected a kind, <= or >=" in error


def test_a_saved_result_is_the_baseline_of_the_next_run(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "saved.json"
    assert run(capsys, models / "classifier.onnx", *QUICK, "--json", saved)[0] == 0
    status, out, _ = run(capsys, models / "classifier.onnx", *QUICK, "--baseline", saved)
    assert status in (0, 3)
    assert "the saved classifier" in out
    status, _, err = run(
        capsys, models / "classifier.onnx", *QUICK, "--batch", "2", "--baseline", saved
    )
    assert status == 2
    assert "workload.shapes" in err


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["missing.onnx"], 2, "no such file"),
        (["a" * 300 + ".onnx"], 2, "no such file"),
        (["classifier.onnx", "--device", "cuda"], 4, "--device cuda"),
        (["classifier.onnx", "--runtime", "onnxrt"], 2, "Did you mean 'onnxruntime'"),
        (["classifier.onnx", "--shape", "y=1x3x32x32"], 2, "no such input"),
        (["image.onnx"], 2, "--shape x=1x3x<height>x<width>"),
        (["fixed.onnx", "--batch", "3"], 2, "fixed first dimension"),
        (["classifier.onnx", "--data", "digit"], 2, "Did you mean 'digits'"),
        (["classifier.onnx", "--as", "trtexec9"], 2, "expected one of trtexec10"),
        (["classifier.onnx", "--gate", "none.toml"], 2, "cannot be read"),
        (["classifier.onnx", "--baseline", "none.json"], 2, "cannot be read"),
        (["classifier.onnx", "--json", "no/folder/r.json"], 2, "there is no folder"),
        (["classifier.onnx", "--seconds", "-1"], 2, "must be above 0"),
        (["classifier.onnx", "--threads", "0"], 2, "must be from 1 to 4096"),
        (["classifier.onnx", "--threads", "9" * 20], 2, "must be from 1 to 4096"),
        (["classifier.onnx", "--seconds", "inf"], 2, "must be above 0, at most 86400"),
        (["classifier.onnx", "--rate", "inf"], 2, "must be from 0 to 1e+06"),
        (["classifier.onnx", "--rate", "nan"], 2, "must be from 0 to 1e+06"),
        (["classifier.onnx", "--seed", "-1"], 2, "seed = -1: it must be"),
        (["classifier.onnx", "--margin", "nan"], 2, "must be from 0 to 1"),
        (["classifier.onnx", "--load-timeout", "nan"], 2, "must be above 0"),
        (["image.onnx", "--shape", "x=1x3x9999999x9999999"], 2, "half the memory"),
        (["classifier.onnx", "--batch", "2", "--shape", "x=4x3x32x32"], 2, "do not agree"),
        (["classifier.onnx", "--preprocess", "[" * 100_000, "--data", "digits"], 2, "imagenet"),
        (["m" * 5000], 2, "no such file"),
        (["classifier.onnx", "--cuda-graph"], 2, "belongs to tensorrt"),
        (["classifier.onnx", "fixed.onnx", "half.onnx"], 2, "3 models given"),
        (["classifier.onnx", "half.onnx", "--batch", "1,2"], 2, "sweeps one model"),
        (["two_inputs.onnx", "--data", "digits"], 2, "--shape"),
        (["."], 2, "no bundle"),
    ],
)
def test_a_users_mistake_is_one_message_and_a_status(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(models)
    got, _, err = run(capsys, *argv, "--no-cold-start")
    if "two_inputs.onnx" in argv:  # needs no shape: it is scored, and is no classifier of images
        assert got == 2
        assert len(err.strip().splitlines()) == 1
        return
    assert (got, len(err.strip().splitlines())) == (status, 1)
    assert message in err


@pytest.mark.parametrize("flag", ["--batch=0", "--batch=a", "--shape=x", "--shape=x=1xb"])
def test_a_flag_that_argparse_refuses_has_status_two(flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["model.onnx", flag])
    assert caught.value.code == 2


def make_bundle(
    model: Path, folder: Path, labels: tuple[str, ...], dataset: Dataset | None = None
) -> Path:
    dataset = dataset or open_dataset("digits")
    with bundle.create(
        folder, input=bundle.InputSpec("x", (3, 32, 32)), preprocess=bundle.Preprocess((32, 32)),
        labels=labels, data=dataset.record(), history=(),
    ) as staging:  # fmt: skip
        (staging / "model.onnx").write_bytes(model.read_bytes())
    return folder


def test_a_bundle_brings_its_preprocessing_its_labels_and_its_held_out_images(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tuple(str(i) for i in range(10))
    folder = make_bundle(models / "classifier.onnx", tmp_path / "b", labels)
    for path in (folder, folder / "model.onnx"):
        status, out, _ = run(capsys, path, *QUICK, "--json", tmp_path / "r.json")
        assert status == 0
        assert "top-1" in out
        model = json.loads((tmp_path / "r.json").read_text())["models"][0]
        assert model["accuracy"]["source"] == "digits, test split, 359 images"
        assert model["workload"]["inputs_from"] == "digits, test split"
        assert model["artefact"]["name"] == "b"


def test_a_bundle_with_a_changed_byte_or_other_classes_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(models / "classifier.onnx", tmp_path / "b", tuple("abcdefghij"))
    status, _, err = run(capsys, folder, *QUICK)
    assert status == 2
    assert "its classes are a, b, c, d" in err
    data = bytearray((folder / "model.onnx").read_bytes())
    data[-3] ^= 1
    (folder / "model.onnx").write_bytes(data)
    status, _, err = run(capsys, folder, *QUICK)
    assert status == 2
    assert "changed after it was written" in err


def test_free_height_and_width_take_the_bundles_shape(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tuple(str(i) for i in range(10))
    folder = make_bundle(models / "image.onnx", tmp_path / "b", labels)
    assert run(capsys, folder, *QUICK[:-1], "--no-accuracy")[0] == 0


def colours(folder: Path) -> Path:
    """Ten class folders with five images in each."""
    for kind in range(10):
        (folder / str(kind)).mkdir(parents=True)
        for i in range(5):
            pixels = np.full((8, 8, 3), (20 * i, 20 * kind, 0), np.uint8)
            Image.fromarray(pixels).save(folder / str(kind) / f"{i}.png")
    return folder


@pytest.mark.parametrize("on_bad_image", ["skip", "fail"])
def test_an_image_that_training_would_skip_is_skipped_here(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    on_bad_image: Literal["skip", "fail"],
) -> None:  # fmt: skip
    images = colours(tmp_path / "images")
    dataset = open_dataset(str(images), on_bad_image=on_bad_image)
    bad = sorted(images.rglob("*.png"))[dataset.splits["test"][0]]
    bad.write_bytes(bytes(bad.stat().st_size))  # the same size: the data set is the same
    folder = make_bundle(models / "classifier.onnx", tmp_path / "b", dataset.classes, dataset)
    status, out, err = run(capsys, folder, *QUICK, "--json", tmp_path / "r.json")
    if on_bad_image == "fail":
        assert status == 2
        assert f"{bad.name}: cannot be read as an image" in " ".join(err.split())
        return
    assert status == 0
    assert "1 of the images could not be read and were left out" in " ".join(out.split())
    accuracy = json.loads((tmp_path / "r.json").read_text())["models"][0]["accuracy"]
    assert accuracy["n"] == len(dataset.splits["test"]) - 1


def test_a_baseline_of_other_images_is_refused_though_they_are_as_many(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, saved = colours(tmp_path / "images"), tmp_path / "saved.json"
    given = (models / "classifier.onnx", *QUICK, "--data", images, "--seconds", "0.05")
    assert run(capsys, *given, "--json", saved)[0] == 0
    accuracy = json.loads(saved.read_text())["models"][0]["accuracy"]
    assert (accuracy["n"], len(accuracy["images_sha256"])) == (50, 64)
    again = (*given, "--baseline", saved)
    status, out, _ = run(capsys, *again)
    assert status in (0, 3) and "agreement" in out
    status, _, _ = run(capsys, *again, "--preprocess", '{"size": [32, 32], "mean": [0.1, 0, 0]}')
    assert status in (0, 3)  # other inputs made of the same images
    image = images / "3" / "2.png"
    pixels = np.asarray(Image.open(image)).copy()
    pixels[0, 0, 2] += 1
    Image.fromarray(pixels).save(image)
    status, _, err = run(capsys, *again)
    assert status == 2
    assert "The two accuracies are of different images (50 of " in " ".join(err.split())


def test_recorded_data_that_is_gone_is_noted_and_not_an_error(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = colours(tmp_path / "images")
    dataset = open_dataset(str(images))
    make_bundle(models / "classifier.onnx", tmp_path / "b", dataset.classes, dataset)
    status, out, _ = run(capsys, tmp_path / "b", *QUICK)
    assert status == 0
    assert "top-1" in out
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(images / "0" / "new.png")
    status, out, _ = run(capsys, tmp_path / "b", *QUICK)
    assert status == 0
    assert "has changed since the model was trained" in " ".join(out.split())
    images.rename(tmp_path / "away")
    status, out, _ = run(capsys, tmp_path / "b", *QUICK)
    assert status == 0
    assert "is not here" in " ".join(out.split())


def test_two_models_are_compared_on_the_same_images(
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short = partial(
        CompareEffort, quads=10, floor_quads=5, block_seconds=0.005,
        warmup=Effort(warmup_seconds=0.02, warmup_runs=5, most_warmup_seconds=0.05),
    )  # fmt: skip
    monkeypatch.setattr(job, "CompareEffort", short)
    monkeypatch.setattr(apart, "run", job.run)
    status, out, _ = run(
        capsys, models / "classifier.onnx", models / "half.onnx", "--data", "digits", *QUICK,
        "--limit", "50", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert status in (0, 3)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["comparison"]["pairs"] >= 10  # of a busy machine the least; usually 20
    assert found["accuracy_change"]["n"] == 50
    assert "noise floor" in " ".join(out.split())
    assert "negative flips" in out


@pytest.mark.slow
def test_the_protocol_in_several_processes(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, _ = run(
        capsys, models / "classifier.onnx", "--threads", "1", "--seconds", "0.5", "--publish", "3",
        "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert status == 0
    model = json.loads((tmp_path / "r.json").read_text())["models"][0]
    assert model["processes"] == 3
    assert sum(model["blocks"]) == len(model["samples_ns"])
    assert model["latency_ms"]["median"]["method"].startswith("order statistics")
