"""Attention in the open computes what the library's module computes, and goes into int8."""

from __future__ import annotations

import json
import operator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torchvision.models import swin_transformer as swin

from vcompress.compress import quantization as q
from vcompress.compress.quantization.attention import WindowAttention
from vcompress.compress.quantization.trace import trace
from vcompress.export.onnx_export import export
from vcompress.export.parity import run_torch
from vcompress.export.runtime import run_onnx

Versions = type[swin.ShiftedWindowAttention]
BOTH = [swin.ShiftedWindowAttention, swin.ShiftedWindowAttentionV2]


class Around(nn.Module):
    """The tracer looks into what a network calls, not at the network itself."""

    def __init__(self, version: Versions, shift: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = version(32, [7, 7], [shift, shift], 4)
        for parameter in self.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.attention(x)
        return made


@pytest.mark.parametrize("version", BOTH)
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (10, 21), (7, 14), (16, 5)])
def test_windows_attend_as_in_torchvision(
    version: Versions, shift: int, size: tuple[int, int]
) -> None:
    plain = Around(version, shift).eval()
    graph = trace(plain)
    assert set(graph.state_dict()) == set(plain.state_dict())
    x = torch.randn(3, *size, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(graph(x), plain(x))
    products = [n for n in graph.graph.nodes if n.target is torch.matmul]
    assert len(products) == 2


def test_the_keys_of_the_second_version_get_no_bias() -> None:
    graph = trace(Around(swin.ShiftedWindowAttentionV2, 3)).train()
    graph(torch.randn(2, 14, 14, 32)).square().sum().backward()
    gradient = graph.attention.qkv.bias.grad.view(3, -1)
    assert not gradient[1].any()
    assert gradient[0].any()
    assert gradient[2].any()


def test_attention_of_other_widths_is_left_whole() -> None:
    cut = Around(swin.ShiftedWindowAttention, 0)
    cut.attention.qkv = nn.Linear(32, 48)
    graph = trace(cut)
    assert not any(isinstance(m, WindowAttention) for m in graph.modules())
    assert not [n for n in graph.graph.nodes if n.target is torch.matmul]


@pytest.mark.parametrize("second", [False, True])
def test_swin_is_int8_and_equals_its_file(second: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = (
        {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
        if second
        else {"block": partial(swin.SwinTransformerBlock)}
    )
    model = swin.SwinTransformer(
        [4, 4], 32, [2, 1], [2, 4], [4, 4], num_classes=8, stochastic_depth_prob=0.0, **parts
    ).eval()
    images = torch.randn(48, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    prepared = q.prepare(model, images[:1], target="onnxruntime")
    q.calibrate(prepared, torch.split(images, 16))
    where = q.placement(prepared)
    # patches, three blocks of four layers, one merge, the head
    assert len(where["weights"]) == 1 + 3 * 4 + 1 + 1
    exportable = q.to_export(prepared.eval())
    file = tmp_path / "m.onnx"
    export(exportable, file, ("input", (3, 40, 40)))
    (found,) = run_onnx(file, images.numpy(), optimised=True)
    assert (run_torch(exportable, images) == found).all()
    with torch.no_grad():
        expected = model(images)
    noise = (expected - torch.from_numpy(found)).square().sum() / expected.square().sum()
    assert float(noise) < 0.02  # 17 dB
    names = {t.name for t in onnx.load(file).graph.initializer}
    assert not any("cpb_mlp" in n or "relative" in n for n in names), names


class Block(nn.Module):
    """Attention by the functional call, and arguments that a network has for others."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.dropout = nn.Linear(32, 96), nn.Linear(32, 5), dropout
        self.patches = nn.Conv2d(3, 32, 4, 4)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
    ) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if mask is not None:
            x = x * mask
        q, k, v = self.qkv(x).split(32, -1)
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in (q, k, v))
        x = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=self.dropout, is_causal=causal
        )
        made: torch.Tensor = self.out(x.transpose(1, 2).flatten(2).mean(1))
        return made


def test_the_functional_call_is_opened_and_equals_its_file(tmp_path: Path) -> None:
    model = Block().eval()
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = trace(model)
    assert [n.target for n in graph.graph.nodes if n.op == "placeholder"] == ["x"]
    assert len([n for n in graph.graph.nodes if n.target is torch.matmul]) == 2
    with torch.no_grad():
        assert torch.allclose(graph(images), model(images), atol=1e-6)
    prepared = q.prepare(model, images[:1], target="tensorrt")
    for product in (n for n in prepared.graph.nodes if n.target is torch.matmul):
        for read in product.args:  # rounded, then moved at most
            while read.op == "call_method" or read.target is operator.getitem:
                read = read.args[0]
            assert str(read.target).startswith("activation_quantizers."), read
    prepared = q.prepare(model, images[:1], target="onnxruntime")
    q.calibrate(prepared, [images])
    exportable = q.to_export(prepared.eval())
    export(exportable, tmp_path / "m.onnx", ("input", (3, 32, 32)))
    (found,) = run_onnx(tmp_path / "m.onnx", images.numpy(), optimised=True)
    assert (run_torch(exportable, images) == found).all()


def test_attention_that_always_drops_is_left_as_it_is() -> None:
    graph = trace(Block(dropout=0.1))
    sdpa = nn.functional.scaled_dot_product_attention
    assert len([n for n in graph.graph.nodes if n.target is sdpa]) == 1


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def quantised(model: nn.Module, target: str, **options: Any) -> nn.Module:
    prepared = q.prepare(model, images(1), target=target, **options)
    q.calibrate(prepared, [images(64)])
    return prepared.eval()


def sqnr_db(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(a.square().sum() / (a - b).square().sum()))


def test_attention_is_quantised_inside_and_equals_the_module_it_replaces() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 32, 4, 4)
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x).flatten(2).transpose(1, 2)
            return x + self.attention(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model = Attend().eval()
    for target, matrix_products in (("onnxruntime", 0), ("tensorrt", 2)):
        prepared = quantised(model, target)
        where = q.placement(prepared)
        assert "attention.out_proj" in {w["layer"] for w in where["weights"]}
        kept = [e for e in where["float"] if e["operation"] == "matmul"]
        assert len(kept) == 2 - matrix_products
        with torch.no_grad():
            assert sqnr_db(model(images()), prepared(images())) > 30
            assert sqnr_db(prepared(images()), q.to_export(prepared)(images())) > 40


class Attend(nn.Module):
    """Attention in one of the ways that `nn.MultiheadAttention` has."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.embed, self.other = nn.Conv2d(3, 32, 4, 4), nn.Conv2d(3, 32, 4, 4)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        read = self.other(x).flatten(2).transpose(1, 2) if self.way == "cross" else tokens
        mask = torch.triu(torch.ones(9, 9, dtype=torch.bool), 1) if self.way == "mask" else None
        out = self.attention(tokens, read, read, need_weights=False, attn_mask=mask)[0]
        return self.head(out).mean(1)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize(
    ("way", "why"), [("cross", "between several tensors"), ("mask", "under a mask")]
)
def test_other_attention_than_of_a_tensor_to_itself_stays_whole(
    way: str, why: str, target: str
) -> None:
    torch.manual_seed(0)
    model = Attend(way).eval()
    prepared = quantised(model, target)
    where = q.placement(prepared)
    reasons = {e["name"]: e["reason"] for e in where["float"]}
    assert why in reasons["attention"]
    again = q.restore(model, json.loads(json.dumps(where)))
    again.load_state_dict(prepared.state_dict())
    with torch.no_grad():
        assert sqnr_db(model(images()), prepared(images())) > 35
        assert torch.equal(again.eval()(images()), prepared(images()))
        assert sqnr_db(prepared(images()), q.to_export(prepared)(images())) > 60


def test_an_attention_that_is_asked_for_stays_in_floating_point_with_all_inside() -> None:
    prepared = quantised(Attend("self").eval(), "tensorrt", keep_float=("attention",))
    where = q.placement(prepared)
    assert [w["layer"] for w in where["weights"]] == ["embed", "head"]
    asked = {e["operation"] for e in where["float"] if e["reason"] == "asked for"}
    assert asked == {"linear", "matmul"}
