"""The way of every command: from a name to a bundle, killed and resumed, or refused."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.bundle import IMAGENET, Bundle, InputSpec, Preprocess
from vcompress.bench.bundle.history import measured, read, to_json
from vcompress.bench.errors import UserError
from vcompress.compress import stages
from vcompress.compress.bundles.store import load_network
from vcompress.compress.cli import main
from vcompress.compress.options import Options
from vcompress.compress.pipeline import resolve, run
from vcompress.compress.pipeline.resolve import choose_preprocess, free_name, parse_preprocess
from vcompress.compress.pipeline.run import run_stage
from vcompress.compress.quantization import is_quantized

FINETUNE = stages.load("finetune")
CONFIG = FINETUNE.Config(epochs=3, batch_size=8, lr=0.02)
OPTIONS = Options(data="images", image_size=16)
OWN = "tiny_nets:batch"


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_bundle_holds_all_that_the_page_of_its_nouns_says(made: Path) -> None:
    bundle = Bundle.open(made / "runs" / "net")
    bundle.verify()
    assert names_in(bundle.path) == [
        "architecture.json", "golden.npz", "manifest.json", "manifest.sha256", "model.onnx",
        "report.html", "weights.safetensors",
    ]  # fmt: skip
    assert names_in(made / "runs") == ["net"]  # the state of the training is gone
    assert bundle.labels == ("blue", "green", "red")
    assert bundle.input.shape == (3, 16, 16)
    assert bundle.preprocess.size == (16, 16)
    assert bundle.data is not None
    assert bundle.data["splits"] == {"train": 42, "val": 6, "test": 12}
    (entry,) = bundle.history
    assert (entry.stage, entry.model, entry.seed) == ("finetune", OWN, 0)
    assert entry.config["lr"] == 0.02
    assert entry.details["epochs"] == len(entry.details["loss"]) == 3
    assert {"python", "torch", "onnx", "onnxruntime"} <= entry.versions.keys()
    ran = {"numpy", "pillow", "scipy", "torch", "torchvision", "onnx", "onnxruntime", "protobuf",
           "safetensors", "accelerate", "typing-extensions"}  # fmt: skip
    assert ran <= entry.packages.keys()
    assert all(metadata.version(name) == found for name, found in entry.packages.items())
    assert "ruff" not in entry.packages
    metrics = entry.metrics
    assert metrics.parameters == 3 * 8 * 9 + 8 * 8 * 9 + 4 * 8 + 32 * 3 + 3
    assert metrics.macs == 16 * 16 * (3 * 8 * 9 + 8 * 8 * 9) + 32 * 3
    assert metrics.onnx_bytes == bundle.files["model.onnx"].bytes
    assert metrics.test.n == 12
    assert metrics.test.value == metrics.test.correct / 12
    assert metrics.latency.low_ms <= metrics.latency.median_ms
    assert metrics.parity["ok"] is True


def test_a_head_that_is_named_is_checked_trained_alone_and_remembered(work: Path) -> None:
    given = [
        "finetune", "--model", "runs/net", "--trust", OWN, "--epochs", "1", "--freeze", "backbone",
    ]  # fmt: skip
    assert main([*given, "--head", "9", "--out", "runs/headed"]) == 0
    before, after = (
        load_network(Bundle.open(work / "runs" / name), OWN) for name in ("net", "headed")
    )
    assert (before.spec.head, after.spec.head) == (None, "9")
    old = before.model.state_dict()
    moved = {n for n, t in after.model.state_dict().items() if not (t == old[n]).all()}
    assert moved == {"9.weight", "9.bias"}
    assert main([*given, "--head", "0", "--out", "runs/other"]) == 2


def test_files_are_all_readable_alike_and_none_is_recorded_where_it_was_made(made: Path) -> None:
    folder = made / "runs" / "net"
    assert len({stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}) == 1
    ((_, metrics),) = measured(Bundle.open(folder).history)
    assert metrics.export is not None and metrics.export["path"] == "model.onnx"
    assert ".writing" not in (folder / "manifest.json").read_text()


def test_the_golden_outputs_are_what_the_file_computes(made: Path) -> None:
    from vcompress.bench.runtimes import open_session

    golden = np.load(made / "runs" / "net" / "golden.npz", allow_pickle=False)
    with open_session(made / "runs" / "net" / "model.onnx") as session:
        found = session.run({"input": golden["input"]})
    (name,) = found
    assert golden["input"].shape == (8, 3, 16, 16)
    assert np.allclose(golden[f"output.{name}"], found[name], atol=1e-5)


def test_the_onnx_file_says_itself_what_it_is(made: Path) -> None:
    import onnx

    model = onnx.load(made / "runs" / "net" / "model.onnx")
    said = {p.key: p.value for p in model.metadata_props}
    assert json.loads(said["vcompress.labels"]) == ["blue", "green", "red"]
    assert json.loads(said["vcompress.preprocess"])["size"] == [16, 16]


def test_a_killed_run_resumes_to_the_weights_of_an_undisturbed_one(
    work: Path, monkeypatch: pytest.MonkeyPatch, made_with: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from vcompress.compress.training import progress

    original = progress.EpochProgress.step

    def killed(self: Any, epoch: int, step: int, loss: float) -> None:
        if (epoch, step) == (2, 1):
            raise KeyboardInterrupt
        original(self, epoch, step, loss)

    monkeypatch.setattr(progress.EpochProgress, "step", killed)
    command = ["finetune", *made_with, "--out", "runs/again"]
    assert main(command) == 130
    assert "interrupted. Run the same command with --resume" in capsys.readouterr().err
    assert not Path("runs/again").exists()
    assert Path("runs/.again.work/finetune/state.safetensors").is_file()
    monkeypatch.setattr(progress.EpochProgress, "step", original)
    assert main([*command, "--resume"]) == 0
    whole, again = Bundle.open("runs/net"), Bundle.open("runs/again")
    assert again.files["weights.safetensors"] == whole.files["weights.safetensors"]
    assert again.history[0].details == whole.history[0].details
    assert again.history[0].metrics.test == whole.history[0].metrics.test
    assert names_in(Path("runs")) == ["again", "net"]
    # And once more: nothing is left to do.
    before = Path("runs/again/manifest.json").stat().st_mtime_ns
    assert main([*command, "--resume"]) == 0
    assert Path("runs/again/manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("stage", "argv", "stop"),
    [
        ("distill", ["--teacher", "runs/net", "--student", "tiny_nets:batch"], ("distill", 1, 2)),
        ("prune", ["--model", "runs/net", "--macs", "0.5", "--steps", "2", "--step-epochs", "2",
                   "--round-to", "1"], ("prune-2of2", 1, 2)),
        ("quantize", ["--model", "runs/net", "--freeze-bn-epochs", "1"], ("quantize", 2, 1)),
    ],
)  # fmt: skip
def test_any_stage_that_is_killed_resumes_to_the_same_weights(
    work: Path, monkeypatch: pytest.MonkeyPatch, stage: str, argv: list[str],
    stop: tuple[str, int, int],
) -> None:  # fmt: skip
    """Export and measurement are left out: they come after the training and change nothing."""
    from vcompress.bench.bundle import create
    from vcompress.compress.bundles.store import save_network
    from vcompress.compress.training import progress

    def short(network: Any, out: Path, entry: Any, history: Any, **facts: Any) -> None:
        preprocess, dataset = facts["preprocess"], facts["dataset"]
        with create(
            out, input=InputSpec.of(preprocess), preprocess=preprocess, labels=facts["labels"],
            data=dataset.record(), history=(*history, entry),
        ) as folder:  # fmt: skip
            save_network(network, folder)

    original = progress.EpochProgress.step

    def killed(self: Any, epoch: int, step: int, loss: float) -> None:
        if (self.name, epoch, step) == stop:
            raise KeyboardInterrupt
        original(self, epoch, step, loss)

    monkeypatch.setattr(run, "finish", short)
    monkeypatch.setattr("vcompress.compress.cli.show", lambda *_: None)
    command = [stage, *argv, "--epochs", "3", "--batch-size", "8", "--trust", OWN, "--out"]
    assert main([*command, "runs/whole"]) == 0
    monkeypatch.setattr(progress.EpochProgress, "step", killed)
    assert main([*command, "runs/cut"]) == 130
    assert names_in(Path("runs")) == [".cut.work", "net", "whole"]
    monkeypatch.setattr(progress.EpochProgress, "step", original)
    assert main([*command, "runs/cut", "--resume"]) == 0
    whole, cut = Bundle.open("runs/whole"), Bundle.open("runs/cut")
    assert cut.files == whole.files
    assert cut.history[-1].details == whole.history[-1].details


@pytest.mark.parametrize(
    ("change", "options", "config"),
    [
        ("another net", OPTIONS, CONFIG),
        ("another seed", Options(data="images", image_size=16, seed=1), CONFIG),
        ("other data", Options(data="digits", image_size=16), CONFIG),
        ("another size", Options(data="images", image_size=20), CONFIG),
        ("another rate", OPTIONS, FINETUNE.Config(epochs=3, batch_size=8, lr=0.5)),
    ],
)
def test_a_finished_bundle_is_not_taken_for_a_different_run(
    work: Path, change: str, options: Options, config: Any
) -> None:
    from dataclasses import replace

    name = "tiny_nets:group" if change == "another net" else OWN
    with pytest.raises(UserError, match="made with other options or inputs"):
        run_stage(
            FINETUNE, config, {"model": name}, Path("runs/net"), replace(options, resume=True)
        )


def without(config: dict[str, Any]) -> None:
    del config["patience"], config["ema_decay"]  # they are at their defaults


def with_another(config: dict[str, Any]) -> None:
    del config["patience"]
    config["ema_decay"] = 0.5


def without_what_was_asked(config: dict[str, Any]) -> None:
    del config["lr"]  # 0.02 was asked for, and the default is another


def with_one_unknown(config: dict[str, Any]) -> None:
    config["gone"] = 1


@pytest.mark.parametrize(
    ("change", "same"),
    [(without, True), (with_another, False), (without_what_was_asked, False),
     (with_one_unknown, False)],
)  # fmt: skip
def test_an_option_that_an_older_bundle_lacks_had_its_default(
    work: Path, change: Callable[[dict[str, Any]], None], same: bool
) -> None:
    from vcompress.compress.bundles.rewrite import rewritten

    bundle = Bundle.open("runs/net")
    (entry,) = json.loads(json.dumps(to_json(bundle.history)))
    change(entry["config"])
    del entry["options"]["data_licence"]
    with rewritten(bundle, bundle.files, read([entry])):
        pass
    before = Path("runs/net/manifest.json").read_bytes()
    resumed = Options(data="images", image_size=16, resume=True)
    if same:
        found = run_stage(FINETUNE, CONFIG, {"model": OWN}, Path("runs/net"), resumed)
        assert found.files == bundle.files
        assert Path("runs/net/manifest.json").read_bytes() == before
    else:
        with pytest.raises(UserError, match="made with other options or inputs"):
            run_stage(FINETUNE, CONFIG, {"model": OWN}, Path("runs/net"), resumed)


def test_a_bundle_that_is_there_is_replaced_only_when_asked(work: Path) -> None:
    with pytest.raises(UserError, match=r"runs/net: there is a bundle already. Give --overwrite"):
        run_stage(FINETUNE, CONFIG, {"model": OWN}, Path("runs/net"), OPTIONS)
    (work / "mine").mkdir()
    (work / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="not empty and is not a bundle; nothing was written"):
        run_stage(FINETUNE, CONFIG, {"model": OWN}, Path("mine"), OPTIONS)


def test_a_bundle_made_for_other_classes_is_refused(work: Path) -> None:
    options = Options(data="digits", trust=OWN)
    given = {"teacher": "runs/net", "student": "r18"}
    distill = stages.load("distill")
    with pytest.raises(UserError, match=r"teacher runs/net knows 3 classes, the data 10: it lacks"):
        run_stage(distill, distill.Config(), given, Path("x"), options)
    assert names_in(work / "runs") == ["net"]


def test_images_that_changed_since_are_noticed(work: Path) -> None:
    (work / "images" / "red" / "000.png").unlink()
    distill = stages.load("distill")
    given = {"teacher": "runs/net", "student": OWN}
    with pytest.raises(UserError, match="the images have changed since runs/net was written"):
        run_stage(distill, distill.Config(), given, Path("x"), Options(trust=OWN))


def test_another_preprocessing_than_the_bundles_is_refused(work: Path) -> None:
    prune = stages.load("prune")
    config, options = prune.Config(macs=0.5), Options(image_size=20, trust=OWN)
    with pytest.raises(UserError, match="Leave --preprocess and --image-size out"):
        run_stage(prune, config, {"model": "runs/net"}, Path("x"), options)


def test_a_bundle_with_the_users_own_code_needs_trust(work: Path) -> None:
    distill = stages.load("distill")
    given = {"teacher": "runs/net", "student": OWN}
    with pytest.raises(UserError, match=f"if you trust it, give --trust {OWN}"):
        run_stage(distill, distill.Config(), given, Path("x"), Options())


def test_an_unreadable_image_stops_the_training_with_its_name(work: Path) -> None:
    for file in (work / "images" / "red").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(UserError, match=r"images/red/\d+\.png: cannot be read as an image"):
        run_stage(FINETUNE, CONFIG, {"model": OWN}, Path("runs/x"), OPTIONS)
    assert not Path("runs/x").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("runs/none", "runs/none: no such bundle"),
        ("images", "images: not a bundle. A checkpoint becomes one by: vcompress import"),
        ("net.pth", "net.pth: no such bundle"),
        ("resnet81", "unknown model 'resnet81'. Did you mean 'resnet"),
    ],
)
def test_a_model_that_is_neither_name_nor_bundle_is_named(
    work: Path, value: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        run_stage(FINETUNE, CONFIG, {"model": value}, Path("runs/x"), OPTIONS)
    assert message in str(caught.value)


def test_a_teacher_that_is_only_a_name_is_fine_tuned_first_and_then_reused(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The stages are stubs: what is tested is which ones run, and with what."""
    ran: list[tuple[str, dict[str, str], Path]] = []
    real = run.run_stage

    def stub(stage: Any, config: Any, given: Any, out: Any, options: Options) -> Bundle:
        if stage.name == "distill":
            return real(stage, config, given, out, options)
        ran.append((stage.name, dict(given), out))
        shutil.copytree("runs/net", out)
        return Bundle.open(out)

    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError("far enough")

    monkeypatch.setattr(run, "run_stage", stub)
    monkeypatch.setattr(resolve, "load_network", stop)
    distill = stages.load("distill")
    given = {"teacher": OWN, "student": OWN}
    for _ in range(2):
        with pytest.raises(InterruptedError), caplog.at_level("INFO", "vcompress"):
            real(distill, distill.Config(), given, Path("runs/y"), OPTIONS)
    target = Path("runs/tiny_nets-batch")
    assert ran == [("finetune", {"model": OWN}, target)]
    assert f"teacher {OWN} is only a name: fine-tuning it first, into {target}" in caplog.text
    assert f"taking the fine-tuned bundle {target}" in caplog.text


def test_a_quantised_bundle_is_trained_on(work: Path) -> None:
    """What pruning changed cannot be seen in it any more: that is taken from its own record."""
    ptq = ["--model", "runs/net", "--method", "ptq", "--out", "runs/q"]
    assert main(["quantize", *ptq, "--trust", OWN]) == 0
    more = ["--epochs", "1", "--batch-size", "8", "--lr", "1e-4", "--out", "runs/more"]
    assert main(["finetune", "--model", "runs/q", *more, "--trust", OWN]) == 0
    bundle = Bundle.open("runs/more")
    assert [entry.stage for entry in bundle.history] == ["finetune", "quantize", "finetune"]
    assert is_quantized(load_network(bundle, OWN).model)
    assert bundle.history[-1].metrics.test.value > 0.9


def test_free_names_are_counted_up(work: Path) -> None:
    assert free_name("net") == Path("runs/net-2")
    (work / "runs" / "net-2").touch()
    assert free_name("net") == Path("runs/net-3")
    assert free_name("other") == Path("runs/other")


# Preprocessing


def test_preprocessing_is_read_from_a_name_json_or_a_file(tmp_path: Path) -> None:
    text = '{"size": [64, 48], "mean": [0, 0.5, 1], "std": [1, 1, 1], "interpolation": "bicubic"}'
    wanted = Preprocess((64, 48), None, (0.0, 0.5, 1.0), (1.0, 1.0, 1.0), "RGB", "bicubic")
    (tmp_path / "p.json").write_text(text)
    assert parse_preprocess("imagenet") == IMAGENET
    assert parse_preprocess(text) == parse_preprocess(str(tmp_path / "p.json")) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "Expected imagenet, or JSON such as"),
        ("nothing.json", "No such file"),
        ('{"size": [64, 48], "men": [1]}', "unknown key 'men'. Did you mean 'mean'?"),
        ('{"size": 64}', "size = 64, expected a list"),
        ('{"size": [64, 64], "mean": [0.5]}', "RGB has 3 channels, but mean has 1 values"),
        ("[1]", "expected a table"),
        ("{", "Expected imagenet"),
    ],
)
def test_a_preprocessing_that_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_preprocess(text)
    assert message in str(caught.value)


def test_an_image_size_keeps_the_share_of_the_crop() -> None:
    chosen = choose_preprocess(Options(image_size=112), IMAGENET)
    assert (chosen.size, chosen.resize) == ((112, 112), 128)
    small = choose_preprocess(Options(image_size=48), Preprocess((32, 32)))
    assert (small.size, small.resize) == ((48, 48), None)
    with pytest.raises(UserError, match="size = "):
        choose_preprocess(Options(image_size=0), Preprocess((32, 32)))


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="--resume and --overwrite contradict each other"):
        Options(resume=True, overwrite=True)


def test_images_of_every_kind_can_be_trained_on(
    work: Path, image_folder: Callable[..., Path]
) -> None:
    from vcompress.compress.pipeline.resolve import open_data

    top = image_folder("mixed", red=3, green=3)
    base = Image.open(top / "red" / "000.png")
    for number, mode in enumerate(("L", "RGBA", "P", "CMYK", "1", "I;16")):
        grey = base.convert("L").convert("I").convert("I;16")
        image = grey if mode == "I;16" else base.convert(mode)
        suffix = "tif" if mode in ("CMYK", "I;16") else "png"
        image.save(top / "red" / f"odd{number}.{suffix}")
    data = open_data(Options(data=str(top), image_size=16), [])
    seen = [im.shape for im, _ in data.loader("train", 4, train=True)]
    seen += [im.shape for split in ("val", "test") for im, _ in data.loader(split, 4)]
    assert sum(shape[0] for shape in seen) >= 9
    assert all(shape[1:] == (3, 16, 16) for shape in seen)
