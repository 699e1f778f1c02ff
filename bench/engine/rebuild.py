"""An engine that fits the GPU at hand: the bundle's own, an earlier build's, or a new one.

An engine runs on the GPU and the version that it was built for. Where either differs, it is built
again from the ONNX file that the bundle holds, and kept under a name made of the file's hash, the
GPU, the library's version and the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from ..bundle import MODEL, Bundle, sha256
from ..errors import EnvironmentLacks, UserError
from ..runtimes.cuda import Cuda
from ..runtimes.tensorrt_library import libraries, package_of
from . import Settings, build_engine
from .settings import Flavour


@dataclass(frozen=True)
class Here:
    """What engines must fit on this machine."""

    gpu: str
    """Its name."""
    sm: int
    """Its compute capability, such as 89."""
    versions: Mapping[str, str]
    """tensorrt, tensorrt_rtx: those that are installed, with their versions."""


def look() -> Here:
    """The first GPU and the TensorRT of this machine.

    Raises:
        EnvironmentLacks: one of them is not there.
    """
    versions = {trt.__name__: trt.__version__ for trt in libraries()}
    name, sm = Cuda().gpu()
    return Here(name, sm, versions)


def default_cache() -> Path:
    """Where built engines are kept: VCOMPRESS_CACHE, else the user's cache folder."""
    base = os.environ.get("VCOMPRESS_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vcompress/engines"


def fits(record: Mapping[str, Any], here: Here) -> bool:
    """Whether a bundle's engine runs here: the same library and version, and this GPU.

    An engine of TensorRT-RTX runs on every GPU that it was built for, a classic one on the very
    model of the GPU that built it.
    """
    build = record["build"]
    if here.versions.get(build["library"]) != build["version"]:
        return False
    if build["library"] == "tensorrt_rtx" and build["settings"]["sm"]:
        return here.sm in build["settings"]["sm"]
    return bool(build["gpu"] == f"{here.gpu}, SM {here.sm}")


def engine_for(
    bundle: Bundle,
    name: str | None = None,
    *,
    here: Here | None = None,
    cache: Path | None = None,
    settings: Settings | None = None,
) -> Path:
    """The path of an engine of `bundle` that runs on this machine, built where there is none.

    Args:
        name: the engine in the bundle, such as engines/tensorrt-rtx-int8-sm89.engine; None takes
            its model.onnx.
        here: None looks at the machine.
        cache: folder of built engines; None is `default_cache()`.
        settings: None takes those that the bundle's engine was built with.

    Raises:
        EnvironmentLacks: no GPU, or no TensorRT.
        UserError: the bundle has no such engine, or it does not build.
    """
    record = None if name is None else _record(bundle, name)
    here = here or look()
    if record is not None and settings is None and fits(record, here):
        return bundle.file(str(name))
    source = MODEL if record is None else record["onnx"]
    onnx = bundle.file(source)
    asked = settings or (
        Settings() if record is None else Settings.from_json(record["build"]["settings"])
    )
    asked = replace(asked, flavour=_flavour(asked, here), sm=())
    if asked.flavour == "tensorrt-rtx":  # said openly: a build without it skips hardware checks
        asked = replace(asked, sm=(here.sm,))
    name_in_cache = key(bundle.files[source].sha256, here, asked)
    target = (cache or default_cache()) / f"{name_in_cache}.engine"
    if not _whole(target):
        report = build_engine(onnx, target, asked)
        body = {**report.to_json(), "sha256": sha256(target)}
        _note(target).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    return target


def key(onnx_sha256: str, here: Here, settings: Settings) -> str:
    """The name of a built engine: it changes with anything that changes the engine."""
    package = package_of(str(settings.flavour))
    facts = {
        "onnx": onnx_sha256,
        "gpu": here.gpu,
        "sm": here.sm,
        "library": package,
        "version": here.versions[package],
        "settings": settings.to_json(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _flavour(settings: Settings, here: Here) -> Flavour:
    """The library that built it where it is installed, else the one that is."""
    known: tuple[Flavour, ...] = get_args(Flavour)
    present = [flavour for flavour in known if package_of(flavour) in here.versions]
    if not present:
        raise EnvironmentLacks("There is no TensorRT here: pip install 'tensorrt>=10.13'.")
    return next((flavour for flavour in present if flavour == settings.flavour), present[0])


def _record(bundle: Bundle, name: str) -> dict[str, Any]:
    beside = Path(name).with_suffix(".json").as_posix()
    try:
        found = json.loads(bundle.file(beside).read_text(encoding="utf-8"))
        build = found["build"]
        good = all(isinstance(build[k], str) for k in ("library", "version", "gpu", "onnx_sha256"))
        good = good and isinstance(build["settings"]["sm"], list) and isinstance(found["onnx"], str)
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good:
        raise UserError(f"{bundle.path}: {name} has no record that vcompress wrote beside it.")
    return dict(found)


def _note(engine: Path) -> Path:
    return engine.with_suffix(".json")


def _whole(engine: Path) -> bool:
    """Whether a kept engine is what was built; a damaged one is built again."""
    try:
        held = json.loads(_note(engine).read_text(encoding="utf-8"))
        return bool(held["sha256"] == sha256(engine))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
