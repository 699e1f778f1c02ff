"""What the trial before the training says of networks that cannot be trained."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.training.trial import try_out


class Overwritten(nn.Module):
    """Changes what the gradient of its leaky ReLU needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = F.leaky_relu_(self.conv(images), 0.1)
        maps[:, :4].mul_(1.5)
        return maps.mean((2, 3))


class Images:
    def loader(self, split: str, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch_size, 3, 8, 8, generator=generator)
        return [(images, torch.zeros(batch_size, dtype=torch.int64))]


def test_what_autograd_needs_may_not_be_changed_in_place() -> None:
    with pytest.raises(UserError, match=r"cannot be trained: its forward pass changes a tensor"):
        try_out(Overwritten(), Images(), "finetune")  # type: ignore[arg-type]
