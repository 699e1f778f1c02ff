"""The stage on a real data set of tiny networks: what it reaches, reports and refuses."""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.refusals import refuse_quantised
from vcompress.compress.stages.prune import Config, apply


class FakeData:
    """Images whose class is their brightest channel, so that little training is enough."""

    classes = ("red", "green", "blue")
    dataset = SimpleNamespace(
        task="classification", targets=np.zeros(1, np.int64), splits={"train": [0]}
    )
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        result = []
        for _ in range(4):
            labels = torch.randint(0, 3, (8,), generator=generator)
            images = torch.randn(8, 3, 8, 8, generator=generator)
            images[range(8), labels] += 2.0
            result.append((images, labels))
        return result

    def sample(self, batch_size: int, batches: int) -> Any:
        return self.batches()


class FakeContext:
    workdir = Path()
    data = FakeData()
    teacher = None
    seed = 0


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the training loop by one that records its calls and takes a few SGD steps."""
    calls: list[dict[str, Any]] = []

    def fit(model: nn.Module, config: Any, context: Any, loss: Any = None, *, name: str) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        values = []
        for images, labels in context.data.batches():
            optimizer.zero_grad()
            value = loss(model(images), images, labels)
            value.backward()
            optimizer.step()
            values.append(value.item())
        calls.append(
            {
                "name": name,
                "epochs": config.epochs,
                "losses": values,
                "width": model[0].out_channels,
            }
        )
        return {"epochs": config.epochs}

    monkeypatch.setattr("vcompress.compress.training.loop.fit", fit)
    return calls


def test_pruning_in_steps_reaches_the_budget_and_trains_after_each(fits: Any) -> None:
    model = network()
    outcome = apply(
        model, Config(macs=0.25, steps=3, epochs=5, step_epochs=1, round_to=2), FakeContext()
    )  # type: ignore[arg-type]
    assert [call["name"] for call in fits] == ["prune-1of3", "prune-2of3", "prune-3of3"]
    assert [call["epochs"] for call in fits] == [1, 1, 5]
    widths = [call["width"] for call in fits]
    assert 32 > widths[0] >= widths[1] >= widths[2] == model[0].out_channels
    details = outcome.details
    assert details["asked"] == {"macs": 0.25}
    assert details["achieved"]["macs"] == pytest.approx(0.25, abs=0.02)
    assert ["0", 32, widths[2]] in details["layers"]
    assert details["left_alone"] == {"8": "it is an output of the network"}


def test_the_recovery_loss_is_distillation_from_the_unpruned_network(fits: Any) -> None:
    model = network()
    apply(model, Config(macs=0.9, round_to=1, alpha=1.0, epochs=1), FakeContext())  # type: ignore[arg-type]
    # a network near its teacher has next to no distillation loss, though its labels are guesses
    assert fits[0]["losses"][0] < 0.2


def test_batch_norms_are_estimated_again_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def fit(model: Any, *_: Any, **__: Any) -> dict[str, Any]:
        inner = model[0](torch.cat([x for x, _ in FakeData().batches()]))
        seen.append((model[1].running_mean.clone(), inner.mean((0, 2, 3))))
        return {}

    monkeypatch.setattr("vcompress.compress.training.loop.fit", fit)
    apply(network(), Config(macs=0.5, steps=2), FakeContext())  # type: ignore[arg-type]
    assert len(seen) == 2
    assert all(torch.allclose(mean, found, atol=1e-5) for mean, found in seen)


def test_a_named_teacher_is_learned_from(fits: Any) -> None:
    class Taught(FakeContext):
        teacher = network()

    with torch.no_grad():
        Taught.teacher[-1].bias.copy_(torch.tensor([30.0, 0.0, 0.0]))
    apply(network(), Config(macs=0.9, round_to=1, alpha=1.0, epochs=1), Taught())  # type: ignore[arg-type]
    assert fits[0]["losses"][0] > 1.0


@pytest.mark.parametrize("importance", ["taylor", "hessian", "distillation"])
def test_criteria_on_gradients_get_training_images(importance: Any, fits: Any) -> None:
    outcome = apply(network(), Config(macs=0.5, importance=importance), FakeContext())  # type: ignore[arg-type]
    assert outcome.details["achieved"]["macs"] == pytest.approx(0.5, abs=0.1)


def test_blocks_can_go_before_channels_or_alone(fits: Any) -> None:
    from torchvision.models.resnet import BasicBlock

    class Deep(FakeContext):
        class data(FakeData):
            def images(self, split: str, count: int) -> torch.Tensor:
                return self.batches()[0][0]

        data = data()  # type: ignore[assignment]

    def deep() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 1),
            nn.ReLU(),
            BasicBlock(16, 16),
            BasicBlock(16, 16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        )

    outcome = apply(deep(), Config(drop_blocks=1), Deep())  # type: ignore[arg-type]
    assert outcome.details["asked"] == {} and outcome.details["layers"] == []
    assert outcome.details["dropped_blocks"][0][0] in ("2", "3")
    assert outcome.details["achieved"]["macs"] < 0.55
    outcome = apply(deep(), Config(macs=0.3, drop_blocks=1), Deep())  # type: ignore[arg-type]
    assert 0.2 < outcome.details["achieved"]["macs"] <= 0.3
    assert len(outcome.details["dropped_blocks"]) == 1 and outcome.details["layers"]


def test_pruning_to_a_latency_measures_and_keeps_its_table(
    fits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.compress.pruning import latency_table

    def cost(path: Path) -> float:
        """As if weights were all that takes time."""
        return 1e-4 * path.stat().st_size

    asked: list[Any] = []
    monkeypatch.setattr(latency_table, "vbench_measure", lambda *a: asked.append(a[-1]) or cost)
    monkeypatch.setattr(latency_table, "vbench_ratio", lambda *_: lambda a, b: cost(b) / cost(a))

    class Working(FakeContext):
        workdir = tmp_path / "not-made-yet"
        threads = 3

    model = network()
    details = apply(model, Config(latency=0.6, round_to=4), Working()).details  # type: ignore[arg-type]
    assert details["asked"] == {"latency": 0.6}
    assert details["achieved"]["latency"] == pytest.approx(0.6, abs=0.1)
    assert details["latency_measured_ms"] == pytest.approx(details["latency_predicted_ms"], rel=0.1)
    assert model[0].out_channels < 32
    assert (tmp_path / "not-made-yet" / "latencies.json").is_file()
    assert asked == [3]
    assert [call["name"] for call in fits] == ["prune-1of1"]


@pytest.mark.parametrize(
    ("flag", "text"),
    [({"macs": 0.25}, "macs<=0.25"), ({"params": 0.4}, "params<=40%"),
     ({"channels": 0.5}, "channels<=0.5")],
)  # fmt: skip
def test_a_flag_and_a_budget_prune_alike(fits: Any, flag: dict[str, Any], text: str) -> None:
    found = [
        apply(network(), Config(steps=2, round_to=2, **given), FakeContext()).details  # type: ignore[arg-type]
        for given in (flag, {"budget": text})
    ]
    assert found[0]["layers"] == found[1]["layers"]
    assert found[0]["asked"] == found[1]["asked"] == flag
    assert found[0]["achieved"] == found[1]["achieved"]


def test_an_absolute_budget_is_taken_in_steps_too(fits: Any) -> None:
    whole = apply(network(), Config(macs=0.9, round_to=1), FakeContext()).details["before"]["macs"]  # type: ignore[arg-type]
    details = apply(
        network(), Config(budget=f"macs<={whole // 4}", steps=2, round_to=2), FakeContext()
    ).details  # type: ignore[arg-type]
    assert details["asked"] == {"macs": whole // 4}
    assert 0.23 * whole <= details["after"]["macs"] <= whole // 4
    assert details["steps"][0]["remains"] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(UserError, match=r"the network has .* macs already"):
        apply(network(), Config(budget=f"macs<={whole}"), FakeContext())  # type: ignore[arg-type]


def test_a_size_is_met_by_the_exported_file_with_its_metadata(
    fits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vcompress.bench.bundle import Preprocess

    class Sized(FakeContext):
        class data(FakeData):
            preprocess = Preprocess(size=(8, 8))

        data = data()  # type: ignore[assignment]

    exported: list[int] = []
    whole = sum(p.numel() for p in network().parameters())

    def exporting(example: Any, metadata: Any) -> Any:
        export = onnx_export(example, metadata)
        return lambda model, path: (
            exported.append(sum(p.numel() for p in model.parameters())), export(model, path)
        )  # fmt: skip

    module = sys.modules["vcompress.compress.pruning.prune"]
    onnx_export = module.onnx_export
    monkeypatch.setattr(module, "onnx_export", exporting)
    details = apply(network(), Config(budget="size_mb<=0.03", round_to=1), Sized()).details  # type: ignore[arg-type]
    assert exported.count(whole) == 1 and len(exported) == len(set(exported))
    assert details["asked"] == {"size_mb": 0.03}
    # 2 kB are left for the provenance, and a channel of both layers is 0.7 kB.
    assert 0.0273 < details["size_measured_mb"] <= 0.028
    assert details["achieved"]["size"] < 0.7


def test_batches_of_one_image_do_not_take_the_statistics_away(fits: Any) -> None:
    sizes: list[int] = []

    class Recording(FakeContext):
        class data(FakeData):
            def sample(self, batch_size: int, batches: int) -> Any:
                sizes.append(batch_size)
                return self.batches()

        data = data()  # type: ignore[assignment]

    apply(network(), Config(macs=0.9, round_to=1, epochs=1, batch_size=1), Recording())  # type: ignore[arg-type]
    assert sizes == [16]


def test_running_the_same_steps_again_gives_the_same_weights(fits: Any) -> None:
    results = [
        apply(network(), Config(macs=0.5, steps=2), FakeContext()).model.state_dict()  # type: ignore[arg-type]
        for _ in range(2)
    ]
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of macs, params, channels, latency, latency_ms and budget; got none"),
        ({"macs": 0.5, "channels": 0.5}, "got macs, channels"),
        ({"macs": 1.0}, "macs = 1.0: expected the share that remains"),
        ({"params": -0.5}, "params = -0.5: expected the share that remains"),
        ({"drop_blocks": -1}, "drop_blocks = -1"),
        ({"latency": 1.2}, "latency = 1.2: expected the share"),
        ({"latency_ms": -1.0}, "latency_ms = -1.0"),
        ({"latency": 0.5, "steps": 2}, "latency takes one step"),
        ({"macs": 0.5, "steps": 0}, "steps = 0: it must be 1 or more"),
        ({"macs": 0.5, "alpha": 2.0}, "alpha = 2.0: it must be from 0 to 1"),
        ({"macs": 0.5, "temperature": 0.0}, "temperature = 0.0"),
        (
            {"macs": 0.5, "max_channel_ratio": 1.0},
            "max_channel_ratio = 1.0: it must be between 0 and 1",
        ),
        ({"macs": 0.5, "round_to": 0}, "round_to = 0"),
        ({"macs": 0.5, "lr": -1.0}, "lr = -1.0"),
        ({"macs": 0.5, "budget": "params<=0.5"}, "got macs, budget"),
        ({"budget": "top1>=0.97"}, r"top1 is a result .* vbench --require 'top1>=0.97'"),
        ({"budget": "memory_mb<=9"}, "memory_mb is a result"),
        ({"budget": "latency_ms<=0"}, "nothing would remain"),
        ({"budget": "latency_ms<=4", "steps": 2}, "latency takes one step"),
    ],
)
def test_bad_options_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config(**options)


def test_a_quantised_network_is_sent_back() -> None:
    class Quantiser(nn.Identity):
        __module__ = "vcompress.compress.quantization.quantizers"

    with pytest.raises(UserError, match="prune first, then quantise"):
        refuse_quantised(nn.Sequential(nn.Conv2d(3, 4, 1), Quantiser()))
    refuse_quantised(copy.deepcopy(network()))


def test_the_stage_file_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, vcompress.compress.stages.prune; "
        "print([m for m in ('torch', 'numpy', 'torch_pruning') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "[]"
