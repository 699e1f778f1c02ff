"""Losses as users write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.training.config import Context, TrainConfig
from vcompress.compress.training.loop import fit
from vcompress.compress.training.loss import as_loss

OUTPUTS, IMAGES, TARGETS = torch.randn(4, 3), torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])


class Weighted(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor, scale: float = 2.0) -> Tensor:
        return scale * F.cross_entropy(outputs, targets)


@pytest.mark.parametrize(
    ("loss", "factor"),
    [
        (nn.CrossEntropyLoss(), 1), (F.cross_entropy, 1), (Weighted(), 2),
        (lambda outputs, targets: 3 * F.cross_entropy(outputs, targets), 3),
        (lambda outputs, images, targets: F.cross_entropy(outputs, targets) + images.sum(), 1),
        (lambda *given: F.cross_entropy(given[0], given[2]), 1),
    ],
)  # fmt: skip
def test_two_or_three_arguments_are_both_taken(loss: Any, factor: int) -> None:
    found = as_loss(loss)(OUTPUTS, IMAGES, TARGETS)
    torch.testing.assert_close(found, factor * F.cross_entropy(OUTPUTS, TARGETS))


def test_of_several_outputs_one_is_taken() -> None:
    given = {"aux": OUTPUTS + 1, "logits": OUTPUTS}
    found = as_loss(nn.CrossEntropyLoss(), "logits")(given, IMAGES, TARGETS)
    torch.testing.assert_close(found, F.cross_entropy(OUTPUTS, TARGETS))


def test_what_is_no_loss_is_one_message() -> None:
    with pytest.raises(UserError, match="got a float; expected a function"):
        as_loss(1.0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Bilinear has weights of its own"):
        as_loss(nn.Bilinear(2, 2, 2))
    with pytest.raises(UserError, match=r"The loss is \[4\]; expected a scalar"):
        as_loss(nn.CrossEntropyLoss(reduction="none"))(OUTPUTS, IMAGES, TARGETS)
    with pytest.raises(UserError, match="The loss is float"):
        as_loss(lambda outputs, targets: 1.0)(OUTPUTS, IMAGES, TARGETS)


def test_the_training_loop_takes_a_plain_loss(
    tiny_nets: Any, tiny_data: Callable[..., Any], tmp_path: Path
) -> None:
    config = TrainConfig(epochs=1, batch_size=16, lr=1e-2)
    found = []
    for loss in (None, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(torch.tensor([1.0, 1.0, 9.0]))):
        torch.manual_seed(0)
        context = Context(tiny_data(), tmp_path / str(len(found)))
        found.append(fit(tiny_nets.group(), config, context, loss, name="net")["loss"])
    assert found[0] == found[1] != found[2]
    with pytest.raises(UserError, match="expected a scalar"):
        context = Context(tiny_data(), tmp_path / "last")
        loss = nn.CrossEntropyLoss(reduction="none")
        fit(tiny_nets.group(), config, context, loss, name="net")
