"""The training loop: what it optimises, what it leaves alone, and when it stops."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.compress.data.loader import Data
from vcompress.compress.training import loop as training
from vcompress.compress.training.config import Context, TrainConfig
from vcompress.compress.training.loop import evaluate, fit
from vcompress.compress.training.optimizer import optimizer_for
from vcompress.export.onnx_export import export

SCRIPT = Path(__file__).with_name("training_script.py")
QUICK = TrainConfig(epochs=2, batch_size=8, lr=0.01, warmup_epochs=0.5)


@pytest.fixture
def context(tiny_data: Callable[..., Data], tmp_path: Path) -> Context:
    return Context(tiny_data(), tmp_path / "work")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def copy(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("training_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_loss_falls_and_the_classes_are_learnt(
    context: Context, tiny_nets: Any, optimizer: str
) -> None:
    torch.manual_seed(0)
    model = tiny_nets.group()
    config = TrainConfig(epochs=6, batch_size=6, lr=0.03, optimizer=optimizer)  # type: ignore[arg-type]
    found = fit(model, config, context, name="t")
    assert found["epochs"] == 6
    assert len(found["loss"]) == 6
    assert found["loss"][-1] < 0.5 * found["loss"][0]
    assert found["val_score"] == 1.0
    assert evaluate(model, context, config, "test") == 1.0
    assert next(model.parameters()).device.type == "cpu"
    assert all(p.grad is None for p in model.parameters())


def test_the_best_epoch_is_what_is_left_in_the_model(context: Context, tiny_nets: Any) -> None:
    model = tiny_nets.batch()
    seen: list[dict[str, Tensor]] = []
    accuracies = iter([0.5, 0.9, 0.7])

    def scripted(shown: nn.Module, *_: Any) -> float:
        seen.append(copy(shown))
        return next(accuracies)

    original = training.evaluate
    training.evaluate = scripted  # type: ignore[assignment]
    try:
        found = fit(model, replace(QUICK, epochs=3), context, name="t")
    finally:
        training.evaluate = original
    assert (found["best_epoch"], found["val_score"]) == (2, 0.9)
    assert same(model.state_dict(), seen[1])


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    ends = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(0)
        model = tiny_nets.batch()
        data = tiny_data(augment="affine")
        data = replace(data, seed=seed)
        fit(model, QUICK, Context(data, tmp_path / str(number), seed), name="t")
        ends.append(copy(model))
        torch.rand(5)
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_workers_do_not_change_the_weights(context: Context, tiny_nets: Any) -> None:
    ends = []
    for workers in (0, 2):
        torch.manual_seed(0)
        model = tiny_nets.batch()
        fit(model, replace(QUICK, epochs=1, workers=workers), context, name="t")
        ends.append(copy(model))
    assert same(*ends)


def test_norms_and_biases_get_no_weight_decay(tiny_nets: Any) -> None:
    model = tiny_nets.batch()
    decayed, plain = optimizer_for(model, TrainConfig(weight_decay=0.3), []).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    assert sorted(names[id(p)] for p in decayed["params"]) == ["0.weight", "3.weight", "9.weight"]
    assert len(plain["params"]) == 5


def test_extra_groups_keep_their_own_options(tiny_nets: Any) -> None:
    model = tiny_nets.group()
    group = {"params": [model[0].weight], "lr": 0.5, "weight_decay": 0.0}
    groups = optimizer_for(model, TrainConfig(lr=0.1), [group]).param_groups
    assert [g["lr"] for g in groups] == [0.1, 0.1, 0.5]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize(("freeze", "kept"), [("backbone", False), ("head", True)])
def test_freezing_keeps_the_weights_of_one_part(
    context: Context, tiny_nets: Any, freeze: Any, kept: bool
) -> None:
    torch.manual_seed(0)
    model = tiny_nets.batch()
    before = copy(model)
    fit(model, replace(QUICK, freeze=freeze), context, name="t")
    assert all(p.requires_grad for p in model.parameters())  # the next stage may train all again
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    head = {"9.weight", "9.bias"}
    if kept:
        assert not changed & head
        assert {"0.weight", "1.running_mean"} <= changed
    else:
        assert changed == head  # the running averages of frozen norms stay too


def test_clipping_bounds_the_first_update(context: Context, tiny_nets: Any) -> None:
    moved = []
    for clip in (0.0, 1e-4):
        torch.manual_seed(0)
        model = tiny_nets.group()
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        config = TrainConfig(
            epochs=1, batch_size=64, lr=1.0, optimizer="sgd", momentum=0.0, weight_decay=0.0,
            warmup_epochs=0, clip_norm=clip,
        )  # fmt: skip
        fit(model, config, context, name="t")
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        moved.append(float((after - before).norm()))
    assert moved[1] == pytest.approx(1e-4, rel=1e-2)
    assert moved[0] > 0.1


def test_accumulation_equals_the_larger_batch(context: Context, tiny_nets: Any) -> None:
    ends = []
    for batch, accumulate in ((12, 1), (4, 3)):
        torch.manual_seed(0)
        model = tiny_nets.group().double().float()
        config = TrainConfig(
            epochs=1, batch_size=batch, accumulate=accumulate, lr=0.05, optimizer="sgd",
            warmup_epochs=0, clip_norm=0.0,
        )  # fmt: skip
        training_schedule, training.share_of_peak = training.share_of_peak, lambda *_: 1.0
        try:
            data = context.data
            keep = data.dataset.splits["train"][:36]  # three large batches, nine small ones
            dataset = replace(data.dataset, splits={**data.dataset.splits, "train": keep})
            fit(model, config, replace(context, data=replace(data, dataset=dataset)), name="t")
        finally:
            training.share_of_peak = training_schedule
        ends.append(copy(model))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=2e-6), name


def test_the_last_incomplete_accumulation_counts_whole(
    context: Context, tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps by two are three updates, each with the mean of its own gradients."""
    monkeypatch.setattr(training, "share_of_peak", lambda *_: 1.0)
    for accumulate, updates in ((1, 5), (2, 3), (4, 2), (9, 1)):
        model = tiny_nets.group()
        before = model[5].bias.detach().clone()
        config = TrainConfig(
            epochs=1, batch_size=8, accumulate=accumulate, lr=0.25, optimizer="sgd", momentum=0.0,
            weight_decay=0.0, warmup_epochs=0, clip_norm=0.0,
        )  # fmt: skip
        # The gradient of this loss is 1 for every bias, whatever the weights are.
        fit(model, config, context, lambda logits, *_: logits.mean(0).sum() * 1e-3, name="t")
        moved = (before - model[5].bias.detach()) / (0.25 * 1e-3)
        assert moved.tolist() == pytest.approx([updates] * 3, abs=1e-3)


def test_label_smoothing_raises_the_least_loss(context: Context, tiny_nets: Any) -> None:
    losses = []
    for smoothing in (0.0, 0.3):
        torch.manual_seed(0)
        config = replace(QUICK, epochs=8, label_smoothing=smoothing)
        losses.append(fit(tiny_nets.group(), config, context, name="t")["loss"][-1])
    floor = -(0.8 * math.log(0.8) + 0.2 * math.log(0.1))  # entropy of the smoothed label
    assert losses[1] > floor > losses[0]


def test_early_stopping_counts_epochs_without_a_better_accuracy(
    context: Context, tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for accuracies, ran in (
        ([0.5, 0.6, 0.6, 0.55, 0.7, 0.7, 0.7, 0.7], 4),  # an equal one is not better
        ([1.0] * 8, 3),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 8),
    ):
        values = iter(accuracies)
        monkeypatch.setattr(training, "evaluate", lambda *_, values=values: next(values))
        found = fit(tiny_nets.group(), replace(QUICK, epochs=8, patience=2), context, name="t")
        assert found["epochs"] == ran
        assert found["val_score"] == max(accuracies[:ran])


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(
    context: Context, tiny_nets: Any
) -> None:
    calls = []

    def loss(logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return logits.sum() * (float("nan") if len(calls) == 8 else 0.0)

    with pytest.raises(UserError) as caught:
        fit(tiny_nets.group(), replace(QUICK, warmup_epochs=0), context, loss, name="distill")
    rate = 0.01 * 0.5 * (1 + math.cos(math.pi * 7 / 10))
    assert f"distill: the loss is nan at epoch 2, step 3, learning rate {rate:.3g}" in str(
        caught.value
    )
    assert "Lower --lr" in str(caught.value)


def test_a_rate_that_is_far_too_high_is_caught(context: Context, tiny_nets: Any) -> None:
    config = TrainConfig(
        epochs=3, batch_size=8, lr=1e30, optimizer="sgd", warmup_epochs=0, clip_norm=0
    )
    with pytest.raises(UserError, match=r"the loss is (nan|inf)"):
        fit(tiny_nets.group(), config, context, name="t")


def test_the_average_of_the_weights_is_evaluated_and_kept(context: Context, tiny_nets: Any) -> None:
    """With a decay near 1 the average hardly moves away from where the first update put it."""
    torch.manual_seed(0)
    model = tiny_nets.group()
    fast: list[Tensor] = []
    fit(
        model, replace(QUICK, epochs=3, ema_decay=0.9999), context, name="t",
        on_epoch=lambda _, live: fast.append(live[0].weight.detach().clone()),
    )  # fmt: skip
    kept = model[0].weight.detach()
    assert (kept - fast[0]).abs().max() < 0.2 * (fast[2] - fast[0]).abs().max()
    assert (kept - fast[0]).abs().max() > 0


def test_no_epochs_leave_the_model_as_it_is(context: Context, tiny_nets: Any) -> None:
    model = tiny_nets.group()
    before = copy(model)
    found = fit(model, replace(QUICK, epochs=0), context, name="t")
    assert same(model.state_dict(), before)
    assert found == {
        "epochs": 0,
        "best_epoch": 0,
        "val_metric": "top1",
        "val_score": None,
        "loss": [],
    }


def test_bf16_is_used_in_training_and_gone_afterwards(context: Context, tiny_nets: Any) -> None:
    torch.manual_seed(0)
    model = tiny_nets.group()
    kinds: list[torch.dtype] = []
    hook = model[0].register_forward_hook(lambda *parts: kinds.append(parts[-1].dtype))
    found = fit(model, replace(QUICK, epochs=4, precision="bf16"), context, name="t")
    assert set(kinds) == {torch.bfloat16}
    assert found["loss"][-1] < found["loss"][0]
    assert all(p.dtype == torch.float32 for p in model.parameters())
    kinds.clear()
    model(context.data.example)  # what is exported and proved must not be in bf16
    assert kinds == [torch.float32]
    hook.remove()
    assert "forward" not in vars(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device that can")
def test_fp16_without_a_gpu_says_what_to_give_instead(context: Context, tiny_nets: Any) -> None:
    with pytest.raises(EnvironmentLacks, match=r"precision fp16 needs a GPU.*bf16"):
        fit(tiny_nets.group(), replace(QUICK, precision="fp16"), context, name="t")


def test_an_epoch_is_told_in_one_plain_line(
    context: Context, tiny_nets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vcompress"):
        fit(tiny_nets.group(), QUICK, context, name="finetune")
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("finetune")]
    assert len(lines) == 2
    assert lines[0].startswith("finetune  epoch 1/2  loss ")
    for part in ("val ", " %", "lr ", "s left"):
        assert part in lines[0]


def test_tensorboard_gets_its_events_and_they_outlive_the_work_folder(
    context: Context, tiny_nets: Any, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    tracked = replace(context, track=("tensorboard",), workdir=tmp_path / "runs" / ".r18.work")
    fit(tiny_nets.group(), QUICK, tracked, name="finetune")
    files = list((tmp_path / "runs" / "tracking" / "r18-finetune").rglob("events.out.tfevents*"))
    assert files
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
    assert {"loss", "val_top1"} <= tags


def test_a_tracker_that_is_not_installed_is_named(context: Context, tiny_nets: Any) -> None:
    for name in ("nonesuch", "tensorbord"):
        with pytest.raises(EnvironmentLacks, match=f"--track {name}: its package is not installed"):
            fit(tiny_nets.group(), QUICK, replace(context, track=(name,)), name="t")


def test_a_class_with_everything_frozen_is_named(context: Context) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with pytest.raises(UserError, match="Nothing is left to train"):
        fit(model, replace(QUICK, freeze="head"), context, name="t")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": -1}, "epochs = -1: it must be 0 or more"),
        ({"batch_size": 0}, "batch_size = 0: it must be 1 or more"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"ema_decay": 1.0}, "ema_decay = 1.0: it must be at least 0 and below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing = -0.1"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"workers": -1}, "workers = -1"),
    ],
)
def test_a_bad_option_is_refused_when_the_config_is_made(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(**change)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path: Path) -> None:
    """The same global batch, without batch norm: only the order of sums differs."""
    from safetensors.torch import load_file

    script = load_script()
    config = {"epochs": 2, "batch_size": 8, "lr": 0.02, "ema_decay": 0.5, "clip_norm": 0.5}
    weights, alone = script.train(tmp_path / "alone", "group", config)
    out = tmp_path / "together"
    out.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_addr", "127.0.0.1", "--master_port", str(free_port()),
        str(SCRIPT), str(out), json.dumps({"net": "group", "config": config}),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads((out / "found.json").read_text())
    assert together["processes"] == 2
    assert together["loss"] == pytest.approx(alone["loss"], abs=1e-4)
    assert together["val_score"] == alone["val_score"]
    found = load_file(out / "weights.safetensors")
    for name, value in weights.items():
        assert torch.allclose(found[name], value, atol=1e-4), name


class Rowed(nn.Module):
    """`view` on a map, and a buffer of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 3)
        self.pool = nn.MaxPool2d(4)
        self.register_buffer("table", torch.ones(1, 1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.conv(x) * self.table[0])
        return self.fc(x.view(x.size(0), -1))


def test_a_network_that_does_not_bear_channels_last_is_trained_without_it(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = TrainConfig(epochs=4, batch_size=6, lr=0.02)
    with caplog.at_level(logging.INFO):
        found = fit(Rowed(), config, context, name="t")
    assert found["loss"][-1] < 0.5 * found["loss"][0]
    said = [r.getMessage() for r in caplog.records if "channels_last" in r.getMessage()]
    assert len(said) == 1
    assert "in contiguous memory; in channels_last it fails at " in said[0]
    assert "test_loop.py" in said[0]


def test_training_leaves_no_trace_of_its_memory_format(
    context: Context, tiny_nets: Any, tmp_path: Path
) -> None:
    """Nodes and attributes of the exported file, against those of the untrained network."""

    def nodes(model: nn.Module) -> list[str]:
        export(model, tmp_path / "m.onnx", ("input", (3, 16, 16)))
        names = {"op_type", "input", "output", "attribute"}
        graph = onnx.load(str(tmp_path / "m.onnx")).graph
        return [str([v for f, v in n.ListFields() if f.name in names]) for n in graph.node]

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    nn.init.ones_(model[1].bias)  # a shift of nought would not be written
    strides = [t.stride() for t in model.state_dict().values()]
    before = nodes(model)
    fit(model, QUICK, context, name="t")
    assert [t.stride() for t in model.state_dict().values()] == strides
    assert nodes(model.eval()) == before
    assert not any(name in "".join(before) for name in ("Shape", "Range", "Gather"))


def test_a_network_with_statistics_of_the_batch_is_validated_image_by_image(
    context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    found = fit(model, QUICK, context, name="t")
    assert "since 1 (BatchNorm2d) takes statistics over the batch" in caplog.text
    alone = [
        float(model.eval()(image[None]).argmax() == target)
        for images, targets in context.data.loader("val", 1)
        for image, target in zip(images, targets, strict=True)
    ]
    assert found["val_score"] == pytest.approx(sum(alone) / len(alone))
