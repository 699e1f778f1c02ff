"""Adapters of a ViT: they and the head learn, and nothing of them is left in the result."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import finetune
from vcompress.compress.stages.finetune import Config
from vcompress.compress.training.config import Context
from vcompress.compress.training.lora import adapt


def torchvision_vit() -> nn.Module:
    torch.manual_seed(0)
    vit = torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=3)
    nn.init.normal_(vit.heads.head.weight, std=0.1)
    return vit


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net: nn.Module = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    return net


NETS = {"torchvision": torchvision_vit, "timm": timm_vit}


@pytest.mark.parametrize("kind", list(NETS))
def test_only_adapters_and_the_head_learn_and_the_merged_network_is_a_plain_one(
    tiny_data: Callable[..., Data], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from vcompress.compress.training import lora

    data = tiny_data()
    model = NETS[kind]()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen: dict[str, torch.Tensor] = {}
    original = lora.Adapted.merge

    def spied(self: Any, example: torch.Tensor) -> float:
        self.tuner.model.eval()
        with torch.no_grad():
            seen["adapted"] = self.tuner.model(example)
        return original(self, example)

    monkeypatch.setattr(lora.Adapted, "merge", spied)
    config = Config(epochs=3, batch_size=8, lr=0.02, lora=2)
    outcome = finetune.apply(model, config, Context(data, tmp_path / "w"))
    after = outcome.model.state_dict()
    assert after.keys() == before.keys()
    assert not [m for m in outcome.model.modules() if "lora" in type(m).__module__]
    with torch.no_grad():
        merged = outcome.model(data.images("val", 8))
    assert torch.allclose(merged, seen["adapted"], atol=1e-5)
    details = outcome.details["lora"]
    assert details["merge_error"] < 1e-5
    head = "heads.head" if kind == "torchvision" else "head"
    adapted = {"in_proj", "out_proj", "qkv", "proj", "fc1", "fc2", "mlp"}
    for key, value in after.items():
        learnt = key.startswith(head) or (
            key.endswith(("weight",)) and "ln" not in key and "norm" not in key
            and any(part in key for part in adapted) and "conv_proj" not in key
            and "patch_embed" not in key
        )  # fmt: skip
        assert torch.equal(value, before[key]) != learnt, key
        if learnt and not key.startswith(head):
            assert int(torch.linalg.matrix_rank(value - before[key], atol=1e-5)) <= 2, key
    # rank * (in + out) of each adapted layer; attention is (16, 48) and (16, 16), the MLP 16 x 32
    # or 16 x 64; the head has 16 * 3 + 3.
    wide = 32 if kind == "torchvision" else 64
    expected = 2 * 2 * ((16 + 48) + (16 + 16) + 2 * (16 + wide)) + 51
    assert details["trained"] == expected
    assert all(p.requires_grad for p in outcome.model.parameters())


def test_a_resumed_run_with_adapters_ends_the_same(
    tiny_data: Callable[..., Data], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from vcompress.compress.training import loop

    config = Config(epochs=3, batch_size=8, lr=0.02, lora=2, ema_decay=0.5)
    original = loop.evaluate
    ends = []
    for name, stops in (("whole", (None,)), ("cut", (2, None))):
        for number, stop in enumerate(stops):
            epochs: list[int] = []

            def counted(*parts: Any, epochs: list[int] = epochs, stop: int | None = stop) -> float:
                epochs.append(1)
                if len(epochs) == stop:
                    raise KeyboardInterrupt
                return original(*parts)

            monkeypatch.setattr(loop, "evaluate", counted)
            model = torchvision_vit()
            context = Context(tiny_data(), tmp_path / name, 0, number == 1)
            if stop is not None:
                with pytest.raises(KeyboardInterrupt):
                    finetune.apply(model, config, context)
            else:
                finetune.apply(model, config, context)
        ends.append(model.state_dict())
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_a_network_without_linear_layers_and_a_missing_peft_are_named(
    tiny_data: Callable[..., Data], tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data()
    with pytest.raises(UserError, match="this network has none beside its head"):
        adapt(tiny_nets.batch(), 4, data.example, 3)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install -e '/.*\[lora\]'"):
        adapt(torchvision_vit(), 4, data.example, 3)


def test_a_layer_whose_forward_is_never_called_is_left_alone(
    tiny_data: Callable[..., Data],
) -> None:
    """Swin takes the weights of `qkv` and calls a function: an adapter there would do nothing."""
    pytest.importorskip("peft")
    swin = torchvision.models.SwinTransformer(
        [2, 2], 8, [2], [2], [2, 2], num_classes=3, stochastic_depth_prob=0.0
    )
    data = replace(tiny_data())
    adapted = adapt(swin, 2, data.example, 3)
    assert not [name for name in adapted.layers if "qkv" in name or "attn" in name]
    assert [name for name in adapted.layers if "mlp" in name]
    for name, parameter in swin.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    swin(data.example).sum().backward()
    for name, parameter in swin.named_parameters():
        if "lora" in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
