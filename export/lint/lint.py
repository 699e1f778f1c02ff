"""Lints a file: the file itself, then the rules of one target, then, if asked, a build."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from vcompress.bench import onnx_file
from vcompress.bench.apart import ask
from vcompress.bench.errors import EnvironmentLacks, UserError, nearest

from . import channels, checker, functions, onnxruntime, operators, placement, quantised, repair
from .findings import ORDER, Finding, Report, Say, verdict_of
from .rules import RULES
from .view import BadTensor, View

if TYPE_CHECKING:
    from vcompress.bench.engine import Settings

Check = Callable[[View, Say], None]
TARGETS: dict[str, tuple[Check, ...]] = {
    "tensorrt": (channels.check, operators.check_classic, quantised.check, placement.check),
    "tensorrt-rtx": (channels.check, operators.check_rtx, quantised.check, placement.check),
    "onnxruntime": (channels.check, onnxruntime.check),
}
TIMEOUT_S = 120.0
"""Time limit of the process that reads a file, seconds."""


def lint(
    path: Path | str,
    target: str = "tensorrt",
    *,
    build: Settings | None = None,
    apart: bool = True,
) -> Report:
    """What is wrong with an ONNX file for a target.

    Args:
        path: any ONNX file; what it names outside its folder is never opened.
        target: tensorrt, tensorrt-rtx or onnxruntime.
        build: build it as well, as these settings say; a file that builds is verified.
        apart: read the file, and run ONNX's checker, its shape inference and ONNX Runtime, in a
            process of its own that is limited in time and memory, for files that may be hostile.

    Raises:
        UserError: no such file or target.
        EnvironmentLacks: a build was asked for and the target's TensorRT cannot build here.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected an ONNX model.")
    if target not in TARGETS:
        raise UserError(
            f"target {target!r}: expected one of {', '.join(TARGETS)}.{nearest(target, TARGETS)}"
        )
    if build is not None and not target.startswith("tensorrt"):
        raise UserError(f"--build builds for TensorRT; it is not for --target {target}.")
    start = time.perf_counter()
    if build is not None:
        build = replace(build, flavour="tensorrt" if target == "tensorrt" else "tensorrt-rtx")
    looked = _look_apart(path, target, build) if apart else look(path, target, build)
    found, built = list(looked.findings), ""
    if build is not None and looked.buildable:
        built = _build(path, build, _say_to(found))
    seconds = time.perf_counter() - start
    verdict = "verified" if built else verdict_of(found)
    ordered = sorted(found, key=lambda f: ORDER.index(f.severity))
    return Report(str(path), target, verdict, tuple(dict.fromkeys(ordered)), built, seconds)


@dataclass(frozen=True)
class Looked:
    """What a file shows before it is built."""

    findings: tuple[Finding, ...]
    buildable: bool
    """Whether it can be read and all axes have a size."""


def look(
    path: Path, target: str, build: Settings | None, tell: Callable[[Looked], None] | None = None
) -> Looked:
    """The findings of a file, in this process.

    Args:
        tell: is told what was found before each step that may not come back.
    """
    found: list[Finding] = []
    say = _say_to(found)

    def ready() -> None:
        if tell is not None:
            tell(Looked(tuple(found), False))

    view = _read(path, say, ready)
    if view is None:
        return Looked(tuple(found), False)
    try:
        for check in TARGETS[target]:
            check(view, say)
    except BadTensor as error:
        say("invalid", "", str(error))
        return Looked(tuple(found), False)
    if target != "onnxruntime":
        _opset(path, say)
    elif not any(f.effect == "blocks" for f in found):
        ready()
        refusal = checker.load_refusal(path)
        if refusal is not None:
            say("no-kernel", "", refusal)
        elif checker.has_onnxruntime():  # which knows every operator of the file, then
            found = [f for f in found if f.rule != "custom-domain"]
    open_axes = build is not None and _open_axes(view, build, say)
    return Looked(tuple(found), not open_axes)


def _look_apart(path: Path, target: str, build: Settings | None) -> Looked:
    """As `look`, in a process of its own; where that ends without an answer, what it had found."""
    request = {
        "path": str(path), "target": target, "device": "cpu",
        "build": None if build is None else build.to_json(),
    }  # fmt: skip
    reply = ask("vcompress.export.lint.worker", request, TIMEOUT_S)
    reply.raise_error()
    findings = tuple(Finding(**found) for found in reply.answer.get("findings", ()))
    if reply.status == 0 and reply.answer.get("whole"):
        return Looked(findings, reply.answer["buildable"])
    late = reply.status is None
    ended = f"no answer within {TIMEOUT_S:g} s" if late else f"its process {reply.end}"
    found = list(findings)
    _say_to(found)("checker-failed", "", ended)
    return Looked(tuple(found), False)


def _say_to(found: list[Finding]) -> Say:
    def say(rule: str, node: str, message: str) -> None:
        entry = RULES[rule]
        found.append(Finding(rule, entry.severity, entry.effect, node, message, entry.cure))

    return say


def _read(path: Path, say: Say, ready: Callable[[], None]) -> View | None:
    """The graph with all types known, or None where the file is no valid model."""
    try:
        facts = onnx_file.read(path)
    except UserError as error:
        say("unreadable", "", str(error))
        return None
    try:
        onnx_file.check_external(path, facts)
    except UserError as error:
        say("external-data", "", str(error))
        return None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's, of no common base
        say("unreadable", "", f"protobuf does not read it: {error}")
        return None
    endless = functions.refusal(model)
    if endless is not None:
        say("invalid", "", endless)
        return None
    ready()
    refusal = checker.refusal(path)
    if refusal is None:
        return View(checker.inferred(model).graph, path.resolve().parent)
    if checker.repaired_refusal(path) is not None:
        say("invalid", "", refusal)
        return None
    mended, found = repair.repaired(model)
    for rule, node, message in found:
        say(rule, node, message)
    return View(checker.inferred(_with_data(mended, model)).graph, path.resolve().parent)


def _with_data(mended: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """The mended model with the tensors in other files that it was mended without."""
    there = {t.name for t in mended.graph.initializer}
    mended.graph.initializer.extend(t for t in model.graph.initializer if t.name not in there)
    return mended


def _opset(path: Path, say: Say) -> None:
    version = onnx_file.read(path).opsets.get("ai.onnx", 0)
    low, high = operators.OPSETS
    if version and not low <= version <= high:
        say("opset", "", f"opset {version}; built here were {low} to {high}")


def _open_axes(view: View, settings: Settings, say: Say) -> bool:
    """Whether the build was given no size for an axis: it is not tried then."""
    found = False
    for name in view.inputs:
        shape = None if name in view.stored else view.shape(name)
        if shape is None or name in settings.shapes:
            continue
        given = {0, 2, 3} if settings.hw is not None and len(shape) == 4 else {0}
        for axis in [i for i, size in enumerate(shape) if size < 0 and i not in given]:
            dims = "x".join("..." if size < 0 else str(size) for size in shape)
            say("open-axis", name, f"axis {axis} of input {name}: give --shape {name}={dims}")
            found = True
    return found


def _build(path: Path, settings: Settings, say: Say) -> str:
    from vcompress.bench.bundle.atomic import temporary_folder
    from vcompress.bench.engine import build_engine

    with temporary_folder() as folder:
        try:
            report = build_engine(path, folder / "model.engine", settings)
        except EnvironmentLacks:
            raise
        except UserError as error:
            say("build-failed", "", str(error).removeprefix(f"{path}: "))
            return ""
    targets = ", ".join(f"SM {number}" for number in settings.sm) or report.gpu
    return f"{report.library} {report.version} for {targets}"
