"""Distillation on features: which are compared, and what is trained beside the student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from vcompress.bench.errors import UserError
from vcompress.compress.stages import distill
from vcompress.compress.tasks.classification import Classification
from vcompress.compress.training.config import Context
from vcompress.compress.training.state import load_state


def test_the_stage_finds_the_features_and_leaves_the_student_as_it_was_built(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    names = list(tiny_nets.batch().state_dict())
    for method in ("fitnet", "at", "infonce", "srd"):
        student, details = run(taught, tiny_nets.batch, method=method)
        assert details["features"][-1] == ["5", "5"]  # the last of 16 px, which nearly all have
        assert list(student.state_dict()) == names
        assert not any(m._forward_hooks for m in student.modules())
        assert taught.teacher is not None
        assert not any(m._forward_hooks for m in taught.teacher.modules())
        assert details["losses"] == {method: distill.WEIGHTS[method]}


def test_the_projections_are_trained_and_kept_for_a_resume(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    run(taught, tiny_nets.batch, losses=("fitnet=1", "kd=0.5"), features=("0=3",))
    state = load_state(taught.workdir / "distill" / "state.safetensors")
    assert list(state.loss) == ["projections.fitnet-0-0.weight"]
    torch.manual_seed(taught.seed)
    start = nn.Conv2d(8, 8, 1, bias=False).weight
    assert state.loss["projections.fitnet-0-0.weight"].shape == (8, 8, 1, 1)
    moved = state.loss["projections.fitnet-0-0.weight"] - start.detach()
    assert 1e-3 < float(moved.abs().max()) < 0.5
    parameters = len(list(tiny_nets.batch().parameters()))
    assert len({key.split(".")[0] for key in state.moments}) == parameters + 1


def test_mixed_precision_gives_nearly_the_same_losses(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    losses = Classification().distils
    _, whole = run(taught, tiny_nets.batch, losses=losses, epochs=1)
    student, half = run(taught, tiny_nets.batch, losses=losses, epochs=1, precision="bf16")
    assert half["loss"] != whole["loss"]
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.05)
    assert all(p.dtype == torch.float32 for p in student.parameters())


def test_features_that_do_not_match_are_refused_with_both_shapes(
    taught: Context, run: Any, tiny_nets: Any
) -> None:
    with pytest.raises(UserError) as caught:
        run(taught, tiny_nets.batch, method="at", features=("9=2",))
    assert "the student's 9 gives [1, 3] and the teacher's 2 gives [1, 8, 16, 16]" in str(
        caught.value
    )
