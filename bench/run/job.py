"""What one call of vbench does, from its options to a `Result`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .. import onnx_file
from ..apart import bounded
from ..bundle import MODEL, Preprocess
from ..bundle.atomic import temporary_folder
from ..data.dataset import batches_of, watched
from ..errors import UserError
from ..gates import baseline, gate
from ..reports.result import Artefact, ModelResult, Result, artefact
from ..runtimes import device_of, open_session, suits
from ..runtimes.session import Session
from ..runtimes.tensorrt import SUFFIXES as ENGINES
from ..tasks import load, scoring
from ..tasks.task import Score
from ..timing import fresh, noise, saturation, traffic
from ..timing.compare import CompareEffort, compare
from ..timing.environment import Disturbance, Environment, counters, disturbance, preflight
from ..timing.fresh import ColdStart
from ..timing.inputs import Feed, resolve_shapes, synthetic
from ..timing.measure import Effort, Measurement, measure
from .options import Options
from .subject import (
    Images,
    Subject,
    feed_for,
    for_outputs,
    images_for,
    preprocessing,
    runtime_for,
    stamps,
    subjects,
    threads_for,
)

Tell = Callable[[str], None]
HARNESS = Effort(
    seconds=0.15, most_seconds=0.15, warmup_seconds=0.05, warmup_runs=20, most_warmup_seconds=0.1
)

ENOUGH_RUNS = 100_000
"""In a default call: for percentiles up to 99.9 %, 15 times what supports them."""
LEAST_COMPARISON = 1.0
"""Seconds: ten quads of the shortest useful blocks."""


def run(options: Options, tell: Tell = lambda text: None) -> Result:
    """Measure one model, or two against each other.

    Raises `UserError` for anything the user can put right.
    """
    if len(options.models) > 2:
        raise UserError(f"{len(options.models)} models given; vbench measures one or compares two.")
    if len(options.models) == 2 and options.baseline:
        raise UserError("--baseline stands in for the first model: give one model, or leave it.")
    # Read before anything is measured: a mistake in them must not cost the measurement.
    asked = gate.asked(options.gate, options.require)
    saved = baseline.read(options.baseline) if options.baseline else None
    tell("looking at the machine")
    environment = preflight(gpu=_on_gpu(options))
    found = subjects(options.models, options.runtime)
    if options.rebuild:
        tell("building engines for this GPU")
        found = tuple(_rebuilt(subject, options) for subject in found)
    runtime, said = runtime_for(options, found)
    options = replace(options, runtime=runtime)
    threads, more = threads_for(options, found)
    options = replace(options, threads=threads)
    images, notes = images_for(options, found)
    notes += said + more
    result = Result(
        models=(), environment=environment, command=options.command,
        version=version("vision-compress"),
        when=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip
    work = _one if len(found) == 1 else _two
    before = stamps(found)
    result = work(options, found, images, result, notes, tell)
    if stamps(found) != before:
        raise UserError(
            f"{' or '.join(str(s.path) for s in found)}: changed while it was measured, so the "
            f"numbers are of no one file. Measure again."
        )
    if images and images.dataset.left_out:
        notes.append(images.dataset.left_out)
    if images and (bad := images.dataset.bad_images):
        notes.append(
            f"{len(bad)} of the images could not be read and were left out, as in training: "
            f"{bad[min(bad)]}"
        )
    result = replace(result, notes=tuple(notes))
    if saved:
        model = result.models[-1]
        result = replace(
            result,
            against=baseline.against(saved, model, environment, options.margin),
            change=baseline.change(saved, model),
        )
    return replace(result, checks=gate.check(asked, result)) if asked else result


def effort(options: Options) -> Effort:
    """The protocol in full for `--publish`, else a few seconds."""
    found = Effort.publish() if options.publish else Effort(enough_runs=ENOUGH_RUNS)
    if options.seconds is not None:
        found = replace(
            found, seconds=options.seconds, most_seconds=options.seconds, enough_runs=None,
            # A short look has a short warm-up, and says where it was not enough.
            warmup_seconds=min(found.warmup_seconds, options.seconds),
            most_warmup_seconds=min(found.most_warmup_seconds, max(2 * options.seconds, 0.2))
            if not options.publish else found.most_warmup_seconds,
        )  # fmt: skip
    return found


def _rebuilt(subject: Subject, options: Options) -> Subject:
    """The subject with an engine that fits this machine."""
    from ..engine.rebuild import engine_for

    if subject.path.suffix not in ENGINES and options.runtime != "tensorrt":
        return subject
    if subject.bundle is None:
        raise UserError(
            f"{subject.path}: --rebuild is for an engine in a bundle, whose ONNX file it is built "
            "from."
        )
    name = subject.path.resolve().relative_to(subject.bundle.path.resolve()).as_posix()
    return replace(
        subject, path=engine_for(subject.bundle, None if name == MODEL else name), sha256=None
    )


def _runtime(options: Options, path: Path) -> str:
    return options.runtime or suits(path)


def _on_gpu(options: Options) -> bool:
    if options.device is not None:
        return options.device != "cpu"
    return any(p.suffix in ENGINES for p in options.models)


def _open(options: Options, path: Path) -> Session:
    runtime = _runtime(options, path)
    return open_session(
        path, runtime=runtime, device=options.device, threads=options.threads,
        **options.session_options(runtime),
    )  # fmt: skip


def _request(options: Options, subject: Subject) -> fresh.Request:
    runtime = _runtime(options, subject.path)
    return fresh.Request(
        path=subject.path, runtime=runtime, device=device_of(runtime, options.device),
        threads=options.threads,
        options=options.session_options(runtime), batch=options.batches[0], shape=options.shape,
        image_shape=subject.bundle.input.shape if subject.bundle else None,
        inputs=options.inputs, seed=options.seed, timeout_s=options.load_timeout,
    )  # fmt: skip


def _cold(options: Options, subject: Subject, tell: Tell) -> ColdStart | None:
    """Before this process loads the model: what crashes there does not crash here."""
    if not options.cold_start:
        return None
    tell(f"loading {subject.name} in a fresh process")
    return fresh.cold_start(_request(options, subject))


def _saturation(options: Options, file: Artefact, notes: list[str]) -> None:
    """Say once where the processor cannot do the file's int8 products exactly."""
    if file.onnx and not _on_gpu(options) and _runtime(options, file.path) == "onnxruntime":
        text = saturation.note(file.path, file.onnx)
        if text and text not in notes:
            notes.append(text)


def _one(
    options: Options, found: tuple[Subject, ...], images: Images | None, result: Result,
    notes: list[str], tell: Tell,
) -> Result:  # fmt: skip
    subject = found[0]
    file = artefact(subject.path, subject.name, subject.sha256)
    _saturation(options, file, notes)
    cold = _cold(options, subject, tell)
    tell("loading")
    with _open(options, subject.path) as session:
        prepared = _preprocess(options, subject, session, images, notes)
        sweep = []
        for batch in options.batches:
            feed = feed_for(session, subject, images, prepared, options, batch)
            tell(f"measuring, batch {batch}" if len(options.batches) > 1 else "measuring")
            before = counters()
            apart = options.publish and batch == options.batches[0]
            # What is measured in processes of its own is only looked at here.
            limits = Effort.quick(0.5) if apart else effort(options)
            measurement = measure(session, feed, limits)
            if apart:
                tell(f"measuring in {options.publish} fresh processes")
                request = _request(options, subject)
                measurement = fresh.processes(
                    request, effort(options), options.publish, measurement
                )
            disturbed = disturbance(before, counters())
            sweep.append(_model(file, measurement, disturbed, result.environment, cold))
        feed = feed_for(session, subject, images, prepared, options, options.batches[0])
        final = _more(options, session, subject, images, prepared, feed, sweep[0], tell)
    return replace(result, models=(final,), sweep=tuple(sweep) if len(sweep) > 1 else ())


def _two(
    options: Options, found: tuple[Subject, ...], images: Images | None, result: Result,
    notes: list[str], tell: Tell,
) -> Result:  # fmt: skip
    if len(options.batch) > 1:
        raise UserError("--batch with several sizes sweeps one model; a comparison takes one size.")
    if options.publish:
        raise UserError("--publish measures one model; two are compared in one process.")
    files = [artefact(s.path, s.name, s.sha256) for s in found]
    for file in files:
        _saturation(options, file, notes)
    cold = [_cold(options, s, tell) for s in found]
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
            feed_for(session, s, images, p, options, options.batches[0])
            for s, session, p in zip(found, (a, b), prepared, strict=True)
        ]
        limits = CompareEffort(margin=options.margin)
        if options.seconds is not None:
            seconds = max(options.seconds, LEAST_COMPARISON)
            limits = replace(limits, seconds=seconds, floor_seconds=seconds / 2, least_quads=1)
        before = counters()
        comparison = compare(a, fed[0], b, fed[1], again, limits, lambda text, share: tell(text))
        disturbed = disturbance(before, counters())
        models = []
        for i, session in enumerate((a, b)):
            measurement = (comparison.a, comparison.b)[i]
            bare = _model(files[i], measurement, disturbed, result.environment, cold[i])
            models.append(
                _more(options, session, found[i], images, prepared[i], fed[i], bare, tell)
            )
    scores = [m.accuracy for m in models]
    change = load(scores[0].task).compare(scores[0], scores[1]) if scores[0] and scores[1] else None
    return replace(result, models=tuple(models), comparison=comparison, change=change)


def _model(
    file: Artefact, measurement: Measurement, disturbed: Disturbance, environment: Environment,
    cold: ColdStart | None,
) -> ModelResult:  # fmt: skip
    return ModelResult(
        artefact=file, measurement=measurement, disturbance=disturbed,
        warnings=noise.warnings(measurement, environment, disturbed), cold_start=cold,
    )  # fmt: skip


def _more(
    options: Options, session: Session, subject: Subject, images: Images | None,
    prepared: Preprocess | None, feed: Feed, model: ModelResult, tell: Tell,
) -> ModelResult:  # fmt: skip
    """What is measured beside the latency, on the same session."""
    scored = _score(options, session, subject, images, prepared, tell)
    found = replace(model, accuracy=scored, harness_ns=harness_ns(session, options))
    if options.concurrency:
        tell(f"throughput, {options.concurrency} in flight")
        found = replace(
            found,
            throughput=traffic.throughput(
                session, feed, options.concurrency, options.seconds or 3.0
            ),
        )
    if options.rate:
        tell(f"requests at {options.rate:g} a second")
        open_loop = traffic.open_loop(
            session, feed, options.rate, max(options.concurrency, 1), options.seconds or 5.0
        )
        found = replace(found, open_loop=open_loop)
    if options.profile:
        tell("profiling")
        with bounded():
            found = replace(found, profile=session.profile(feed.ring[0]))
    more = []
    share = found.harness_share
    if share is not None and found.harness_ns and share > noise.HARNESS_SHARE:
        more.append(
            f"an empty model takes {found.harness_ns / 1e3:.1f} us in the same loop, {share:.1%} "
            "of the median"
        )
    if scored and scored.nonfinite:
        more.append(f"NaN or infinity in the outputs of {scored.nonfinite} of {scored.n} images")
    if scored and scored.n > 1 and scored.says_one_thing:
        more.append("it predicts the same for every image: the accuracy says nothing")
    return replace(found, warnings=(*found.warnings, *more))


def _preprocess(
    options: Options, subject: Subject, session: Session, images: Images | None, notes: list[str]
) -> Preprocess | None:
    if images is None:
        return None
    chosen, note = preprocessing(subject, session, images, options.preprocess)
    if note and note not in notes:
        notes.append(note)
    return chosen


def _score(
    options: Options, session: Session, subject: Subject, images: Images | None,
    prepared: Preprocess | None, tell: Tell,
) -> Score | None:  # fmt: skip
    if images is None or prepared is None or not options.accuracy:
        return None
    aligned = for_outputs(images, subject, options.classes)
    tell(f"scoring {subject.name}")
    batch = options.batches[0]
    at_once = scoring.images_at_once(session, batch)
    dataset, images_sha256 = watched(aligned)
    batches = batches_of(dataset, images.indices, prepared, at_once)
    found = scoring.score(
        load(dataset.task),
        session,
        batches,
        names=dataset.classes,
        source=images.source,
        batch=batch,
    )
    return replace(found, images_sha256=images_sha256())


def harness_ns(session: Session, options: Options) -> float | None:
    """Median of an identity model in the same loop: the clock, the loop, an empty call."""
    if session.facts.runtime != "onnxruntime":
        return None
    with temporary_folder() as folder:
        path = folder / "identity.onnx"
        path.write_bytes(onnx_file.identity_model())
        with _open(options, path) as empty:
            feed = synthetic(empty.inputs, resolve_shapes(empty.inputs))
            return float(np.median(measure(empty, feed, HARNESS).samples_ns))
