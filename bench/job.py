"""What one call of vbench does, from its options to a `Result`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from . import accuracy, noise, onnx_file
from .accuracy import Accuracy
from .bundle import Preprocess
from .compare import CompareBudget, compare
from .environment import Disturbance, Environment, counters, disturbance, preflight
from .errors import UserError
from .inputs import Feed, resolve_shapes, synthetic
from .measure import Budget, Measurement, measure
from .options import Options
from .preprocess import apply
from .result import Artefact, ColdStart, ModelResult, Result, artefact
from .runtimes import open_session, suits
from .session import Session
from .subject import Images, Subject, feed_for, images_for, preprocessing, subjects

Tell = Callable[[str], None]
HARNESS = Budget(
    seconds=0.15, most_seconds=0.15, warmup_seconds=0.05, warmup_runs=20, most_warmup_seconds=0.1
)


def run(options: Options, tell: Tell = lambda text: None) -> Result:
    """Measure one model, or two against each other.

    Raises `UserError` for anything the user can put right.
    """
    if len(options.models) > 2:
        raise UserError(f"{len(options.models)} models given; vbench measures one or compares two.")
    tell("looking at the machine")
    environment = preflight(gpu=options.device != "cpu")
    found = subjects(options.models, options.runtime)
    images, notes = images_for(options, found)
    work = _one if len(found) == 1 else _two
    result = work(options, found, images, environment, notes, tell)
    return result


def _open(options: Options, path: Path) -> Session:
    runtime = options.runtime or suits(path)
    return open_session(
        path, runtime=runtime, device=options.device, threads=options.threads,
        **options.session_options(runtime),
    )  # fmt: skip


def _result(
    options: Options, models: tuple[ModelResult, ...], environment: Environment, notes: list[str],
) -> Result:  # fmt: skip
    return Result(
        models=models, environment=environment, command=options.command,
        version=version("vision-compress"),
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"), notes=tuple(notes),
    )  # fmt: skip


def budget(options: Options) -> Budget:
    if options.publish:
        return Budget.publish()
    if options.seconds is None:
        return Budget()
    return Budget(seconds=options.seconds, most_seconds=max(options.seconds, Budget.most_seconds))


def _one(
    options: Options, found: tuple[Subject, ...], images: Images | None, environment: Environment,
    notes: list[str], tell: Tell,
) -> Result:  # fmt: skip
    subject = found[0]
    file = artefact(subject.path, subject.name)
    tell("loading")
    with _open(options, subject.path) as session:
        preprocess = _preprocess(options, subject, session, images, notes)
        results = []
        for batch in options.batch:
            feed = feed_for(session, subject, images, preprocess, options, batch)
            tell(f"measuring, batch {batch}" if len(options.batch) > 1 else "measuring")
            before = counters()
            measurement = measure(session, feed, budget(options))
            disturbed = disturbance(before, counters())
            results.append(_model(file, measurement, disturbed, environment, None))
        first = results[0]
        scored = _score(options, session, subject, images, preprocess, tell)
        floor = harness_ns(session, options)
    final = _finish(first, scored, floor)
    result = _result(options, (final,), environment, notes)
    from dataclasses import replace

    return replace(result, sweep=tuple(results) if len(results) > 1 else ())


def _two(
    options: Options, found: tuple[Subject, ...], images: Images | None, environment: Environment,
    notes: list[str], tell: Tell,
) -> Result:  # fmt: skip
    from dataclasses import replace

    if len(options.batch) > 1:
        raise UserError("--batch with several sizes sweeps one model; a comparison takes one size.")
    files = [artefact(s.path, s.name) for s in found]
    with ExitStack() as stack:
        tell("loading")
        a, b, again = (
            stack.enter_context(_open(options, path))
            for path in (found[0].path, found[1].path, found[0].path)
        )
        prepared = [
            _preprocess(options, s, session, images, notes)
            for s, session in zip(found, (a, b), strict=True)
        ]
        fed: list[Feed] = [
            feed_for(session, s, images, p, options, options.batch[0])
            for s, session, p in zip(found, (a, b), prepared, strict=True)
        ]
        limits = CompareBudget(margin=options.margin)
        if options.seconds is not None:
            limits = replace(limits, seconds=options.seconds)
        before = counters()
        comparison = compare(a, fed[0], b, fed[1], again, limits, lambda text, share: tell(text))
        disturbed = disturbance(before, counters())
        models = []
        for s, session, file, p, m in zip(
            found, (a, b), files, prepared, (comparison.a, comparison.b), strict=True
        ):
            scored = _score(options, session, s, images, p, tell)
            bare = _model(file, m, disturbed, environment, None)
            models.append(_finish(bare, scored, harness_ns(session, options)))
    scores = [m.accuracy for m in models]
    change = accuracy.compare(scores[0], scores[1]) if scores[0] and scores[1] else None
    result = _result(options, tuple(models), environment, notes)
    return replace(result, comparison=comparison, change=change)


def _model(
    file: Artefact, measurement: Measurement, disturbed: Disturbance, environment: Environment,
    cold: ColdStart | None,
) -> ModelResult:  # fmt: skip
    return ModelResult(
        artefact=file, measurement=measurement, disturbance=disturbed,
        warnings=noise.warnings(measurement, environment, disturbed), cold_start=cold,
    )  # fmt: skip


def _finish(model: ModelResult, scored: Accuracy | None, floor: float | None) -> ModelResult:
    from dataclasses import replace

    done = replace(model, accuracy=scored, harness_ns=floor)
    more = []
    if done.harness_share is not None and done.harness_share > noise.HARNESS_SHARE:
        more.append(
            f"an empty model takes {floor / 1e3:.1f} us in the same loop, "
            f"{done.harness_share:.1%} of the median"
            if floor
            else ""
        )
    if scored and scored.nonfinite:
        more.append(f"NaN or infinity in the outputs of {scored.nonfinite} of {scored.n} images")
    return replace(done, warnings=(*model.warnings, *more))


def _preprocess(
    options: Options, subject: Subject, session: Session, images: Images | None, notes: list[str]
) -> Preprocess | None:
    if images is None:
        return None
    chosen, note = preprocessing(subject, session, images, options.preprocess)
    if note:
        notes.append(note)
    return chosen


def _score(
    options: Options, session: Session, subject: Subject, images: Images | None,
    preprocess: Preprocess | None, tell: Tell,
) -> Accuracy | None:  # fmt: skip
    if images is None or preprocess is None or not options.accuracy:
        return None
    classes = images.dataset.classes
    if subject.bundle and tuple(subject.bundle.labels) != tuple(classes):
        raise UserError(
            f"{subject.path}: its classes are {_some(subject.bundle.labels)} and those of "
            f"{images.dataset.source} {_some(classes)}. Give the data that it was trained for."
        )
    tell(f"scoring {subject.name}")

    def batches(size: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(images.indices), size):
            chosen = images.indices[start : start + size]
            stack = np.stack([apply(preprocess, images.dataset.image(int(i))) for i in chosen])
            yield stack, images.dataset.labels[chosen]

    return accuracy.score(session, batches(), classes=classes, source=images.source)


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f"... ({len(names)})" if len(names) > 4 else "")


def harness_ns(session: Session, options: Options) -> float | None:
    """Median of an identity model in the same loop: the clock, the loop, an empty call."""
    if session.facts.runtime != "onnxruntime":
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.onnx"
        path.write_bytes(onnx_file.identity_model())
        with _open(options, path) as empty:
            feed = synthetic(empty.inputs, resolve_shapes(empty.inputs))
            return float(np.median(measure(empty, feed, HARNESS).samples_ns))
