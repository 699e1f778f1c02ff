"""Attention in the open computes what the library's module computes, and goes into int8."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torchvision.models import swin_transformer as swin

from vcompress.compress import quantization as q
from vcompress.compress.quantization.attention import WindowAttention
from vcompress.compress.quantization.trace import trace
from vcompress.export.parity import run_onnx, run_torch
from vcompress.export.to_onnx import export

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
        [4, 4], 32, [2, 2], [2, 4], [4, 4], num_classes=8, stochastic_depth_prob=0.0, **parts
    ).eval()
    images = torch.randn(48, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    prepared = q.prepare(model, images[:1], target="onnxruntime")
    q.calibrate(prepared, torch.split(images, 16))
    where = q.placement(prepared)
    # patches, four blocks of four layers, one merge, the head
    assert len(where["weights"]) == 1 + 4 * 4 + 1 + 1
    exportable = q.to_export(prepared.eval())
    file = tmp_path / "m.onnx"
    export(exportable, file, ("input", (3, 40, 40)), metadata={})
    (found,) = run_onnx(file, images.numpy(), optimised=True)
    assert (run_torch(exportable, images) == found).all()
    with torch.no_grad():
        expected = model(images)
    noise = (expected - torch.from_numpy(found)).square().sum() / expected.square().sum()
    assert float(noise) < 0.02  # 17 dB
    names = {t.name for t in onnx.load(file).graph.initializer}
    assert not any("cpb_mlp" in n or "relative" in n for n in names), names
