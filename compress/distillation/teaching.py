"""The distillation loss: teachers, weighted terms, projections trained beside the student."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError

from ..data.loader import Samples
from . import feature_losses
from .features import Pair, align

if TYPE_CHECKING:
    from ..tasks.task import TrainingTask

EMBEDDING = 128
"""Width in which infonce compares embeddings, as in CRD."""

ON_FEATURES = ("fitnet", "at", "infonce", "srd")


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
    """`[T, B, K] float32`."""
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


class TaughtLoss(nn.Module):
    """`alpha * sum of weight * loss + (1 - alpha) * loss against the labels`, for `fit`.

    Its parameters are the projections of features, its buffers the student's average that teaches
    in `self`. Teachers are not part of its state. Images without a label count in every loss but
    that against the labels, which is divided by the share of labelled images.
    """

    def __init__(
        self, task: TrainingTask, terms: Mapping[str, float], ask: Ask | None,
        teachers: Sequence[Teacher], pairs: Sequence[Sequence[Pair]], student: nn.Module,
        seen: Mapping[str, Tensor], *,
        alpha: float, temperature: float, label_smoothing: float = 0.0, how: str = "mean",
        labelled: float = 1.0, self_decay: float = 0.99, seed: int = 0,
        view: Callable[[int], int] = int, identity: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            task: gives the loss against the labels and those on outputs.
            terms: loss to its weight: the task's `distils`.
            ask: what the teachers say; None where there is none.
            pairs: for each teacher.
            seen: what `features.captured` fills on every run of `student`.
            labelled: share of the training images that have a label.
            view: from the epoch to the epoch whose augmentation is used.
        """
        super().__init__()
        self.task, self.terms, self.how = task, dict(terms), how
        self.alpha, self.temperature, self.label_smoothing = alpha, temperature, label_smoothing
        self.labelled, self.self_decay = labelled, self_decay
        self.view, self.identity = view, dict(identity or {})
        # As functions and tuples they are not registered, so they are in no state_dict.
        self._ask, self._teachers = ask, tuple(teachers)
        self._pairs, self._seen = tuple(map(tuple, pairs)), seen
        self._student = (student,)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict(self._projections())
        if "self" in terms:
            self.average = copy.deepcopy(student).requires_grad_(False).eval()
            _forget_hooks(self.average)
            self.updates: Tensor
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, logits: Tensor, images: Tensor, labels: Tensor, samples: Samples) -> Tensor:
        """The loss of a batch `[B, K]`, `[B, C, H, W]`, `[B]`."""
        logits = logits.float()
        parts = self.task.loss(logits, labels, self.label_smoothing, self.labelled)
        hard = torch.stack(list(parts.values())).sum()
        soft = torch.zeros((), device=logits.device)
        if "self" in self.terms:
            target = self._average_logits(images)
            soft = soft + self.terms["self"] * self.task.soft(logits, target, self.temperature)
        if self._ask is not None:
            with torch.no_grad():
                answer = self._ask(images, samples)
            soft = soft + self._taught(logits, labels, answer)
        return self.alpha * soft + (1 - self.alpha) * hard

    def _taught(self, logits: Tensor, labels: Tensor, answer: Answer) -> Tensor:
        weights = [teacher.weight for teacher in self._teachers]
        target = ensemble(self.task, answer.logits, self.how, weights, self.temperature)
        total = torch.zeros((), device=logits.device)
        for name, weight in self.terms.items():
            if name in ON_FEATURES:
                total = total + weight * self._on_features(name, labels, answer)
            elif name != "self":
                found = self.task.distil(name, logits, target, labels, self.temperature)
                total = total + weight * found
        return total

    def _on_features(self, name: str, labels: Tensor, answer: Answer) -> Tensor:
        """The mean over the teachers, and over their pairs where a loss compares maps."""
        found: list[Tensor] = []
        for t, pairs in enumerate(self._pairs):
            chosen = range(len(pairs)) if name in ("fitnet", "at") else [len(pairs) - 1]
            for n in chosen:
                pair = pairs[n]
                ours = pair.student.as_map(self._seen[pair.student.name].float())
                theirs = pair.teacher.as_map(answer.features[t][n].float())
                key = f"{name}-{t}-{n}"
                if name == "at":
                    found.append(feature_losses.attention(align(ours, _size(theirs)), theirs))
                elif name == "fitnet":
                    ours = align(self.projections[key](ours), _size(theirs))
                    found.append(feature_losses.fitnet(ours, theirs))
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
        for t, pairs in enumerate(self._pairs):
            for n, pair in enumerate(pairs):
                ours, theirs = pair.student.shape[0], pair.teacher.shape[0]
                if "fitnet" in self.terms:
                    made[f"fitnet-{t}-{n}"] = nn.Conv2d(ours, theirs, 1, bias=False)
                if n != len(pairs) - 1:
                    continue
                if "srd" in self.terms:
                    made[f"srd-{t}-{n}"] = nn.Linear(ours, theirs)
                if "infonce" in self.terms:
                    made[f"infonce-{t}-{n}"] = nn.Linear(ours, EMBEDDING)
                    made[f"infonce-{t}-{n}-teacher"] = nn.Linear(theirs, EMBEDDING)
        return made

    @torch.no_grad()
    def _average_logits(self, images: Tensor) -> Tensor:
        """Outputs of the averaged student, updated first; a young average forgets faster."""
        self.updates += 1
        count = float(self.updates)
        share = 1 - min(self.self_decay, (1 + count) / (10 + count))
        ours = self._student[0].state_dict()
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
    moved: set[torch.device] = set()

    def ask(images: Tensor, samples: Samples) -> Answer:
        if images.device not in moved:
            for teacher in teachers:
                teacher.model.eval()
                teacher.model.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            moved.add(images.device)
        logits, features = [], []
        for t, teacher in enumerate(teachers):
            own = images
            if teacher.preprocess in views:
                own = samples.others[views.index(teacher.preprocess)].to(
                    images.device, memory_format=torch.channels_last
                )
            logits.append(teacher.in_order(teacher.model(own).float()))
            features.append(tuple(seen[t][pair.teacher.name] for pair in pairs[t]))
        return Answer(torch.stack(logits), tuple(features))

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
