import time

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError
from vcompress.compress.pruning.isolated import trace_within
from vcompress.compress.pruning.structure import Structure
from vcompress.compress.pruning.trace import trace


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1))


def test_the_structure_from_the_other_process_is_the_same() -> None:
    model, image = network(), torch.randn(1, 3, 4, 4)
    assert trace_within(model, image, (), 60.0) == trace(model, image, ())


def test_a_trace_that_hangs_is_stopped() -> None:
    def hangs(model: nn.Module, example: Tensor, protect: tuple[str, ...]) -> Structure:
        while True:
            time.sleep(0.01)

    started = time.perf_counter()
    with pytest.raises(UserError, match="longer than 0 s and was stopped"):
        trace_within(network(), torch.randn(1, 3, 4, 4), (), 0.3, hangs)
    assert time.perf_counter() - started < 10.0


def test_a_refusal_comes_through_as_one() -> None:
    def refuses(model: nn.Module, example: Tensor, protect: tuple[str, ...]) -> Structure:
        raise UserError("not this one")

    with pytest.raises(UserError, match="not this one"):
        trace_within(network(), torch.randn(1, 3, 4, 4), (), 60.0, refuses)


def test_a_bug_in_the_trace_is_no_users_mistake() -> None:
    def breaks(model: nn.Module, example: Tensor, protect: tuple[str, ...]) -> Structure:
        raise KeyError("bug")

    with pytest.raises(RuntimeError, match="KeyError"):
        trace_within(network(), torch.randn(1, 3, 4, 4), (), 60.0, breaks)
