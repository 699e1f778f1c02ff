"""One file for each runtime; every file in this folder is one.

A runtime's file has `SUFFIXES`, the file endings it opens (`""` for a bundle's folder),
`DEVICES`, the first of which is its default, `library()`, which imports it or raises
`EnvironmentLacks`, and
`open_session(path, *, device, threads, **options) -> Session`. It imports its library inside the
function, so that listing the runtimes needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from time import perf_counter_ns
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..apart import bounded
from ..errors import UserError, nearest

if TYPE_CHECKING:
    from .session import Session


_NO_RUNTIMES = ("session", "cuda", "tensorrt_library")
"""What lies here and is shared by runtimes."""


def names() -> tuple[str, ...]:
    """The runtimes that this installation knows, by file name."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.name not in _NO_RUNTIMES))


def module(name: str) -> ModuleType:
    """The file of one runtime."""
    if name not in names():
        raise UserError(
            f"There is no runtime {name!r}. Known: {', '.join(names())}.{nearest(name, names())}"
        )
    return import_module(f"{__name__}.{name}")


def suits(path: Path) -> str:
    """The runtime that opens files of this kind; of several the first by name."""
    suffix = "" if path.is_dir() else path.suffix.lower()
    known: list[str] = []
    for name in names():
        suffixes = module(name).SUFFIXES
        if suffix in suffixes:
            return name
        known += [s or "a bundle's folder" for s in suffixes]
    raise UserError(
        f"{path}: no runtime opens {suffix or 'files with no ending'}. "
        f"Expected one of {', '.join(sorted(set(known)))}, or name one with --runtime."
    )


def device_of(runtime: str, asked: str | None) -> str:
    """The device asked for, or the runtime's usual one."""
    known: tuple[str, ...] = module(runtime).DEVICES
    if asked is not None and asked not in known:
        raise UserError(
            f"{runtime} runs on {', '.join(known)}; got --device {asked}.{nearest(asked, known)}"
        )
    return asked or known[0]


def open_session(
    path: str | Path,
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Session:
    """Open a model in the runtime its file ending calls for, or in the one named.

    `device` None is the runtime's usual one: the CPU, or the GPU for an engine. A device that is
    named never falls back: what cannot run there raises `EnvironmentLacks`. `threads` None leaves
    the runtime's own default. `options` are the runtime's own; all but torch take `content`,
    the bytes of the file where they were read and hashed before: it is not opened again then.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file. Give the path of a model.")
    if threads is not None and threads < 1:
        raise UserError(f"threads = {threads}: it must be 1 or more.")
    name = runtime or suits(path)
    chosen = module(name)
    device = device_of(name, device)
    start = perf_counter_ns()
    with bounded():
        session: Session = chosen.open_session(path, device=device, threads=threads, **options)
    session.load_ms = (perf_counter_ns() - start) / 1e6
    return session
