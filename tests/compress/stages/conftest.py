"""What the tests of distillation share: an untrained teacher, and a run of two epochs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vcompress.compress.data.loader import Data
from vcompress.compress.stages import distill
from vcompress.compress.training.config import Context


@pytest.fixture
def taught(tiny_data: Callable[..., Data], tiny_nets: Any, tmp_path: Path) -> Context:
    torch.manual_seed(0)
    return Context(tiny_data(augment="affine"), tmp_path / "work", teacher=tiny_nets.batch())


@pytest.fixture
def run() -> Callable[..., tuple[Any, Any]]:
    """`run(context, net, **options)` gives the student, the same at the start, and the details."""

    def distilled(
        context: Context, net: Callable[[], nn.Module], **options: Any
    ) -> tuple[nn.Module, dict[str, Any]]:
        torch.manual_seed(1)
        student = net()
        config = distill.Config(**{"epochs": 2, "batch_size": 8, "lr": 0.02, **options})
        return student, distill.apply(student, config, context).details

    return distilled


@pytest.fixture
def same() -> Callable[[nn.Module, nn.Module], bool]:
    """Whether two networks have the same weights, bit for bit."""

    def equal(a: nn.Module, b: nn.Module) -> bool:
        return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())

    return equal
