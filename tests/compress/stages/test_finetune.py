"""Fine-tuning as a stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vcompress.compress import stages
from vcompress.compress.data.loader import Data
from vcompress.compress.stages import finetune
from vcompress.compress.stages.contract import Kind, Role
from vcompress.compress.training.config import Context
from vcompress.compress.training.loop import evaluate


def test_it_trains_the_network_and_tells_what_it_reached(
    tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = tiny_nets.group()
    context = Context(tiny_data(), tmp_path)
    config = finetune.Config(epochs=5, batch_size=6, lr=0.03)
    outcome = finetune.apply(model, config, context)
    assert outcome.model is model
    assert outcome.details["epochs"] == 5
    assert evaluate(model, context, config, "val") == outcome.details["val_score"] > 0.8
    assert (tmp_path / "finetune" / "state.safetensors").is_file()


def test_it_takes_a_fresh_model() -> None:
    assert stages.load("finetune").roles == (Role("model", Kind.FRESH, changed=True),)
