"""Bundles of networks from a user's own code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from vcompress.bench import Bundle, Preprocess, compare
from vcompress.bench import load as open_model
from vcompress.bench.cli import main as vbench
from vcompress.bench.errors import UserError
from vcompress.compress import load, prune, quantize, save
from vcompress.compress.cli import main

PRE = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
NAMES = ("red", "green", "blue")
Nets = Callable[..., nn.Module]
Loader = Callable[..., list[Any]]

pytestmark = pytest.mark.usefixtures("briefly")


def pairs(loader: Loader) -> list[tuple[Tensor, int]]:
    return [(x[i], int(y[i])) for x, y in loader() for i in range(len(y))]


def test_a_module_without_a_factory_is_a_bundle_that_everything_reads(
    net: Nets, loader: Loader, example: Tensor, fit: Callable[..., nn.Module], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = fit(net(), loader())
    report = prune(model, example, macs=0.5, data=loader())
    q = quantize(fit(model, loader()), loader())
    bundle = save(
        q, tmp_path / "net", example=example, labels=NAMES, preprocess=PRE, data=pairs(loader),
        reports=[report],
    )  # fmt: skip
    last = bundle.history[-1]
    assert (last.stage, last.model) == ("save", "Net")
    assert last.metrics is not None and last.metrics.test is not None
    assert last.metrics.test.metric == "top1"
    assert last.metrics.test.n == 64
    assert last.metrics.test.value > 0.95
    assert last.details["quantize"]["quantised_layers"] == 3
    assert last.metrics.export is not None
    back = last.metrics.export["integers"]
    assert (back["meant"], back["integer"], back["float_layers"]) == (3, 3, {})
    assert last.details["prune"][0]["asked"] == {"macs": 0.5}
    assert bundle.data is None  # nothing could open it again
    architecture = json.loads((bundle.path / "architecture.json").read_text())
    assert architecture["model"] is None and architecture["changes"] is None

    folder = str(bundle.path)
    picture = tmp_path / "green.png"
    pixels = np.full((16, 16, 3), 100, np.uint8)
    pixels[..., 1] = 255
    Image.fromarray(pixels).save(picture)
    with open_model(folder) as opened:
        assert opened.predict(str(picture))[0].label == "green"
    for argv in (
        ["inspect", folder], ["verify", folder], ["predict", folder, str(picture)],
        ["pack", folder, "--out", str(tmp_path / "net.vcb")],
        ["lint", f"{folder}/model.onnx", "--target", "onnxruntime"],
        ["sbom", folder, "--out", str(tmp_path / "bom.json")],
    ):  # fmt: skip
        assert main(argv) == 0, (argv, capsys.readouterr())
    assert vbench([folder, "--seconds", "0.2", "--no-cold-start"]) == 0


def test_commands_that_train_say_that_they_cannot_in_one_message(
    net: Nets, example: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    save(net(), "net", example=example, labels=NAMES, preprocess=PRE)
    capsys.readouterr()
    for argv in (
        ["prune", "--model", "net", "--macs", "0.5"],
        ["quantize", "--model", "net"],
        ["finetune", "--model", "net"],
        ["distill", "--teacher", "net", "--student", "r18"],
        ["distill", "--teacher", "r18", "--student", "net"],
        ["lr-find", "--model", "net"],
        ["export", "net", "--to", "onnx"],
    ):
        assert main(argv) == 2, argv
        shown = capsys.readouterr().err
        assert "can't be trained further here: it has no factory that builds it" in shown, argv
        assert "Traceback" not in shown
    assert vbench(["net", "--runtime", "torch"]) == 2
    with pytest.raises(UserError, match="can't be trained further here"):
        load("net")


@pytest.mark.parametrize("quantised", [False, True])
def test_with_a_factory_it_comes_back_bit_for_bit_pruned_and_quantised(
    loader: Loader, example: Tensor, tiny_nets: Any, quantised: bool
) -> None:
    torch.manual_seed(0)
    model = tiny_nets.batch(num_classes=3)
    prune(model, example, channels=0.5, data=loader(), round_to=2)
    ready = quantize(model, loader()).eval() if quantised else model.eval()
    bundle = save(
        ready, "net", example=example, labels=NAMES, preprocess=PRE, factory="tiny_nets:batch"
    )
    again = load(bundle.path, trust="tiny_nets:batch")
    images = loader()[0][0]
    with torch.no_grad():
        assert torch.equal(again(images), ready(images))
    assert again.get_submodule("0").weight.shape[0] == 4
    with pytest.raises(UserError, match="give --trust tiny_nets:batch"):
        load(bundle.path)


def test_a_factory_of_another_network_is_refused_before_anything_is_written(
    net: Nets, loader: Loader, example: Tensor, tiny_nets: Any
) -> None:
    with pytest.raises(UserError, match="architecture"):
        save(net(), "net", example=example, preprocess=PRE, factory="tiny_nets:batch")
    q = quantize(tiny_nets.batch(), loader())
    with pytest.raises(UserError, match="lost its report"):
        import copy

        save(copy.deepcopy(q), "net", example=example, preprocess=PRE, factory="tiny_nets:batch")
    assert not Path("net").exists()


def test_a_factory_that_sets_another_flag_is_refused_and_transform_input_is_recorded(
    example: Tensor, tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_nets.batch()
    model[0].padding_mode = "reflect"
    with pytest.raises(UserError, match="builds computes something else with these weights"):
        save(model, "net", example=example, preprocess=PRE, factory="tiny_nets:batch")
    assert not Path("net").exists()

    from torchvision.models import googlenet

    from vcompress.compress.library import save as module

    monkeypatch.setattr(module, "finish", lambda network, *_, **__: network)
    for flag in (True, False):
        net = googlenet(num_classes=3, aux_logits=False, init_weights=False, transform_input=flag)
        network: Any = save(net, "net", example=example, preprocess=PRE, factory="googlenet")
        assert network.spec.kwargs.get("transform_input", False) is flag


def test_named_data_are_remembered_and_scored_again(
    image_folder: Callable[..., Path], net: Nets, tmp_path: Path
) -> None:
    folder = image_folder(red=12, green=12, blue=12)
    bundle = save(net(), tmp_path / "net", preprocess=PRE, data=folder)
    assert bundle.labels == ("blue", "green", "red")
    assert bundle.data is not None and bundle.data["source"] == str(folder)
    found = compare(bundle, bundle, seconds=0.2)
    assert found.models[0].accuracy is not None
    last = bundle.history[-1].metrics
    assert last is not None and last.test is not None
    assert found.models[0].accuracy.value == last.test.value


def test_a_metric_of_ones_own_stands_in_the_record_with_an_interval(
    net: Nets, loader: Loader, example: Tensor, tmp_path: Path
) -> None:
    seen = []

    def margin(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.shape)
        return outputs.gather(1, targets[:, None]).mean()

    model = net().eval()
    bundle = save(
        model, tmp_path / "net", example=example, preprocess=PRE, data=loader(), metric=margin
    )
    last = bundle.history[-1].metrics
    assert last is not None and last.test is not None
    test = last.test
    images = torch.cat([x for x, _ in loader()])
    labels = torch.cat([y for _, y in loader()])
    with torch.no_grad():
        wanted = float(model(images).gather(1, labels[:, None]).mean())
    assert test.metric == "margin"
    assert test.value == pytest.approx(wanted, rel=1e-4)
    assert test.interval[0] < test.value < test.interval[1]
    assert seen[0] == (64, 3) and len(seen) == 201

    def whole(outputs: Tensor, targets: Tensor) -> float:
        """Of all images alone."""
        if not torch.equal(targets, labels):
            raise ValueError("other images")
        return 0.25

    alone = save(
        model, tmp_path / "whole", example=example, preprocess=PRE, data=loader(), metric=whole
    ).history[-1].metrics  # fmt: skip
    assert alone is not None and alone.test is not None
    assert (alone.test.value, alone.test.interval) == (0.25, None)
    assert "0.25<small>(" in (tmp_path / "whole" / "report.html").read_text()
    with pytest.raises(UserError, match=r"metric: it gives tensor.nan"):
        save(
            model, tmp_path / "other", preprocess=PRE, data=loader(),
            metric=lambda outputs, targets: outputs.sum() * float("nan"),
        )  # fmt: skip
    with pytest.raises(UserError, match="nothing to measure it on"):
        save(model, tmp_path / "other", preprocess=PRE, metric=margin)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("task", "targets", "metric"),
    [
        ("multilabel", [[1, 0, 1], [0, 1, 0]], "mAP"),
        ("regression", [[0.5, 1.0, 2.0], [1.5, 0.0, 1.0]], "mae"),
    ],
)
def test_other_tasks_are_scored_too(
    net: Nets, example: Tensor, tmp_path: Path, task: str, targets: list[Any], metric: str
) -> None:
    data = [(example[0] + n, torch.tensor(targets[n % 2])) for n in range(8)]
    bundle = save(net(), tmp_path / "net", preprocess=PRE, task=task, data=data)
    assert Bundle.open(bundle.path).task == task
    last = bundle.history[-1].metrics
    assert last is not None and last.test is not None
    assert last.test.metric == metric
    assert last.test.n == 8


def test_the_named_output_is_what_the_bundle_holds(
    net: Nets, loader: Loader, example: Tensor, tmp_path: Path
) -> None:
    model = net("dict").train()
    save(model, tmp_path / "net", example=example, preprocess=PRE, output="logits")
    assert model.training and model.body.training
    golden = np.load(tmp_path / "net" / "golden.npz", allow_pickle=False)
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(golden["input"]))["logits"]
    np.testing.assert_allclose(golden["output.logits"], wanted.numpy(), atol=1e-4)


def test_what_does_not_fit_is_one_message_and_nothing_is_written(
    net: Nets, loader: Loader, example: Tensor, tmp_path: Path
) -> None:
    model, out = net(), tmp_path / "net"

    def refused(message: str, **given: Any) -> None:
        asked = {"preprocess": PRE, **given}
        with pytest.raises(UserError, match=message):
            save(asked.pop("net", model), out, **asked)
        assert not out.exists()

    refused("preprocess: got none", preprocess=None)
    refused("preprocess: got a dict", preprocess={"size": 16})
    refused(r"example: got \[1, 3, 8, 8\].*\[1, 3, 16, 16\]", example=example[..., :8, :8])
    refused("labels: got 2 names, and the network has 3 outputs", labels=("a", "b"))
    refused("unknown task 'detection'", task="detection")
    refused(r"gives \[1, 3, 16, 16\] for one image; classification expects", net=nn.Identity())
    refused("float64; expected float32", net=net().double())
    refused("got a str; expected a torch nn.Module", net="runs/net")
    refused(
        "target 1 of the pairs is 3, which is none of the 3 classes",
        data=[(example[0], 0), (example[0], 3)],
    )
    refused("holds nothing", data=[])
    refused("item 0 has no target", data=[example[0]])
    refused(r"item 0 is a tensor \[3, 8, 8\]", data=[(example[0, :, :8, :8], 0)])
    refused("target 0 of the pairs is 0.5; expected the number", data=[(example[0], 0.5)])
    refused("is 'cat', which is none of the 3 classes", data=[(example[0], "cat")])
    refused("got a int; expected a name as --data", data=7)
    refused("is 3, which is none of the 3 classes", task="multilabel", data=[(example[0], [1, 3])])
    refused("expected 3 finite numbers", task="regression", data=[(example[0], [0.5, 1.0])])
    refused("no such folder", data="nowhere")
    save(model, out, preprocess=PRE)
    with pytest.raises(UserError, match=r"a bundle already. Give overwrite=True"):
        save(model, out, preprocess=PRE)
    save(model, out, preprocess=PRE, overwrite=True)
