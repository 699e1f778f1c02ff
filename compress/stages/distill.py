"""Distil a teacher into a student: the student learns the teacher's softened outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vcompress.bench.errors import UserError

from ..stage import Context, Outcome, TaughtConfig

if TYPE_CHECKING:
    from torch import nn

INPUTS = {"teacher": "trained", "student": "fresh"}


@dataclass(frozen=True, kw_only=True)
class Config(TaughtConfig):
    """Options of `vcompress distill`."""

    method: Literal["kd", "dkd", "dist", "lskd"] = "kd"
    """Loss on the teacher's logits: Hinton's, decoupled, by correlation, or standardised."""


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Train the student `model` under `context.teacher`, with the labels beside it."""
    from ..losses import from_teacher
    from ..train import fit

    teacher = context.teacher
    if teacher is None:
        raise UserError("distill needs a teacher: give --teacher NAME or a bundle.")
    loss = from_teacher(teacher, config, config.method)

    return Outcome(model, fit(model, config, context, loss, name="distill"))
