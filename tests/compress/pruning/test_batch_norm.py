from __future__ import annotations

import torch
from torch import nn

from vcompress.compress.pruning.batch_norm import recalibrate


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.9)).eval()


def test_statistics_are_the_averages_of_the_batches() -> None:
    model = network()
    batches = [(torch.randn(8, 3, 5, 5) * 3 + 2, torch.zeros(8)) for _ in range(3)]
    assert recalibrate(model, batches) == 1
    norm = model[1]
    inner = [model[0](images).transpose(0, 1).flatten(1) for images, _ in batches]
    mean = torch.stack([i.mean(1) for i in inner]).mean(0)
    var = torch.stack([i.var(1) for i in inner]).mean(0)
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, var, rtol=1e-4)


def test_everything_but_the_statistics_stays() -> None:
    model = network()
    model[1].train()
    weights = {k: v.clone() for k, v in model.named_parameters()}
    recalibrate(model, [(torch.randn(4, 3, 5, 5), torch.zeros(4)), (torch.randn(1, 3, 1, 1), None)])
    assert all(torch.equal(v, weights[k]) for k, v in model.named_parameters())
    assert [m.training for m in model] == [False, True, False]
    assert model[1].momentum == 0.1
    assert int(model[1].num_batches_tracked) == 1  # an image alone was passed over


def test_images_that_come_alone_leave_the_statistics_as_they_were() -> None:
    model = network()
    model[1].running_mean.fill_(3.0)
    assert recalibrate(model, [(torch.randn(1, 3, 5, 5), None)] * 4) == 0
    assert torch.equal(model[1].running_mean, torch.full((4,), 3.0))
    assert int(model[1].num_batches_tracked) == 0 and not model[1].training


def test_a_network_without_running_statistics_is_left_alone() -> None:
    def never() -> None:
        raise AssertionError("the images were read")
        yield

    assert recalibrate(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), never()) == 0
