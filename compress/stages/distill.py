"""Distil a teacher into a student, which learns the teacher's outputs or features."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vcompress.bench.errors import UserError, nearest
from vcompress.bench.ranges import at_least, share

from ..distillation.terms import WEIGHTS, check_task, needs_teacher, pairs_for
from ..training.config import Context, TaughtConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import nn

    from ..data.loader import Data
    from ..distillation.features import Pair
    from ..distillation.teaching import Ask, Teacher
    from ..tasks.task import TrainingTask

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(TaughtConfig):
    """Options of `vcompress distill`."""

    method: Literal[
        "kd", "dkd", "dist", "lskd", "cwd", "fitnet", "at", "skd", "infonce", "srd", "self"
    ] = "kd"
    """Distillation loss. On the outputs: kd (Hinton's), dkd (decoupled), dist (correlation), lskd
    (standardised), cwd (each class's map). On features: skd (pairs of places), fitnet (hints), at
    (attention), infonce (contrast in the batch), srd (projected embeddings). Without a teacher:
    self, which learns from the average of the student's own weights."""
    losses: tuple[str, ...] = ()
    """Several losses with their weights in place of --method, such as kd=1 at=50; in a recipe a
    table."""
    features: tuple[str, ...] = ("auto",)
    """Modules whose outputs are compared, STUDENT=TEACHER; auto finds where the size changes."""
    ensemble: Literal["mean", "accuracy", "confidence"] = "mean"
    """Weights of several teachers. mean: equal; accuracy: by validation accuracy; confidence: by
    certainty of each image."""
    cache_teacher: str = ""
    """Folder that keeps the teacher's outputs, so that it runs once and not in every epoch."""
    cache_views: Annotated[int, at_least(0)] = 8
    """Number of augmentations of every image in the cache, taken in turn; 0 is a new one in every
    epoch."""
    unlabelled: str = ""
    """Folder of images without labels, which only the teacher judges."""
    images: str = ""
    """Folder of images without labels, flat or nested, that are trained on in place of those of
    --data: what the teacher decides about them stands for their labels. Where no data are named,
    the classes are the teacher's."""
    self_decay: Annotated[float, share(one=False)] = 0.99
    """EMA decay for --method self, from 0 to below 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.losses and self.method != "kd":
            raise UserError(f"method = {self.method} and losses = {self.losses}: give one of them.")
        if self.images and self.unlabelled:
            raise UserError("images trains on those alone, unlabelled beside others: give one.")
        self.terms()

    def terms(self) -> dict[str, float]:
        """Each loss with its weight."""
        if not self.losses:
            return {self.method: WEIGHTS[self.method]}
        found: dict[str, float] = {}
        for text in self.losses:
            name, sign, number = text.partition("=")
            if name not in WEIGHTS:
                hint = nearest(name, WEIGHTS) or f" Known: {', '.join(WEIGHTS)}."
                raise UserError(f"losses: unknown loss {name!r}.{hint}")
            if name in found:
                raise UserError(f"losses: {name} is there twice.")
            try:
                weight = float(number) if sign else WEIGHTS[name]
            except ValueError:
                weight = math.nan
            if not 0 < weight < math.inf:
                raise UserError(f"losses: {text!r}; expected NAME=WEIGHT, a number above 0.")
            found[name] = weight
        return found


TEACHER, STUDENT = Role("teacher", Kind.SEVERAL), Role("student", Kind.FRESH, changed=True)


def asked_roles(config: Config) -> tuple[Role, ...]:
    """Teachers are asked for unless the student is its own."""
    return (TEACHER, STUDENT) if needs_teacher(config.terms()) else (STUDENT,)


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Train the student `model` under the teachers of `context`, with the labels beside them."""
    from contextlib import ExitStack
    from dataclasses import replace
    from pathlib import Path

    from ..data.unlabelled import has_label, with_unlabelled
    from ..distillation.features import captured
    from ..distillation.judged import judged_by
    from ..distillation.teaching import Lesson, LossOptions, TaughtLoss, live
    from ..models.cost import count_parameters
    from ..tasks import training_task
    from ..training.loop import fit

    terms, data, count = config.terms(), context.data, _views(config)
    task = training_task(data.dataset)
    check_task(terms, task)
    teachers = _teachers(config, context, task)
    for teacher in teachers:
        if count_parameters(model) > count_parameters(teacher.model):
            log.warning(
                "the student has %.2f M parameters and its teacher %.2f M: a student is the "
                "smaller one as a rule; are they the wrong way round?",
                count_parameters(model) / 1e6, count_parameters(teacher.model) / 1e6,
            )  # fmt: skip
    if config.images:
        if config.ensemble == "accuracy" and not data.dataset.labelled:
            raise UserError("ensemble = accuracy weighs teachers by labels; give --data with some.")
        data = judged_by(teachers, data, config.images)
    if config.unlabelled:
        data = replace(data, dataset=with_unlabelled(data.dataset, Path(config.unlabelled)))
    train = data.dataset.targets[data.dataset.splits["train"]]
    known = has_label(train)
    labelled = float(known.mean())
    pairs = [_pairs(model, teacher, config, data) for teacher in teachers]
    others = tuple(dict.fromkeys(t.preprocess for t in teachers if t.preprocess != data.preprocess))
    if config.ensemble == "accuracy" and len(teachers) > 1:
        teachers = [replace(t, weight=_weight(t, data, task, config.batch_size)) for t in teachers]

    facts: dict[str, Any] = {
        "losses": terms,
        "features": [[p.student.name, p.teacher.name] for found in pairs for p in found],
        "teachers": len(teachers),
        "unlabelled": int((~known).sum()),
    }
    if config.images:
        facts["images"] = len(train)
    if len(teachers) > 1:
        facts["ensemble"] = {"how": config.ensemble, "weights": [t.weight for t in teachers]}
    with ExitStack() as stack:
        seen = [
            stack.enter_context(captured(t.model, _names(p, "teacher")))
            for t, p in zip(teachers, pairs, strict=True)
        ]
        ask = live(teachers, seen, pairs, others) if teachers else None
        digests = [_digest(teacher) for teacher in teachers]
        training = replace(data, views=others)
        if config.cache_teacher and ask is not None:
            ask = _cached(ask, teachers, pairs, training, config, digests)
            training = replace(training, yields_views=False)
            facts["cache"] = {"folder": config.cache_teacher, "views": count}
        students = stack.enter_context(
            captured(model, sorted({n for p in pairs for n in _names(p, "student")}))
        )
        options = LossOptions(
            terms=terms, alpha=config.alpha, temperature=config.temperature,
            label_smoothing=config.label_smoothing, ensemble=config.ensemble,
            self_decay=config.self_decay,
        )  # fmt: skip
        lesson = Lesson(student=model, teachers=teachers, ask=ask, pairs=pairs, seen=students)
        loss = TaughtLoss(
            task, options, lesson, labelled=labelled, seed=context.seed,
            view=lambda epoch: epoch % count, identity={"teachers": digests, "labelled": labelled},
        )  # fmt: skip
        trained = fit(model, config, replace(context, data=training), loss, name="distill")
    return Outcome(model, {**trained, **facts}, _explained(model, teachers, context))


def _explained(model: nn.Module, teachers: Sequence[Teacher], context: Context) -> str:
    """HTML: where teacher and student look on images about which they disagree."""
    from ..distillation.disagreement import Viewer, disagreements_section
    from ..tasks import training_task
    from ..training.processes import process_state

    task, labelled = training_task(context.data.dataset), context.data.dataset.labelled
    if not (teachers and labelled) or task.deployed.maps or not process_state().is_main_process:
        return ""
    first = teachers[0]
    teacher = Viewer("teacher", first.model.to("cpu"), first.preprocess, first.order)
    student = Viewer("student", model, context.data.preprocess)
    return disagreements_section(task, teacher, student, context.data)


def _teachers(config: Config, context: Context, task: TrainingTask) -> list[Teacher]:
    from ..distillation.teaching import Teacher

    found = list(context.teachers)
    if not found and context.teacher is not None:
        found = [Teacher(context.teacher, context.data.preprocess)]
    needed = needs_teacher(config.terms())
    if needed and not found:
        raise UserError(
            "distill needs a teacher: give --teacher NAME or a bundle, or take --method self."
        )
    if found and not needed:
        raise UserError("method self has no teacher: omit --teacher, or add a loss, kd=1.")
    if not found and config.cache_teacher:
        raise UserError("--cache-teacher: method self has no teacher that could be cached.")
    if not found and config.images:
        raise UserError("--images: method self has no teacher that could judge them.")
    classes = len(context.data.classes)
    for teacher in found:
        logits = teacher.in_order(_logits(teacher, context.data))
        if logits.shape[1] != classes or (logits.ndim == 4) != task.deployed.maps:
            raise UserError(
                f"The student gives {(1, classes)} and the teacher {tuple(logits.shape)} logits; "
                f"both must know the same classes."
            )
    return found


def _logits(teacher: Teacher, data: Data) -> Any:
    """A teacher's outputs for one image."""
    import torch

    teacher.model.eval()
    with torch.no_grad():
        return teacher.model(_example(teacher, data))


def _example(teacher: Teacher, data: Data) -> Any:
    from dataclasses import replace

    return replace(data, preprocess=teacher.preprocess).example


def _pairs(model: nn.Module, teacher: Teacher, config: Config, data: Data) -> list[Pair]:
    """The features that the losses compare."""
    return pairs_for(
        config.terms(), model, data.example, teacher.model, _example(teacher, data), config.features
    )


def _names(pairs: Sequence[Pair], side: str) -> list[str]:
    return [getattr(pair, side).name for pair in pairs]


def _weight(teacher: Teacher, data: Data, task: TrainingTask, batch_size: int) -> float:
    """The teacher's score on the validation images; of errors the inverse, so that more is
    better."""
    from dataclasses import replace

    import torch

    from ..training.processes import process_state

    device = process_state().device
    evaluator = task.deployed.evaluator(data.classes, "the teacher")
    teacher.model.to(device).eval()
    with torch.no_grad():
        own = replace(data, preprocess=teacher.preprocess)
        for images, targets in own.loader("val", batch_size):
            found = teacher.in_order(teacher.model(images.to(device))).float().cpu()
            evaluator.update({"output": found.numpy()}, targets.numpy())
    value = evaluator.value()
    return value if task.deployed.metrics[0].higher_is_better else 1 / max(value, 1e-12)


def _digest(teacher: Teacher) -> str:
    """A hash of the weights and of the layers that they are in."""
    import hashlib

    from ..training.identity import digest

    return hashlib.sha256(f"{digest(teacher.model)} {teacher.model}".encode()).hexdigest()


def _views(config: Config) -> int:
    """How many augmentations of every image there are; they are taken in turn."""
    kept = config.cache_views if config.cache_teacher else 0
    return min(kept or config.epochs, config.epochs)


def _cached(
    ask: Ask, teachers: Sequence[Teacher], pairs: Sequence[Sequence[Pair]], data: Data,
    config: Config, digests: Sequence[str],
) -> Ask:  # fmt: skip
    """Fill what is missing of the cache, each process its own views, and answer from it."""
    from dataclasses import asdict
    from pathlib import Path

    import torch

    from ..distillation.cache import Output, open_cache
    from ..distillation.teaching import Answer
    from ..training.processes import process_state

    outputs = [
        Output(f"logits-{t}", tuple(_logits(teacher, data).shape[1:]), "float32")
        for t, teacher in enumerate(teachers)
    ]
    outputs += [
        Output(f"features-{t}-{pair.teacher.name}", pair.teacher.raw[1:], "float16")
        for t, found in enumerate(pairs) for pair in found
    ]  # fmt: skip
    identity: Mapping[str, Any] = {
        "teachers": list(digests),
        "takes": [asdict(teacher.preprocess) for teacher in teachers],
        "classes": list(data.classes),
    }
    state = process_state()
    views = range(_views(config))
    with state.main_process_first():
        cache = open_cache(Path(config.cache_teacher), identity, outputs, data, len(views))

    def answers(view: int) -> Any:
        loader = data.loader(
            "train", config.batch_size, view=view, workers=config.workers, samples=True
        )
        for images, _, samples in loader:
            with torch.no_grad():
                found = ask(images.to(state.device), samples)
            yield (
                samples.indices.numpy(),
                [*found.logits, *(f for fs in found.features for f in fs)],
            )

    missing = [view for view in views if not cache.has(view)]
    for view in missing[state.process_index :: state.num_processes]:
        log.info("asking the teacher, view %d of %d, into %s", view + 1, len(views), cache.folder)
        cache.write(view, answers(view), data.dataset.bad_images)
    state.wait_for_everyone()

    def read(images: Any, samples: Any) -> Answer:
        values = [value.to(images.device) for value in cache.read(samples.view, samples.indices)]
        logits, rest = torch.stack(values[: len(teachers)]), iter(values[len(teachers) :])
        return Answer(logits, tuple(tuple(next(rest) for _ in found) for found in pairs))

    return read


STAGE = Stage(
    Config,
    apply,
    roles=(TEACHER, STUDENT),
    asked_roles=asked_roles,
    trains=lambda config: not config.images,
    unlabelled=lambda config: "images" if config.images else "",
)
