from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q
from vcompress.compress.quantization import sensitivity as module
from vcompress.compress.quantization.ptq import Scheme, quantised
from vcompress.compress.quantization.quality import rounding_only
from vcompress.compress.quantization.sensitivity import choose_keep_float, sensitivity


@pytest.fixture
def fragile() -> nn.Module:
    """Its second layer is quantised badly: one channel of its input dwarfs the one that counts."""
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
    with torch.no_grad():
        first.weight[0] *= 3000.0
        second.weight[:, 0] = 0.0
    model = nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), third, nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():  # every class about as often as the others
        third.bias.sub_(model(images()).mean(0))
    return model


def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(64, 3, 1, 1, generator=generator)
    return mean + torch.randn(64, 3, 6, 6, generator=generator)


def batches(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    x = images()
    with torch.no_grad():
        return [(part, model(part).argmax(1)) for part in torch.split(x, 32)]


def test_the_layer_that_suffers_comes_first(fragile: nn.Module) -> None:
    data = batches(fragile)
    prepared = q.prepare(fragile, data[0][0][:1], target="tensorrt", keep_float=())
    q.calibrate(prepared, [x for x, _ in data], observer="minmax")
    state = {k: v.clone() for k, v in prepared.state_dict().items()}
    before = prepared(data[0][0])
    found = sensitivity(prepared, data)
    assert found[0].layer == "2"
    assert found[0].sqnr_db < 20 < found[1].sqnr_db
    assert found[0].lost_accuracy > 2
    assert all(torch.equal(v, state[k]) for k, v in prepared.state_dict().items())
    assert torch.equal(prepared(data[0][0]), before)


def test_a_budget_of_accuracy_keeps_the_fewest_layers_in_float(fragile: nn.Module) -> None:
    data = batches(fragile)
    found = choose_keep_float(
        fragile, data[0][0][:1], [x for x, _ in data], data, Scheme("tensorrt", "minmax"),
        max_drop=1.0,
    )  # fmt: skip
    assert found.reached
    assert found.layers == ("2",)
    assert found.drop <= 1.0 < found.drop_of_all


def test_nothing_is_kept_where_the_budget_holds_anyway(fragile: nn.Module) -> None:
    data = batches(fragile)
    found = choose_keep_float(
        fragile, data[0][0][:1], [x for x, _ in data], data, Scheme("tensorrt"), max_drop=100.0
    )
    assert found.layers == ()
    assert found.reached


def test_every_layer_that_is_ranked_can_be_kept_in_float_by_its_name() -> None:
    class Net(nn.Module):
        """Attention, whose weight is a parameter, and a branch on a shape around it all."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 16)
            self.body = nn.Sequential(Tokens(), nn.Linear(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] < 4:
                x = nn.functional.interpolate(x, size=4)
            return self.head(self.body(self.stem(x))).mean(1)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).transpose(1, 2)
            return self.attention(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    model = Net().eval()
    data = batches(model)
    prepared = q.prepare(model, data[0][0][:1], target="tensorrt")
    q.calibrate(prepared, [x for x, _ in data])
    names = {s.layer for s in sensitivity(prepared, data)}
    assert names == {
        "stem", "body.0.attention.linear", "body.0.attention.out_proj", "body.1", "head",
    }  # fmt: skip
    for name in names:
        kept = q.prepare(model, data[0][0][:1], target="tensorrt", keep_float=(name,))
        assert q.count_quantised(q.placement(kept))[0] == len(names) - 1


def test_an_empty_split_is_refused(fragile: nn.Module) -> None:
    data = batches(fragile)
    prepared = q.prepare(fragile, data[0][0][:1], target="tensorrt")
    q.calibrate(prepared, [x for x, _ in data])
    with pytest.raises(UserError, match="empty"):
        sensitivity(prepared, [])


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_float_network_is_scored_once_and_nothing_computes_intervals(
    fragile: nn.Module, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.bench import stats
    from vcompress.compress.quantization import sensitivity as module

    seen: list[int] = []
    of_outputs = module.evaluated
    monkeypatch.setattr(module, "evaluated", lambda *given: (seen.append(1), of_outputs(*given))[1])
    monkeypatch.setattr(stats, "bootstrap", None)
    x = images()
    with torch.no_grad():
        outputs = fragile(x)
    wanted = outputs.argmax(1) if task == "classification" else outputs
    prepared = q.prepare(fragile, x[:1], target="tensorrt", keep_float=())
    q.calibrate(prepared, [x], observer="minmax")
    found = sensitivity(prepared, [(x, wanted)], task)
    assert len(found) == 2 and len(seen) == 3
    worst = found[0]
    if task == "regression":  # the unit of the targets: the mean error of the quantised outputs
        members = dict(module._layers(prepared))[worst.layer]
        with rounding_only(prepared, members), torch.no_grad():
            assert worst.lost_accuracy == pytest.approx(
                float((prepared(x) - wanted).abs().mean()), rel=1e-4
            )


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_what_stands_before_a_layer_is_computed_once_with_the_same_ranking(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish(inplace=True),
        nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    x, targets = torch.randn(24, 3, 16, 16), torch.arange(24) % 4
    scheme = Scheme(target, weight_bits=3)  # so that each layer counts
    made = quantised(model, x[:1], [x], scheme)
    batches = [(x[:16], targets[:16]), (x[16:], targets[16:])]
    monkeypatch.setattr(module, "HELD_BYTES", 500_000)  # some images at a time
    fast = {s.layer: s for s in sensitivity(made, batches)}
    monkeypatch.setattr(module, "_may_be_kept", lambda *_: False)
    slow = {s.layer: s for s in sensitivity(made, batches)}
    assert len(fast) >= 3
    assert fast.keys() == slow.keys()
    for name, wanted in slow.items():
        assert fast[name].sqnr_db == pytest.approx(wanted.sqnr_db, abs=0.01)
        assert fast[name].lost_accuracy == pytest.approx(wanted.lost_accuracy)
    assert all(m.inplace for m in model.modules() if isinstance(m, nn.SiLU))
