"""Quantisation as a stage: trained on tiny data, the file computes what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vcompress.bench.errors import UserError
from vcompress.compress import quantization as q
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import finetune, quantize
from vcompress.compress.training.config import Context

CONFIG = quantize.Config(epochs=3, batch_size=6, lr=1e-3, calibration_images=24, freeze_bn_epochs=1)


@pytest.fixture
def trained(tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path) -> Any:
    torch.manual_seed(0)
    context = Context(tiny_data(), tmp_path)
    model = tiny_nets.batch()
    finetune.apply(model, finetune.Config(epochs=6, batch_size=6, lr=0.02), context)
    return model.eval(), context


def accuracy(model: torch.nn.Module, data: Data) -> float:
    model.eval()
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float() for x, y in data.loader("test", 12)]
    return float(torch.cat(right).mean())


@pytest.mark.parametrize("method", ["ptq", "qat"])
def test_int8_keeps_the_accuracy_and_says_what_it_did(trained: Any, method: Any) -> None:
    model, context = trained
    outcome = quantize.apply(model, replace(CONFIG, method=method), context)
    assert accuracy(outcome.model, context.data) >= accuracy(model, context.data) - 0.05
    assert accuracy(q.to_export(outcome.model), context.data) == accuracy(
        outcome.model, context.data
    )
    assert outcome.details["quantised_layers"] == 3
    assert outcome.details["calibration_images"] == 24
    assert ("epochs" in outcome.details) == (method == "qat")


def test_training_changes_steps_and_weights_and_leaves_the_float_model(trained: Any) -> None:
    model, context = trained
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ptq = quantize.apply(model, replace(CONFIG, method="ptq"), context).model.state_dict()
    qat = quantize.apply(model, CONFIG, context).model.state_dict()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert list(ptq) == list(qat)
    steps = [k for k in ptq if k.endswith("log_scale")]
    assert len(steps) == 7
    assert any(not torch.equal(ptq[k], qat[k]) for k in steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 9}, "2 to 8"),
        ({"alpha": 1.5}, "0 to 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"calibration_images": 0}, "calibration_images = 0: it must be 1 or more"),
        ({"freeze_bn_epochs": -1}, "0 or more"),
    ],
)
def test_options_out_of_range_are_refused_when_made(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        quantize.Config(**options)


def test_auto_keeps_layers_in_float_only_as_far_as_the_budget_asks(trained: Any) -> None:
    model, context = trained
    ptq = replace(CONFIG, method="ptq", keep_float=("auto",))
    free = quantize.apply(model, replace(ptq, max_drop=100.0), context).details
    assert free["keep_float_auto"]["layers"] == ()
    assert free["quantised_layers"] == 3
    tight = quantize.apply(model, replace(ptq, max_drop=0.0), context).details
    assert tight["quantised_layers"] == 3 - len(tight["keep_float_auto"]["layers"])
    assert tight["keep_float_auto"]["drop"] <= tight["keep_float_auto"]["drop_of_all"]


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_drop = -1.*0 or more"):
        quantize.Config(max_drop=-1.0)


def test_repairs_are_tried_where_they_are_asked_for_and_say_what_they_did(trained: Any) -> None:
    model, context = trained
    ptq = replace(CONFIG, method="ptq", weight_bits=4)
    off = {"equalize": "off", "correct_bias": "off", "adaround": "off"}
    plain = quantize.apply(model, replace(ptq, **off), context).details["calibration"]
    assert set(plain) == {"sqnr_db", "sqnr_db_before"}
    assert plain["sqnr_db"] == plain["sqnr_db_before"]
    every = {"equalize": "on", "correct_bias": "on", "adaround": "on"}
    full = quantize.apply(model, replace(ptq, **every), context).details["calibration"]
    assert full["sqnr_db_before"] == plain["sqnr_db"]
    assert full["sqnr_db"] > full["sqnr_db_before"] + 1
    assert (full["equalized_layers"], full["corrected_layers"]) == (1, 3)
    assert full["adaround"]["error_chosen"] < 0.9 * full["adaround"]["error_nearest"]
    chosen = quantize.apply(model, ptq, context).details["calibration"]
    assert chosen["sqnr_db"] >= plain["sqnr_db"]


def test_four_bit_weights_train_and_are_stored_as_small_integers(trained: Any) -> None:
    model, context = trained
    outcome = quantize.apply(model, replace(CONFIG, weight_bits=4, epochs=6), context)
    assert accuracy(outcome.model, context.data) >= accuracy(model, context.data) - 0.05
    deployed = q.to_export(outcome.model)
    integers = [b for n, b in deployed.named_buffers() if n.endswith("weight.integers")]
    assert len(integers) == 3
    assert all(i.dtype == torch.int8 and 1 <= int(i.abs().max()) <= 7 for i in integers)
    assert accuracy(deployed, context.data) == accuracy(outcome.model, context.data)
