"""A bundle that was made with the user's own data: what records it is not run unless trusted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vcompress.bench.bundle import Bundle
from vcompress.bench.cli import main as vbench
from vcompress.compress.cli import main

NET, DATA = "tiny_nets:batch", "own_data:splits"
QUICK = ["--seconds", "0.1", "--threads", "1", "--no-cold-start"]
# It notes in a file that it was run, and what it was told.
OWN_DATA = """
import pathlib

import numpy as np


def splits(seed, root):
    with pathlib.Path("runs.txt").open("a") as file:
        file.write(f"{seed} {root}\\n")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (60, 16, 16, 3)).astype(np.uint8)
    pairs = []
    for n, image in enumerate(images):
        image[..., n % 3] += 100
        pairs.append((image, ["red", "green", "blue"][n % 3]))
    return {"train": pairs[:48], "test": pairs[48:]}


def only_test(seed):
    return {"test": splits(seed, None)["test"]}
"""


@pytest.fixture
def own(work: Path) -> Iterator[Path]:
    (work / "own_data.py").write_text(OWN_DATA)
    sys.modules.pop("own_data", None)
    yield work
    sys.modules.pop("own_data", None)


def runs() -> int:
    file = Path("runs.txt")
    return len(file.read_text().splitlines()) if file.exists() else 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def test_own_data_train_and_measure_and_are_run_again_only_where_trusted(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["finetune", "--model", NET, "--data", DATA, "--data-root", "there", "--seed", "3"]
    argv += ["--image-size", "16", "--epochs", "2", "--batch-size", "8", "--lr", "0.02"]
    assert main([*argv, "--out", "runs/own"]) == 0
    bundle = Bundle.open("runs/own")
    assert bundle.labels == ("blue", "green", "red")
    assert bundle.data is not None
    assert (bundle.data["source"], bundle.data["root"]) == (DATA, "there")
    assert bundle.data["splits"] == {"train": 42, "val": 6, "test": 12}
    assert set(Path("runs.txt").read_text().splitlines()) == {"3 there"}
    before = runs()

    further = ["quantize", "--model", "runs/own", "--method", "ptq", "--calibration-images", "16"]
    capsys.readouterr()
    assert main([*further, "--trust", NET, "--out", "runs/q"]) == 2
    assert (
        f"own code '{DATA}'. Loading runs that code; if you trust it, give --trust {DATA}, with a "
        "comma between several." in said(capsys)
    )
    assert vbench(["runs/own", *QUICK]) == 0
    assert f"no accuracy: runs/own: its data are made by your own code '{DATA}'" in said(capsys)
    assert runs() == before

    assert main([*further, "--trust", f"{NET},{DATA}", "--out", "runs/q"]) == 0, said(capsys)
    assert Bundle.open("runs/q").data == bundle.data
    for given in (["--trust", DATA], ["--data", DATA, "--seed", "3"]):
        before = runs()
        assert vbench(["runs/own", *QUICK, *given, "--json", "r.json"]) == 0
        accuracy = json.loads(Path("r.json").read_text())["models"][0]["accuracy"]
        assert bundle.history[-1].metrics is not None
        assert accuracy["correct"] == bundle.history[-1].metrics.test.correct
        assert accuracy["n"] == 12 and runs() == before + 1
    argv = ["runs/own", "--runtime", "torch", *QUICK, "--trust"]
    assert vbench([*argv, DATA]) == 2
    assert f"give --trust {NET}, with a comma between several." in said(capsys)
    assert vbench([*argv, f"{DATA},{NET}"]) == 0

    (own / "own_data.py").write_text(OWN_DATA.replace("default_rng(0)", "default_rng(1)"))
    sys.modules.pop("own_data")
    capsys.readouterr()
    assert main(["export", "runs/own", "--trust", f"{NET},{DATA}"]) == 2
    assert f"{DATA}: the images have changed since runs/own was written" in said(capsys)


def test_a_test_split_alone_can_be_measured_on_and_not_trained_on(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "own_data:only_test"
    assert main(["finetune", "--model", NET, "--data", only, "--out", "runs/x"]) == 2
    assert "own_data:only_test has no train images, and is good for vbench alone" in said(capsys)
    assert vbench(["runs/net/model.onnx", "--data", only, *QUICK, "--json", "r.json"]) == 0
    assert json.loads(Path("r.json").read_text())["models"][0]["accuracy"]["n"] == 12
