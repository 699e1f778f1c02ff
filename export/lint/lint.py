"""Lints a file: the file itself, then the rules of one target, then, if asked, a build."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import onnx

from vcompress.bench import onnx_file
from vcompress.bench.errors import EnvironmentLacks, UserError, nearest

from ..graph import opset_of
from . import channels, checker, functions, onnxruntime, operators, placement, quantised
from .findings import ORDER, Finding, Report, Say, verdict_of
from .rules import RULES
from .view import View

if TYPE_CHECKING:
    from vcompress.bench.engine import Settings

TARGETS: dict[str, tuple[ModuleType, ...]] = {
    "tensorrt": (channels, operators, quantised, placement),
    "onnxruntime": (channels, onnxruntime),
}
CHECKER_TIMEOUT_S = 120.0


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
        target: tensorrt or onnxruntime.
        build: build it as well, as these settings say; a file that builds is verified.
        apart: run the ONNX checker, and ONNX Runtime, in a process of their own, for files that
            may be hostile.

    Raises:
        UserError: no such file or target.
        EnvironmentLacks: a build was asked for and no TensorRT can build here.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected an ONNX model.")
    if target not in TARGETS:
        raise UserError(
            f"target {target!r}: expected one of {', '.join(TARGETS)}.{nearest(target, TARGETS)}"
        )
    if build is not None and target != "tensorrt":
        raise UserError(f"--build builds for TensorRT; it is not for --target {target}.")
    start = time.perf_counter()
    found: list[Finding] = []

    def say(rule: str, node: str, message: str) -> None:
        entry = RULES[rule]
        found.append(Finding(rule, entry.severity, entry.effect, node, message, entry.cure))

    view = _read(path, say, apart)
    if view is not None:
        for rules in TARGETS[target]:
            rules.check(view, say)
        if target == "onnxruntime" and not any(f.effect == "blocks" for f in found):
            refusal, _ = _checked(checker.load_refusal, path, apart)
            if refusal is not None:
                say("no-kernel", "", refusal)
    built = ""
    if build is not None and view is not None:
        built = _build(path, build, say)
    seconds = time.perf_counter() - start
    verdict = "verified" if built else verdict_of(found)
    ordered = sorted(found, key=lambda f: ORDER.index(f.severity))
    return Report(str(path), target, verdict, tuple(dict.fromkeys(ordered)), built, seconds)


def _read(path: Path, say: Say, apart: bool) -> View | None:
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
    refusal, crashed = _checked(checker.refusal, path, apart)
    if refusal is not None:
        say("checker-failed" if crashed else "invalid", "", refusal)
        return None
    _imports(model, say)
    return View(checker.inferred(model).graph, path.resolve().parent)


def _checked(which: checker.Refusal, path: Path, apart: bool) -> tuple[str | None, bool]:
    return checker.asked_apart(which, path, CHECKER_TIMEOUT_S) if apart else (which(path), False)


def _imports(model: onnx.ModelProto, say: Say) -> None:
    version = opset_of(model)
    low, high = operators.OPSETS
    if version and not low <= version <= high:
        say("opset", "", f"opset {version}; built here were {low} to {high}")


def _build(path: Path, settings: Settings, say: Say) -> str:
    from tempfile import TemporaryDirectory

    from vcompress.bench.engine import build_engine

    with TemporaryDirectory(prefix="vcompress-lint-") as folder:
        try:
            report = build_engine(path, Path(folder) / "model.engine", settings)
        except EnvironmentLacks:
            raise
        except UserError as error:
            say("build-failed", "", str(error).removeprefix(f"{path}: "))
            return ""
    targets = ", ".join(f"SM {number}" for number in settings.sm) or report.gpu
    return f"{report.library} {report.version} for {targets}"
