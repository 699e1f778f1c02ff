"""From a file to a report: the file itself, then the rules of one target, then perhaps a build."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import onnx
import onnx.inliner

from vcompress.bench import onnx_file
from vcompress.bench.errors import EnvironmentLacks, UserError, nearest

from . import channels, checker, functions, onnxruntime, operators, placement, quantised
from .findings import Finding, Report, verdict_of
from .rules import RULES
from .view import View

if TYPE_CHECKING:
    from vcompress.bench.engine import Settings

Say = Callable[[str, str, str], None]
"""Rule, node, message."""
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
        path: anybody's file; what it names outside its folder is never opened.
        target: tensorrt or onnxruntime.
        build: build it as well, as these settings say; a file that builds is verified.
        apart: run the ONNX checker in a process of its own, for files that may be hostile.

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
            onnxruntime.check_loads(path, say)
    built = ""
    if build is not None and view is not None:
        built = _build(path, build, say)
    seconds = time.perf_counter() - start
    verdict = "verified" if built else verdict_of(found)
    ordered = sorted(found, key=lambda f: ("error", "warning", "note").index(f.severity))
    return Report(str(path), target, verdict, tuple(_once(ordered)), built, seconds)


def _once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))


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
    if apart:
        refusal, crashed = checker.refusal_apart(path, CHECKER_TIMEOUT_S)
    else:
        refusal, crashed = checker.refusal(path), False
    if refusal is not None:
        say("checker-failed" if crashed else "invalid", "", refusal)
        return None
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _imports(model, say)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return View(inferred.graph, path.resolve().parent)


def _imports(model: onnx.ModelProto, say: Say) -> None:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
    low, high = operators.OPSETS
    if version is not None and not low <= version <= high:
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
