"""A trace that knows the sizes of the input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.quantization.trace import trace


class Asking(nn.Module):
    """Branches on the sizes and the type of its input, as the networks of transformers do."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        super().__init__()
        if shape is not None:
            self.input_shape = shape
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, _ = images.shape
        if channels != 3 or images.dtype != torch.float32 or images.ndim != 4:
            raise ValueError("not an image")
        x = self.conv(images)
        if height % 2 == 1:
            x = nn.functional.pad(x, (0, 0, 0, 1))
        tokens = x.view(batch, 4, -1).transpose(1, 2)
        windows = tokens.reshape(batch * 2, -1, 4)
        assert windows.size(-1) == 4 and windows.dim() == 3
        windows = windows.softmax(-1, dtype=torch.float32).to(images.dtype)
        return self.head((windows * self.scale).view(batch, -1, 4).mean(1))


@pytest.mark.parametrize("height", [6, 7])
def test_a_forward_pass_that_asks_for_sizes_is_traced_for_any_batch(height: int) -> None:
    model = Asking((3, height, 4)).eval()
    graph = trace(model)
    for batch in (1, 2, 3, 7):
        images = torch.randn(batch, 3, height, 4)
        assert torch.equal(graph(images), model(images))
    pads = [n for n in graph.graph.nodes if n.target is nn.functional.pad]
    assert len(pads) == height % 2
    assert not any(n.target == "to" for n in graph.graph.nodes)
    assert "scale" in dict(graph.named_buffers())


def test_without_the_sizes_it_says_where_the_tracer_stopped() -> None:
    with pytest.raises(UserError, match=r"cannot be traced: at .*test_shaped.py:\d+ in forward"):
        trace(Asking(None))


def test_the_names_of_the_nodes_are_the_same_each_time() -> None:
    one, other = (trace(Asking((3, 6, 4))) for _ in range(2))
    assert [n.name for n in one.graph.nodes] == [n.name for n in other.graph.nodes]
    assert list(one.state_dict()) == list(other.state_dict())
