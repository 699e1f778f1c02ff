"""2:4 sparsity as a stage: its zeros outlive its own training, a later one, QAT and the export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q
from vcompress.compress.data.loader import Data
from vcompress.compress.pruning.sparsity import sparse_in_file, sparse_layers
from vcompress.compress.stages import finetune, prune, quantize
from vcompress.compress.stages.sparsify import STAGE, Config, apply
from vcompress.compress.training.config import Context
from vcompress.export.onnx_export import export

CONFIG = Config(epochs=2, batch_size=6, lr=1e-2)


@pytest.fixture
def sparse(tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path) -> Any:
    torch.manual_seed(0)
    context = Context(tiny_data(), tmp_path)
    model: nn.Module = tiny_nets.batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outcome = apply(model, CONFIG, context)
    return outcome, context, before


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: model.get_submodule(n).weight.detach() == 0 for n in sparse_layers(model)}


def test_the_zeros_outlive_the_training_of_the_stage(sparse: Any) -> None:
    outcome, _, before = sparse
    assert outcome.details["layers"] == ["3", "9"] == sparse_layers(outcome.model)
    assert outcome.details["left_alone"] == {"0": "3 input channels are not in fours"}
    assert outcome.details["training"]["epochs"] == 2
    weight, mask = outcome.model[3].weight, zeros(outcome.model)["3"]
    assert mask.float().mean() == 0.5
    assert not torch.allclose(weight[~mask], before["3.weight"][~mask], atol=1e-4)


def test_the_zeros_outlive_a_later_fine_tuning(sparse: Any) -> None:
    outcome, context, _ = sparse
    mask = zeros(outcome.model)
    frozen = {n: outcome.model.get_submodule(n).weight.clone() for n in mask}
    finetune.apply(
        outcome.model, finetune.Config(epochs=2, batch_size=6, lr=1e-2, ema_decay=0.5), context
    )
    for name, dead in mask.items():
        weight = outcome.model.get_submodule(name).weight
        assert torch.equal(weight == 0, dead), name
        assert not torch.equal(weight, frozen[name])


def test_the_zeros_outlive_quantisation_aware_training_and_are_in_the_file(
    sparse: Any, tmp_path: Path
) -> None:
    outcome, context, _ = sparse
    config = quantize.Config(
        epochs=2, batch_size=6, lr=1e-3, calibration_images=24, target="tensorrt", alpha=0.0
    )
    quantised = quantize.apply(outcome.model.eval(), config, context).model
    assert sparse_layers(quantised) == ["3", "9"]
    file = tmp_path / "sparse.onnx"
    export(q.to_export(quantised.eval()), file, ("input", (3, 16, 16)))
    assert sorted(sparse_in_file(file).values()) == [False, True, True]


def test_channels_of_a_sparse_network_are_not_cut(sparse: Any) -> None:
    outcome, context, _ = sparse
    with pytest.raises(UserError, match=r"2:4 sparse \(3 and 1 more\): prune channels first"):
        prune.apply(outcome.model, prune.Config(macs=0.5), context)


def test_training_that_fills_the_zeros_is_a_fault(
    tiny_data: Callable[..., Data], tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(model: Any, config: Any, context: Any, loss: Any, *, name: str) -> Any:
        with torch.no_grad():
            model[3].weight.add_(1.0)

    monkeypatch.setattr("vcompress.compress.training.loop.fit", fit)
    with pytest.raises(RuntimeError, match="filled the zeros of 3"):
        apply(tiny_nets.batch(), Config(), Context(tiny_data(), Path()))


def test_bad_options_are_refused() -> None:
    with pytest.raises(UserError, match="alpha = 2"):
        Config(alpha=2.0)
    with pytest.raises(UserError, match="temperature = 0"):
        Config(temperature=0.0)


def test_a_teacher_that_is_named_teaches(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    given = {"model": "runs/net", "teacher": "runs/large"}
    assert list(STAGE.assigned(CONFIG, given)) == ["teacher", "model"]
    taught = []
    for name in (None, "runs/large"):
        torch.manual_seed(0)
        model, teacher = tiny_nets.batch(), tiny_nets.batch() if name else None
        context = Context(tiny_data(), tmp_path, teacher=teacher, teacher_name=name)
        outcome = apply(model, CONFIG, context)
        assert outcome.details["teacher"] == (name or "the dense network")
        taught.append(outcome.model[3].weight)
    assert not torch.allclose(*taught, atol=1e-4)
