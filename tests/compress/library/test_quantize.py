"""Quantisation between a user's own loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import freeze_norms, quantize
from vcompress.compress.quantization import is_quantized
from vcompress.export import to_onnx


@pytest.mark.parametrize("gives", ["tensor", "dict", "tuple"])
@pytest.mark.parametrize("form", ["pairs", "tensors", "dicts"])
def test_any_loader_and_any_output_is_calibrated_and_proved(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor, gives: str,
    form: str, tmp_path: Path,
) -> None:  # fmt: skip
    model = net(gives)
    output = "logits" if gives == "dict" else None
    q = quantize(model, loader(form), output=output)
    assert q.report.layers == 3
    assert q.report.target == "onnxruntime"
    assert q.report.sqnr_db > 30
    assert q.report.sqnr_db >= q.report.sqnr_db_before
    assert q.report.images == 43  # of 64: a third judges
    assert not is_quantized(model)
    q.eval()
    assert type(q(example)) is type(model(example))
    made = to_onnx(q, tmp_path / "net.onnx", loader("tensors")[0], output=output)
    assert made.report.int8_tensors == 3
    assert made.parity.optimised.top1_agreement == 1.0


def test_a_transform_serves_any_batch(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]]
) -> None:
    plain = quantize(net(), loader())
    other = quantize(net(), loader("odd"), transform=lambda batch: batch[1]["deep"])
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_so_many_images_calibrate_and_so_many_judge(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]]
) -> None:
    assert quantize(net(), loader(), images=40, held_out=8).report.images == 40
    assert quantize(net(), loader(count=1)[0][0][:1]).report.images == 1


def test_it_trains_on_in_a_users_own_loop(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], fit: Callable[..., Any]
) -> None:
    model = fit(net(), loader())
    q = quantize(model, loader())
    step = {n: p.detach().clone() for n, p in q.named_parameters() if n.endswith("log_scale")}
    q.train()
    freeze_norms(q)
    assert not any(m.training for m in q.modules() if isinstance(m, nn.BatchNorm2d))
    fit(q, loader(), lr=1e-3)
    moved = [n for n, p in q.named_parameters() if n in step and not torch.equal(p, step[n])]
    assert moved
    images = torch.cat([x for x, _ in loader()])
    labels = torch.cat([y for _, y in loader()])
    assert float((q(images).argmax(1) == labels).float().mean()) > 0.95


def test_what_stays_in_floating_point_is_named(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]]
) -> None:
    q = quantize(net(), loader(), keep_float=("head",))
    assert ("head", "linear", "asked for") in q.report.kept_float
    assert q.report.layers == 2


def test_a_forward_pass_that_asks_for_its_size_is_traced_with_it(
    loader: Callable[..., list[Any]],
) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, images: Tensor) -> Tensor:
            if images.shape[1] != 3:
                raise ValueError("three channels")
            return self.conv(images).mean((2, 3))

    model = Asks()
    q = quantize(model, loader())
    assert q.report.layers == 1
    assert not hasattr(model, "input_shape")


def test_the_mode_of_training_stays(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]]
) -> None:
    assert quantize(net().train(), loader()).training
    assert not quantize(net().eval(), loader()).training


def test_what_cannot_be_quantised_is_one_message(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], stubborn: nn.Module
) -> None:
    model = net()
    with pytest.raises(UserError, match="gives nothing"):
        quantize(model, [])
    with pytest.raises(UserError, match=r"does not take the example \[1, 1, 16, 16\]"):
        quantize(model, [torch.zeros(4, 1, 16, 16)])
    with pytest.raises(UserError, match="not finite"):
        quantize(model, [torch.full((4, 3, 16, 16), float("nan"))])
    with pytest.raises(UserError, match=r"no module|matches nothing|keep_float"):
        quantize(model, loader(), keep_float=("tail",))
    with pytest.raises(UserError, match="expected one of onnxruntime, openvino, tensorrt"):
        quantize(model, loader(), target="coreml")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="quantised already"):
        quantize(quantize(model, loader()), loader())
    with pytest.raises(UserError, match=r"cannot be traced: at .*conftest\.py:\d+ in forward"):
        quantize(stubborn, loader())


def test_a_copy_has_no_report_and_computes_the_same(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor
) -> None:
    q = quantize(net().eval(), loader())
    again = copy.deepcopy(q)
    assert not hasattr(again, "report")
    assert torch.equal(again(example), q(example))
