"""Fine-tuning's own options: what learns, how fast, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import finetune
from vcompress.compress.stages.finetune import Config
from vcompress.compress.training.config import Context
from vcompress.compress.training.layer_groups import decayed_rates, layer_groups, unfreeze

QUICK = Config(epochs=2, batch_size=8, lr=0.02, warmup_epochs=0.5)


@pytest.fixture
def context(tiny_data: Callable[..., Data], tmp_path: Path) -> Context:
    return Context(tiny_data(), tmp_path / "work")


def copy(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("resnet18", 10, "conv1", "fc"),  # stem, eight blocks, head
        ("vit_b_32", 14, "conv_proj", "heads.head"),
        ("mobilenet_v2", 20, "features.0", "classifier.1"),
        ("densenet121", 9, "features.conv0", "classifier"),
    ],
)
def test_the_groups_of_a_network_go_from_input_to_head(
    name: str, count: int, first: str, last: str
) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=3)
    groups = layer_groups(model)
    assert len(groups) == count
    assert (groups[0].name, groups[-1].name) == (first, last)
    held = [id(p) for group in groups for p in group.parameters]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_norms_go_with_the_layer_before_and_tokens_with_the_first() -> None:
    with torch.device("meta"):
        net = torchvision.models.resnet18()
        vit = torchvision.models.vit_b_32()
    assert net.bn1 in layer_groups(net)[0].batch_norms
    assert [len(g.batch_norms) for g in layer_groups(net)[:4]] == [1, 2, 2, 3]
    first = {id(p) for p in layer_groups(vit)[0].parameters}
    assert {id(vit.class_token), id(vit.encoder.pos_embedding)} <= first
    last_block = {id(p) for p in layer_groups(vit)[-2].parameters}
    assert {id(p) for p in vit.encoder.ln.parameters()} <= last_block


def test_rates_fall_towards_the_input(tiny_nets: Any) -> None:
    model = tiny_nets.batch()
    groups = decayed_rates(layer_groups(model), 0.1, 0.5, 0.02)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "9.weight": (0.1, 0.02), "9.bias": (0.1, 0.0), "3.weight": (0.05, 0.02),
        "4.weight": (0.05, 0.0), "4.bias": (0.05, 0.0), "0.weight": (0.025, 0.02),
        "1.weight": (0.025, 0.0), "1.bias": (0.025, 0.0),
    }  # fmt: skip


def test_layer_decay_moves_early_layers_less(context: Context, tiny_nets: Any) -> None:
    moved = []
    for decay in (1.0, 0.1):
        torch.manual_seed(0)
        model = tiny_nets.group()
        before = copy(model)
        config = replace(QUICK, layer_decay=decay, optimizer="sgd", clip_norm=0.0)
        finetune.apply(model, config, context)
        after = model.state_dict()
        moved.append([float((after[k] - before[k]).norm()) for k in ("0.weight", "5.weight")])
    assert moved[1][0] < 0.25 * moved[0][0]
    assert moved[1][1] > 0.5 * moved[0][1]


def test_groups_unfreeze_one_by_one_from_the_head(context: Context, tiny_nets: Any) -> None:
    groups = layer_groups(tiny_nets.batch())
    assert [unfreeze(groups, epoch, 2) for epoch in range(8)] == [1, 1, 2, 2, 3, 3, 3, 3]
    torch.manual_seed(0)
    for epochs, still in ((1, {"0", "1", "3", "4"}), (2, {"0", "1"}), (3, set())):
        model = tiny_nets.batch()
        before = copy(model)
        config = replace(QUICK, epochs=epochs, unfreeze_every=1, layer_decay=0.8)
        # The best epoch is kept; the last one must be it here.
        finetune.apply(model, replace(config, ema_decay=0.5), context)
        same = set(before) - changed(model, before)
        assert {k.split(".")[0] for k in same} == still, epochs
        assert all(p.requires_grad for p in model.parameters())


def test_frozen_batch_norms_keep_their_averages(context: Context, tiny_nets: Any) -> None:
    model = tiny_nets.batch()
    before = copy(model)
    finetune.apply(model, replace(QUICK, freeze_bn=True), context)
    found = changed(model, before)
    assert not {k for k in found if "running" in k or "tracked" in k}
    assert {"1.weight", "0.weight", "9.bias"} <= found


@pytest.mark.parametrize(
    "change",
    [
        {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}, {"focal": 2.0, "mixup": 0.2},
        {"balanced": True, "focal": 1.0}, {"schedule": "onecycle"},
        {"adversarial": "pgd", "attack_steps": 2, "epsilon": 0.02},
        {"adversarial": "fgsm", "epsilon": 0.02, "mixup": 0.2},
        {"layer_decay": 0.7, "unfreeze_every": 1},
    ],
)  # fmt: skip
def test_each_way_learns_and_a_resumed_run_ends_the_same(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path, change: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from vcompress.compress.training import loop

    config = replace(QUICK, epochs=4, **change)
    original = loop.evaluate

    def run(name: str, stop: int | None, resume: bool = False) -> nn.Module:
        epochs = []

        def counted(*parts: Any) -> float:
            epochs.append(1)
            if len(epochs) == stop:
                raise KeyboardInterrupt
            return original(*parts)

        monkeypatch.setattr(loop, "evaluate", counted)
        torch.manual_seed(0)
        model: nn.Module = tiny_nets.batch()
        finetune.apply(model, config, Context(tiny_data(), tmp_path / name, 1, resume))
        return model

    whole = run("whole", None)
    with pytest.raises(KeyboardInterrupt):
        run("cut", 3)
    again = run("cut", None, resume=True)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert original(whole, Context(tiny_data(), tmp_path), config, "val") >= 0.8


def test_training_on_attacked_images_makes_the_network_harder_to_fool(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    from vcompress.compress.robustness.attacks import attacked

    data = tiny_data(per_class=40)
    held = []
    for kind in ("none", "pgd"):
        torch.manual_seed(0)
        model = tiny_nets.batch()
        config = Config(epochs=8, batch_size=8, lr=0.02, adversarial=kind, epsilon=0.12)  # type: ignore[arg-type]
        finetune.apply(model, config, Context(data, tmp_path / kind))
        model.eval()
        right = total = 0
        torch.manual_seed(0)
        for images, labels in data.loader("test", 24):
            found = attacked(
                model, images, labels, kind="pgd", epsilon=0.12, steps=10,
                mean=data.preprocess.mean, std=data.preprocess.std, loss=F.cross_entropy,
            )  # fmt: skip
            right += int((model(found).argmax(1) == labels).sum())
            total += len(labels)
        held.append(right / total)
    assert held[1] > held[0] + 0.1, held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay = 0.0: it must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay = 1.5"),
        ({"unfreeze_every": -1}, "unfreeze_every = -1"),
        ({"mixup": -1.0}, "mixup = -1.0: it must be 0 or more"),
        ({"focal": float("nan")}, "focal = nan"),
        ({"epsilon": 8.0}, "epsilon = 8.0: it must be above 0, at most 1"),
        ({"attack_steps": 0}, "attack_steps = 0"),
        ({"freeze": "backbone", "layer_decay": 0.5}, "freeze and layer_decay each say what learns"),
        ({"lora": 4, "unfreeze_every": 1}, "lora and unfreeze_every each say"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**change)


def test_gradual_unfreezing_in_several_processes_is_refused(
    context: Context, tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.compress.training import processes

    class Two:
        num_processes = 2

    monkeypatch.setattr(processes, "process_state", Two)
    with pytest.raises(UserError, match="--unfreeze-every works in one process"):
        finetune.apply(tiny_nets.group(), replace(QUICK, unfreeze_every=1), context)
