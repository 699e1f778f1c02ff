"""The distillation loss: teachers, weighted terms, projections trained beside the student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError

from ..data.loader import Samples
from ..models.layout import beside
from . import feature_losses, map_losses
from .features import Pair, align
from .losses import Parts
from .terms import ON_FEATURES, ON_MAPS

if TYPE_CHECKING:
    from ..tasks.task import TrainingTask

EMBEDDING = 128
"""Width in which infonce compares embeddings, as in CRD."""


@dataclass(frozen=True)
class Teacher:
    """A network to learn from."""

    model: nn.Module
    preprocess: Preprocess
    """What it takes; the student may take another."""
    order: tuple[int, ...] | None = None
    """Where in its logits each class of the data stands; None where they are in its order."""
    weight: float = 1.0
    """Its held-out accuracy, where teachers are weighted by it."""

    def in_order(self, logits: Tensor) -> Tensor:
        """Its logits `[B, K]` with the classes as the data have them."""
        return logits if self.order is None else logits[:, list(self.order)]


@dataclass(frozen=True)
class Answer:
    """What the teachers say about a batch."""

    logits: Tensor
    """`[T, B, K] float32`, or maps `[T, B, K, h, w]`."""
    features: tuple[tuple[Tensor, ...], ...]
    """For each teacher the outputs of its feature points, as the modules give them."""


Ask = Callable[[Tensor, Samples], Answer]


def ensemble(
    task: TrainingTask, outputs: Tensor, how: str, weights: Sequence[float], temperature: float
) -> Tensor:
    """One teacher of several, `[B, K]`: their mixture as the task makes it.

    Args:
        outputs: `[T, B, K]`.
        how: `mean`; `accuracy`, by `weights`; or `confidence`, by how sure each teacher is of each
            sample at temperature 1.
        weights: one for each teacher.
    """
    if len(outputs) == 1:
        return outputs[0]
    if how == "confidence":
        share = task.sureness(outputs).clamp_min(1e-6)  # all unsure: the mean
    else:
        numbers = [1.0] * len(outputs) if how == "mean" else list(weights)
        share = torch.tensor(numbers, device=outputs.device)[:, None].expand(outputs.shape[:2])
    return task.mixture(outputs, share / share.sum(0), temperature)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """The terms of a distillation loss and their weights."""

    terms: Mapping[str, float]
    """Loss to its weight: names of the task's `distils`."""
    alpha: float
    """Weight of the distillation loss against the label loss, from 0 to 1."""
    temperature: float
    """Temperature of the softmax of student and teacher, above 0."""
    label_smoothing: float = 0.0
    ensemble: str = "mean"
    """Weights of several teachers: `mean`, `accuracy` or `confidence`."""
    self_decay: float = 0.99
    """EMA decay of the student's average in the loss `self`."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A student, its teachers, and the features of both."""

    student: nn.Module
    teachers: Sequence[Teacher] = ()
    ask: Ask | None = None
    """Asks the teachers about a batch; None where there is none."""
    pairs: Sequence[Sequence[Pair]] = ()
    """Feature points of student and teacher, for each teacher."""
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    """The student's features: `features.captured` fills it on every run of `student`."""


class TaughtLoss(nn.Module):
    """`alpha * sum of weight * loss + (1 - alpha) * loss against the labels`, for `fit`.

    Its parameters are the projections of features, its buffers the student's average that teaches
    in `self`. Teachers are not part of its state. Images without a label count in every loss but
    that against the labels, which is divided by the share of labelled images.
    """

    def __init__(
        self, task: TrainingTask, options: LossOptions, lesson: Lesson, *, labelled: float = 1.0,
        seed: int = 0, view: Callable[[int], int] = int, identity: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            task: gives the loss against the labels and those on outputs.
            labelled: share of the training images that have a label.
            seed: of the projections' initial weights.
            view: from the epoch to the epoch whose augmentation is used.
            identity: what must be unchanged for a resumed run.
        """
        super().__init__()
        self.task, self.options, self.labelled = task, options, labelled
        self.parts = Parts()
        self.view, self.identity = view, dict(identity or {})
        student = lesson.student
        # A lesson is no module, so the networks in it are in no state_dict.
        self._lesson = lesson
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict(self._projections())
        if "self" in options.terms:
            self.average = copy.deepcopy(student).requires_grad_(False).eval()
            _forget_hooks(self.average)
            self.updates: Tensor
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, images: Tensor, labels: Tensor, samples: Samples) -> Tensor:
        """The loss of a batch `[B, K]`, `[B, C, H, W]`, `[B]`."""
        options, ask, logits = self.options, self._lesson.ask, logits.float()
        parts = self.task.loss(logits, labels, options.label_smoothing, self.labelled)
        soft = torch.zeros((), device=logits.device)
        if "self" in options.terms:
            target = self._average_logits(images)
            found = self.task.soft(logits, target, options.temperature)
            soft = soft + options.terms["self"] * found
        if ask is not None:
            with torch.no_grad():
                answer = ask(images, samples)
            soft = soft + self._taught(logits, labels, answer)
        alpha = options.alpha
        shares = {name: (1 - alpha) * part for name, part in parts.items()}
        return self.parts.add({"teacher": alpha * soft, **shares})

    def _taught(self, logits: Tensor, labels: Tensor, answer: Answer) -> Tensor:
        options = self.options
        weights = [teacher.weight for teacher in self._lesson.teachers]
        target = ensemble(self.task, answer.logits, options.ensemble, weights, options.temperature)
        soft = torch.zeros((), device=logits.device)
        for name, weight in options.terms.items():
            if name in ON_FEATURES:
                soft = soft + weight * self._on_features(name, labels, answer)
            elif name != "self":
                found = self.task.distil(name, logits, target, labels, options.temperature)
                soft = soft + weight * found
        return soft

    def _on_features(self, name: str, labels: Tensor, answer: Answer) -> Tensor:
        """The mean over the teachers, and over their pairs where a loss compares maps."""
        found: list[Tensor] = []
        for t, pairs in enumerate(self._lesson.pairs):
            chosen = range(len(pairs)) if name in ON_MAPS else [len(pairs) - 1]
            for n in chosen:
                pair = pairs[n]
                ours = pair.student.as_map(self._lesson.seen[pair.student.name].float())
                theirs = pair.teacher.as_map(answer.features[t][n].float())
                key = f"{name}-{t}-{n}"
                if name == "at":
                    found.append(feature_losses.attention(align(ours, _size(theirs)), theirs))
                elif name == "fitnet":
                    ours = align(self.projections[key](ours), _size(theirs))
                    found.append(feature_losses.fitnet(ours, theirs))
                elif name == "skd":
                    found.append(feature_losses.structure(ours, theirs))
                elif name == "srd":
                    ours = self.projections[key](feature_losses.embedding(ours))
                    found.append(feature_losses.srd(ours, feature_losses.embedding(theirs)))
                else:
                    ours = self.projections[key](feature_losses.embedding(ours))
                    theirs = self.projections[f"{key}-teacher"](feature_losses.embedding(theirs))
                    found.append(feature_losses.infonce(ours, theirs, labels))
        return torch.stack(found).mean()

    def _projections(self) -> dict[str, nn.Module]:
        """From the student's channels to the teacher's, by loss, teacher and pair."""
        made: dict[str, nn.Module] = {}
        for t, pairs in enumerate(self._lesson.pairs):
            for n, pair in enumerate(pairs):
                ours, theirs = pair.student.shape[0], pair.teacher.shape[0]
                if "fitnet" in self.options.terms:
                    made[f"fitnet-{t}-{n}"] = nn.Conv2d(ours, theirs, 1, bias=False)
                if n != len(pairs) - 1:
                    continue
                if "srd" in self.options.terms:
                    made[f"srd-{t}-{n}"] = nn.Linear(ours, theirs)
                if "infonce" in self.options.terms:
                    made[f"infonce-{t}-{n}"] = nn.Linear(ours, EMBEDDING)
                    made[f"infonce-{t}-{n}-teacher"] = nn.Linear(theirs, EMBEDDING)
        return made

    @torch.no_grad()
    def _average_logits(self, images: Tensor) -> Tensor:
        """Outputs of the averaged student, updated first; a young average forgets faster."""
        self.updates += 1
        count = float(self.updates)
        share = 1 - min(self.options.self_decay, (1 + count) / (10 + count))
        ours = self._lesson.student.state_dict()
        for name, mean in self.average.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(ours[name].detach().to(mean), share)
            else:
                mean.copy_(ours[name])
        self.average.eval()  # `train()` of the loss reached it
        logits: Tensor = self.average(images)
        return logits.float()


def live(
    teachers: Sequence[Teacher], seen: Sequence[Mapping[str, Tensor]],
    pairs: Sequence[Sequence[Pair]], views: Sequence[Preprocess],
) -> Ask:  # fmt: skip
    """Ask the teachers themselves, each with the inputs that it takes.

    Args:
        seen: for each teacher what `features.captured` fills.
        views: the preprocessings of `Samples.others`; a teacher whose own is not among them takes
            the student's images.
    """
    run = [beside(teacher.model) for teacher in teachers]

    def ask(images: Tensor, samples: Samples) -> Answer:
        logits, features = [], []
        for t, teacher in enumerate(teachers):
            own = images
            if teacher.preprocess in views:
                own = samples.others[views.index(teacher.preprocess)].to(images.device)
                if not images.is_contiguous():
                    own = own.contiguous(memory_format=torch.channels_last)
            logits.append(teacher.in_order(run[t](own).float()))
            features.append(tuple(seen[t][pair.teacher.name] for pair in pairs[t]))
        alike = [map_losses.resized(x, logits[0].shape[2:]) if x.ndim == 4 else x for x in logits]
        return Answer(torch.stack(alike), tuple(features))

    return ask


def order_of(labels: Sequence[str], classes: Sequence[str], name: str) -> tuple[int, ...] | None:
    """Where in a teacher's logits each class of the data stands, by its name; None if in place.

    Raises:
        UserError: the teacher knows other classes.
    """
    if set(labels) != set(classes) or len(labels) != len(classes):
        lacks = sorted(set(classes) - set(labels))
        odd = sorted(set(labels) - set(classes))
        what = [f"it lacks {', '.join(lacks[:3])}"] if lacks else []
        what += [f"the data have no {', '.join(odd[:3])}"] if odd else []
        raise UserError(
            f"the teacher {name} knows {len(labels)} classes, the data {len(classes)}: "
            f"{' and '.join(what)}. Fine-tune it on these data first, or give another one."
        )
    if tuple(labels) == tuple(classes):
        return None
    return tuple(list(labels).index(c) for c in classes)


def _size(maps: Tensor) -> tuple[int, int]:
    return int(maps.shape[2]), int(maps.shape[3])


def _forget_hooks(model: nn.Module) -> None:
    for module in model.modules():
        module._forward_hooks.clear()
