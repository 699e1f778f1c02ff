"""Pruning between a user's own loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import prune, quantize
from vcompress.compress.models.cost import count_macs


@pytest.mark.parametrize("gives", ["tensor", "dict", "tuple"])
@pytest.mark.parametrize("form", ["pairs", "tensors", "dicts"])
def test_any_loader_and_any_output_halves_the_macs(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor, gives: str,
    form: str,
) -> None:  # fmt: skip
    model = net(gives)
    before = count_macs(model, example)
    report = prune(model, example, macs=0.5, data=loader(form))
    assert report.asked.text == "macs<=0.5"
    assert report.achieved["macs"] == pytest.approx(0.5, abs=0.02)
    assert count_macs(model, example) / before == report.achieved["macs"]
    assert report.batch_norms == 2
    assert type(model(example)) is type(net(gives)(example))


def test_batch_norms_are_estimated_on_all_batches_and_not_without_data(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor
) -> None:
    with_data, without = net(), net()
    prune(with_data, example, macs=0.5, data=loader())
    assert prune(without, example, macs=0.5).batch_norms == 0
    seen = torch.cat([images for images, _ in loader()])
    norm = with_data.body[1]
    made = with_data.body[0](seen)
    torch.testing.assert_close(norm.running_mean, made.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    assert float(without.body[1].running_mean.abs().max()) == 0.0


def test_small_batches_are_joined_for_the_statistics(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor
) -> None:
    one, other = net(), net()
    prune(one, example, macs=0.5, data=loader())
    alone = [(x[i : i + 1], y[i : i + 1]) for x, y in loader(count=1) for i in range(16)]
    prune(other, example, macs=0.5, data=alone)
    images = loader(count=1)[0][0]
    made = other.body[0](images)
    torch.testing.assert_close(
        other.body[1].running_mean, made.mean((0, 2, 3)), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(), nn.functional.cross_entropy])
@pytest.mark.parametrize("importance", ["taylor", "hessian"])
def test_a_plain_loss_ranks_channels(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor, loss: Any,
    importance: Any,
) -> None:  # fmt: skip
    model = net("dict")
    report = prune(
        model, example, macs=0.5, data=loader("dicts"), importance=importance, loss=loss,
        output="logits",
    )  # fmt: skip
    assert report.achieved["macs"] == pytest.approx(0.5, abs=0.02)


def test_the_loss_decides_which_channels_go(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor
) -> None:
    def first_class_alone(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs[:, 0].square().mean()

    kept = [
        prune(net(), example, macs=0.5, data=loader(), importance="taylor", loss=loss).removed
        for loss in (None, first_class_alone)
    ]
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in kept[0])


def test_a_latency_in_text_is_measured(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from vcompress.compress.library import prune as home
    from vcompress.compress.pruning.latency_table import LatencyTable

    def bytes_of(path: Any) -> float:
        return path.stat().st_size / 1e5

    monkeypatch.setattr(home, "open_table", lambda file, threads: LatencyTable(bytes_of, {}))
    report = prune(net(), example, "latency<=0.7", data=loader())
    assert report.latency_ms is not None
    before, after = report.latency_ms
    assert report.achieved["latency"] == after / before < 1.0


def test_what_cannot_be_pruned_is_one_message_and_stays_as_it_was(
    net: Callable[..., nn.Module], loader: Callable[..., list[Any]], example: Tensor,
    stubborn: nn.Module,
) -> None:  # fmt: skip
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match="Give exactly one of macs"):
        prune(model, example)
    with pytest.raises(UserError, match=r"does not take the example \[1, 1, 16, 16\]"):
        prune(model, example[:, :1], macs=0.5)
    with pytest.raises(UserError, match=r"got a tuple; expected one tensor of floats|got a tuple"):
        prune(model, (example, example), macs=0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="gives nothing"):
        prune(model, example, macs=0.5, data=[])
    with pytest.raises(UserError, match=r"taylor.*give data with targets"):
        prune(model, example, macs=0.5, importance="taylor")
    with pytest.raises(UserError, match=r"The loss is \[16\]; expected a scalar"):
        prune(
            model, example, macs=0.5, data=loader(), importance="taylor",
            loss=nn.CrossEntropyLoss(reduction="none"),
        )  # fmt: skip
    with pytest.raises(UserError, match=r"output = 'logit'.*aux, logits.*Did you mean 'logits'"):
        prune(net("dict"), example, macs=0.5, output="logit")
    with pytest.raises(UserError, match=r"got a str; expected a torch nn.Module. compress.load"):
        prune("runs/net", example, macs=0.5)  # type: ignore[arg-type]
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    with pytest.raises(UserError, match=r"quantised already.*prune first"):
        prune(quantize(model, loader()), example, macs=0.5)
    with pytest.raises(UserError, match=r"could not be traced.*ends before any layer.*detach\(\)"):
        prune(stubborn, example, macs=0.5)
    model.register_forward_hook(lambda module, inputs, output: output.detach())
    with pytest.raises(UserError, match="ends after head"):
        prune(model, example, macs=0.5)
