import copy

import pytest
import torch
from torch import nn

from vcompress.compress.pruning import prune, remap_optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_momenta_of_what_stays_stay(kind: type[torch.optim.Optimizer]) -> None:
    model = network()
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.01, **options)  # type: ignore[call-arg]
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    name = "exp_avg" if kind is torch.optim.AdamW else "momentum_buffer"
    before = dict(model.named_parameters())
    old_state = {key: optimizer.state[p][name].clone() for key, p in before.items()}
    report = prune(model, torch.randn(1, 3, 8, 8), macs=0.5)
    remap_optimizer(optimizer, before, model, report)

    after = dict(model.named_parameters())
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(after.values())
    kept = {item.tensor: item.positions for item in report.kept}
    assert kept["0.weight"][0].numel() == model[0].out_channels < 32
    for key, parameter in after.items():
        wanted = old_state[key]
        for dim, positions in kept.get(key, {}).items():
            wanted = wanted.index_select(dim, positions)
        assert torch.equal(optimizer.state[parameter][name], wanted)
    assert len(optimizer.state) == len(after)


def test_training_goes_on_as_if_the_pruned_network_had_been_trained_so_far() -> None:
    """A channel that is zero throughout changes nothing, so cutting it must change nothing."""
    model = network()
    with torch.no_grad():
        for dead in range(16):
            model[0].weight[dead].zero_()
            model[0].bias[dead] = 0.0
            model[1].weight[dead], model[1].bias[dead] = 0.0, 0.0
            model[3].weight[:, dead] = 0.0
    model[0].requires_grad_(False)
    model[1].eval().requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    batches = [torch.randn(4, 3, 8, 8) for _ in range(4)]

    def train(network: nn.Module, opt: torch.optim.Optimizer, part: list[torch.Tensor]) -> None:
        for images in part:
            opt.zero_grad()
            network(images).square().mean().backward()
            opt.step()

    train(model, optimizer, batches[:2])
    whole = copy.deepcopy(model)
    whole_optimizer = torch.optim.Adam([p for p in whole.parameters() if p.requires_grad], lr=0.01)
    whole_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = dict(model.named_parameters())
    report = prune(model, torch.randn(1, 3, 8, 8), channels=0.75, protect=("3",), importance="bn")
    remap_optimizer(optimizer, before, model, report)
    train(model, optimizer, batches[2:])
    train(whole, whole_optimizer, batches[2:])
    images = torch.randn(2, 3, 8, 8)
    assert model[0].out_channels < 32
    assert torch.allclose(model(images), whole(images), atol=1e-6)
