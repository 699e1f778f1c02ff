"""`compress.distiller`: the losses of a student under a teacher, for a user's own loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from vcompress.bench.bundle import IMAGENET
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION
from vcompress.export.library import answer
from vcompress.export.modes import evaluating
from vcompress.export.onnx_export import logits_of

from ..data.loader import Samples
from ..distillation.features import Pair, captured
from ..distillation.teaching import Answer, Lesson, LossOptions, TaughtLoss, Teacher
from ..distillation.terms import WEIGHTS, check_task, needs_teacher, on_features, pairs_for
from ..tasks import task_half
from ..tasks.task import TrainingTask
from ..training.loss import Loss, as_loss

_NONE = Samples(torch.zeros(0, dtype=torch.int64), 0, ())


class Distiller(nn.Module):
    """`alpha * loss under the teacher + (1 - alpha) * loss against the targets`.

    Called with the student's outputs, its inputs and the targets. `parameters()` are those of the
    projections that losses on features train beside the student: give them to the optimiser. Losses
    on features listen to the student until `close()`; it is a context manager too.
    """

    def __init__(
        self, loss: TaughtLoss, output: str | None, listening: ExitStack, needs_targets: bool
    ) -> None:
        super().__init__()
        self.taught, self._output = loss, output
        self._listening, self._needs_targets = listening, needs_targets

    def forward(self, outputs: Any, inputs: Any, targets: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar: a mean over the batch.

        Args:
            outputs: what the student gave: `[B, K]`, or a dictionary or tuple that holds it.
            inputs: what the student was called with, which the teachers are called with: a tensor,
                a tuple of arguments, or a dictionary of named ones.
            targets: `[B, ...]`; None trains on the teacher alone.
        """
        logits = logits_of(outputs, self._output)
        if targets is None and self._needs_targets:
            raise UserError(
                "targets: got none, and the loss that was given needs them. Leave loss= out, or "
                "give targets."
            )
        if targets is None:
            targets = self.taught.task.no_targets(logits)
        if len(targets) != len(logits):
            raise UserError(
                f"targets: got {len(targets)} for {len(logits)} outputs of the student. Give the "
                "targets of the batch that it saw."
            )
        try:
            found: Tensor = self.taught(logits, inputs, targets, _NONE)
        except IndexError as error:
            raise UserError(
                f"The targets go from {targets.min()} to {targets.max()}, and the student has "
                f"{logits.shape[1]} outputs: {error}"
            ) from error
        except RuntimeError as error:
            if "target" not in str(error):
                raise
            raise UserError(
                f"targets: got {list(targets.shape)} {str(targets.dtype).removeprefix('torch.')} "
                f"for outputs {list(logits.shape)}: {error}"
            ) from error
        return found

    def close(self) -> None:
        """Stop listening to the networks."""
        self._listening.close()

    def __enter__(self) -> Distiller:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def distiller(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
    *,
    method: str | Mapping[str, float] = "kd",
    task: str = CLASSIFICATION,
    alpha: float = 0.7,
    temperature: float = 4.0,
    label_smoothing: float = 0.0,
    loss: Callable[..., Any] | None = None,
    example: Tensor | None = None,
    features: Sequence[str] = ("auto",),
    output: str | None = None,
    targets: Any = None,
    seed: int = 0,
) -> Distiller:
    """The losses of `student` under `teacher`: `distil(outputs, inputs, targets)` in your loop.

    The teacher is asked without gradients, in evaluation; neither network is changed. Move both to
    their device, and the distiller too.

    Args:
        teacher: one network, several, whose answers are averaged, or None for method `self`. It may
            take several inputs.
        method: a loss, or several with weights, such as `{"kd": 1, "at": 50}`. On outputs: `kd`,
            `dkd`, `dist`, `lskd`; on features: `fitnet`, `at`, `infonce`, `srd`; `self` learns from
            the average of the student's own weights. The papers stand in
            `vcompress.compress.distillation`.
        task: what the outputs mean: `classification`, `multilabel`, `regression`.
        alpha: weight of the teacher against the targets, 0 to 1.
        temperature: of both softmaxes, above 0; 2 to 4 is usual.
        label_smoothing: share of each label that is spread over all classes.
        loss: of outputs and targets, in place of the task's, such as `nn.CrossEntropyLoss()`.
        example: one input `[1, C, H, W]`, for losses on features.
        features: modules that are compared, "STUDENT=TEACHER"; `auto` finds where the size changes.
        output: of networks that return a dictionary, the name of the output that is compared;
            default: `out`, else the first tensor.
        targets: the training targets `[N, K]`, whose spread is the unit of a regression's losses.
        seed: of the projections.

    Raises:
        UserError: an unknown method, one that the task does not have, a missing teacher or example,
            networks whose outputs differ in shape.
    """
    half = task_half(task, None if targets is None else np.asarray(targets))
    terms = _terms(method, half)
    teachers = _teachers(teacher, terms)
    if (compared := on_features(terms)) and example is None:
        raise UserError(f"method {', '.join(sorted(compared))}: give example=, one input.")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha = {alpha}: the weight of the teacher, expected 0 to 1.")
    if not temperature > 0:
        raise UserError(f"temperature = {temperature}: it must be above 0 (4 is usual).")
    pairs: list[list[Pair]] = [[] for _ in teachers]
    if example is not None:
        _check_same(student, teachers, example, output)
        pairs = [pairs_for(terms, student, example, t, example, features) for t in teachers]
    listening = ExitStack()
    seen = [
        listening.enter_context(captured(t, [pair.teacher.name for pair in found]))
        for t, found in zip(teachers, pairs, strict=True)
    ]
    names = sorted({pair.student.name for found in pairs for pair in found})
    own = listening.enter_context(captured(student, names))
    options = LossOptions(
        terms=terms, alpha=alpha, temperature=temperature, label_smoothing=label_smoothing
    )
    lesson = Lesson(
        student=_One(student, output), teachers=[Teacher(t, IMAGENET) for t in teachers],
        ask=_ask(teachers, pairs, seen, output) if teachers else None, pairs=pairs, seen=own,
    )  # fmt: skip
    if loss is not None:
        half = cast(TrainingTask, _OwnLoss(half, as_loss(loss, output)))
    taught = TaughtLoss(half, options, lesson, seed=seed)
    return Distiller(taught, output, listening, loss is not None)


@dataclass(frozen=True)
class _OwnLoss:
    """A task whose loss against the targets is the user's."""

    task: TrainingTask
    own: Loss

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "task":  # while it is copied there is none yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def loss(
        self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0,
        labelled: float | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        return {"own": self.own(outputs, None, targets)}


def _terms(method: str | Mapping[str, float], task: TrainingTask) -> dict[str, float]:
    found = {method: WEIGHTS.get(method, 1.0)} if isinstance(method, str) else dict(method)
    check_task(found, task)
    for name, weight in found.items():
        if not 0 < weight < math.inf:
            raise UserError(f"method: {name!r} has weight {weight!r}; expected a number above 0.")
    if not found:
        raise UserError("method: no loss was given; expected one such as kd, or {'kd': 1}.")
    return found


def _teachers(
    teacher: nn.Module | Sequence[nn.Module] | None, terms: Mapping[str, float]
) -> list[nn.Module]:
    found = [teacher] if isinstance(teacher, nn.Module) else list(teacher or ())
    if needs_teacher(terms) and not found:
        raise UserError(f"method {', '.join(terms)} needs a teacher; only self goes without one.")
    if found and not needs_teacher(terms):
        raise UserError("method self has no teacher: give None, or add a loss such as kd.")
    for one in found:
        if not isinstance(one, nn.Module):
            raise UserError(f"teacher: got a {type(one).__name__}; expected an nn.Module.")
    return found


def _check_same(
    student: nn.Module, teachers: Sequence[nn.Module], example: Tensor, output: str | None
) -> None:
    ours = answer(student, example, output)
    for teacher in teachers:
        theirs = answer(teacher, example, output)
        if ours.shape != theirs.shape:
            raise UserError(
                f"The student gives {list(ours.shape)} and the teacher {list(theirs.shape)} for "
                "one example; both must know the same classes."
            )


def _ask(
    teachers: Sequence[nn.Module], pairs: Sequence[Sequence[Pair]],
    seen: Sequence[Mapping[str, Tensor]], output: str | None,
) -> Callable[[Any, Samples], Answer]:  # fmt: skip
    asked = [_One(teacher, output) for teacher in teachers]

    def ask(inputs: Any, _: Samples) -> Answer:
        logits = []
        for teacher in asked:
            with evaluating(teacher):
                logits.append(teacher(inputs).float())
        features = [
            tuple(seen[t][pair.teacher.name] for pair in found) for t, found in enumerate(pairs)
        ]
        return Answer(torch.stack(logits), tuple(features))

    return ask


class _One(nn.Module):
    """A network that takes what a loop has and gives the one output that counts."""

    def __init__(self, model: nn.Module, output: str | None) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, inputs: Any) -> Tensor:
        if isinstance(inputs, Mapping):
            return logits_of(self.model(**inputs), self.output)
        several = isinstance(inputs, (tuple, list))
        return logits_of(self.model(*inputs) if several else self.model(inputs), self.output)
