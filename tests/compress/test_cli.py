"""`vcompress`: exit statuses, one message for a mistake, and no traceback."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vcompress.bench.bundle import Bundle
from vcompress.compress.cli import commands, main
from vcompress.compress.pipeline import finish, run

OWN = "tiny_nets:batch"


def status(*argv: str) -> int:
    try:
        return main(list(argv))
    except SystemExit as end:  # tyro's own, for a wrong flag or --help
        assert isinstance(end.code, int)
        return end.code


def test_every_command_of_the_readme_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--help") == 0
    text = capsys.readouterr().out
    for name in (
        "demo", "distill", "export", "finetune", "import", "inspect", "prune", "quantize", "run",
    ):  # fmt: skip
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE), name


@pytest.mark.parametrize(
    "name",
    ["demo", "distill", "export", "finetune", "import", "inspect", "prune", "quantize", "run"],
)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(name, "--help") == 0
    assert f"vcompress {name}" in capsys.readouterr().out


def test_no_command_takes_the_fields_of_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tyro keeps a cache that takes 0 and False for one key, and checks it by chance under pytest:
    here always, with a command in between whose fields would be confused."""
    monkeypatch.setattr("random.random", lambda: 0.0)
    for name in (*commands(), *commands()):
        assert status(name, "--help") == 0
        assert f"vcompress {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["finetun"], "unknown command 'finetun'. Did you mean 'finetune'?"),
        (["finetune"], "--model"),
        (["finetune", "--model", "r18", "--epochs", "many"], "--epochs"),
        (["finetune", "--model", "r18", "--epoch", "3"], "--epoch"),
        (["finetune", "--model", "r18", "--epochs", "-1"], "epochs = -1: it must be 0 or more"),
        (["demo", "--task", "segmentatio"], "Did you mean 'segmentation'? Expected classification"),
        (["demo", "--task", "segmentation", "--short"], "segmentation --short: there is no such"),
        (["finetune", "--model", "r81"], "unknown model 'r81'. Did you mean 'r18'?"),
        (["finetune", "--model", "r18", "--data", "nowhere"], "'nowhere': no such folder"),
        (["finetune", "--model", "r18", "--data", "torchvision:MNIST"], "--data-root"),
        (["finetune", "--model", "timm:resnt18"], "unknown model 'timm:resnt18'"),
        (["finetune", "--model", "nothing:here"], "cannot be imported"),
        (["finetune", "--model", "x" * 300], "too long"),
        (["finetune", "--model", "r18", "--weights", "none.pth"], "none.pth: no such file"),
        (["finetune", "--model", "r18", "--resume", "--overwrite"], "contradict each other"),
        (["finetune", "--model", OWN, "--data", "images", "--out", "runs/net"], "a bundle already"),
        (["distill", "--teacher", "runs/none", "--student", "r18"], "runs/none: no such bundle"),
        (["distill", "--teacher", "r18", "--student", "r18", "--alpha", "2"], "alpha = 2.0"),
        (["distill", "--teacher", "runs/net", "--student", "r18"], f"--trust {OWN}"),
        (["prune", "--model", "runs/net", "--trust", OWN], "exactly one of macs, params"),
        (["prune", "--model", "images", "--macs", "0.5"], "images: not a bundle"),
        (["quantize", "--model", "runs/net", "--weight-bits", "99"], "weight_bits = 99"),
        (["inspect", "images"], "not a bundle"),
        (["inspect", "nowhere"], "nowhere: no such bundle"),
        (["export", "nowhere"], "nowhere: no such bundle"),
        (["export", "runs/net", "--out", "a.txt", "--trust", OWN], "ends in .onnx"),
        (["run", "none.toml"], "none.toml: no such recipe"),
        (["import", "--model", "r18", "--weights", "none.pth"], "none.pth: no such file"),
    ],
)
def test_a_mistake_ends_with_status_2_one_message_and_nothing_written(
    work: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    pytest.importorskip("timm")
    before = sorted(p.as_posix() for p in work.rglob("*") if "__pycache__" not in p.parts)
    assert status(*argv) == 2
    captured = capsys.readouterr()
    said = captured.err + captured.out
    assert message in said
    assert "Traceback" not in said
    if captured.err.startswith("vcompress: "):
        assert captured.err.count("\n") == 1
    after = sorted(p.as_posix() for p in work.rglob("*") if "__pycache__" not in p.parts)
    assert after == before


def test_what_the_machine_lacks_ends_with_status_4(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("finetune", "--model", OWN, "--data", "images", "--track", "nonesuch") == 4
    assert "--track nonesuch" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run, "run_stage", broken)
    with pytest.raises(ZeroDivisionError):
        main(["finetune", "--model", OWN])


@pytest.mark.parametrize(
    ("number", "advice"),
    [(28, "No space left on device. Nothing was half-written; make room and retry."),
     (13, "Permission denied. Nothing was half-written; give another path.")],
)  # fmt: skip
def test_a_full_disk_is_one_message_and_keeps_the_old_bundle(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: int, advice: str,
) -> None:  # fmt: skip
    before = (work / "runs" / "net" / "manifest.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(number, os.strerror(number), "weights.safetensors")

    monkeypatch.setattr(finish, "save_network", full)
    argv = ["--model", OWN, "--data", "images", "--epochs", "0", "--out", "runs/net", "--overwrite"]
    assert status("finetune", *argv) == 2
    assert capsys.readouterr().err.strip() == f"vcompress: weights.safetensors: {advice}"
    assert (work / "runs" / "net" / "manifest.json").read_bytes() == before
    assert [p.name for p in (work / "runs").iterdir() if ".writing" in p.name] == []


@pytest.mark.slow
def test_files_that_cannot_grow_end_a_real_run_with_one_message(work: Path) -> None:
    """The system refuses every file above 20 kB, as a full disk would."""
    done = subprocess.run(
        [sys.executable, "-m", "vcompress.compress", "finetune", "--model", "mnv3s", "--data",
         "images", "--image-size", "32", "--epochs", "0", "--out", "runs/big"],
        capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "vcompress: " in done.stderr.strip().splitlines()[-1]
    assert sorted(p.name for p in (work / "runs").iterdir()) == ["net"]


def test_a_recipe_with_a_mistake_ends_before_anything_runs(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "r.toml").write_text('[[stages]]\nstage = "finetune"\nmodel = "r18"\nepoch = 1\n')
    assert status("run", "r.toml") == 2
    assert capsys.readouterr().err == (
        "vcompress: r.toml, stage 1: unknown key 'epoch'. Did you mean 'epochs'?\n"
    )


# import and export, the two commands around the stages


def test_a_checkpoint_from_elsewhere_becomes_a_measured_bundle(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    tensors = load_file("runs/net/weights.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, "mine.pth")
    (work / "labels.txt").write_text("blue\ngreen\nred\n")
    preprocess = {"size": [16, 16]}
    argv = ["import", "--model", OWN, "--weights", "mine.pth", "--data", "images"]
    argv += ["--preprocess", json.dumps(preprocess), "--labels", "labels.txt"]
    assert status(*argv, "--out", "runs/mine") == 0
    made, imported = Bundle.open("runs/net"), Bundle.open("runs/mine")
    assert imported.files["weights.safetensors"] == made.files["weights.safetensors"]
    (entry,) = imported.history
    assert entry.stage == "import"
    assert entry.metrics.test.value == made.history[0].metrics.test.value
    assert entry.details["prefix"] == "module."
    assert "import" in capsys.readouterr().out

    for labels, message in (
        ("blue\ngreen\n", "labels.txt has 2 classes, the checkpoint's head has 3"),
        ("red\ngreen\npink\n", "its classes are red, green, pink, and 1 of those of images"),
    ):
        (work / "labels.txt").write_text(labels)
        assert status(*argv, "--out", "runs/odd") == 2
        assert message in capsys.readouterr().err
    assert not Path("runs/odd").exists()
    shutil.copytree("images/red", "images/yellow")
    (work / "labels.txt").write_text("blue\ngreen\nred\n")
    assert status(*argv, "--out", "runs/odd") == 2
    assert "are none of them: yellow. Give the data" in capsys.readouterr().err


def test_a_bundle_is_exported_again_or_beside(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    before = Bundle.open("runs/net")
    assert status("export", "runs/net", "--trust", OWN, "--out", "out/net.onnx") == 0
    assert "out/net.onnx: 0.0" in capsys.readouterr().out
    onnx.checker.check_model(onnx.load("out/net.onnx"))
    assert Bundle.open("runs/net").files == before.files
    assert status("export", "runs/net", "--trust", OWN, "--opset", "20") == 0
    again = Bundle.open("runs/net")
    again.verify()
    assert again.files["weights.safetensors"] == before.files["weights.safetensors"]
    (opset,) = {o.version for o in onnx.load("runs/net/model.onnx").opset_import if not o.domain}
    assert opset == 20
    assert len(again.history) == 1


def test_a_command_that_writes_a_bundle_again_leaves_the_users_files_in_it(work: Path) -> None:
    folder = Path("runs/net")
    mine = {"notes.txt": "my notes", "paper/draft.tex": "a draft", "engines/readme": "mine"}
    for name, text in mine.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    shutil.copytree("runs/net", "runs/net/child", ignore=shutil.ignore_patterns("paper"))
    child = Bundle.open("runs/net/child").files
    for command in (
        ("robustness", "runs/net", "--images", "2", "--attack-steps", "1"),
        ("export", "runs/net"),
    ):
        assert status(*command, "--trust", OWN) == 0
        Bundle.open(folder).verify()
        assert {name: (folder / name).read_text() for name in mine} == mine
        child_now = Bundle.open("runs/net/child")
        child_now.verify()
        assert child_now.files == child


def test_a_run_leaves_a_folder_of_the_user_that_has_the_name_of_its_own(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/.mine.work").mkdir()
    Path("runs/.mine.work/thesis.txt").write_text("mine")
    command = ("finetune", "--model", "runs/net", "--trust", OWN, "--epochs", "0")
    assert status(*command, "--out", "runs/mine") == 2
    assert "not from vcompress. Move it elsewhere" in capsys.readouterr().err
    assert Path("runs/.mine.work/thesis.txt").read_text() == "mine"
    assert not Path("runs/mine").exists()


def test_a_reader_that_goes_away_gets_no_traceback(work: Path) -> None:
    command = f"{sys.executable} -m vcompress.compress inspect runs/net"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -0; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in (1, 141)  # newer versions of rich end with 1 themselves
