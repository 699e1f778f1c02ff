"""One stage a file: a frozen dataclass `Config`, `apply(model, config, context)` and `STAGE`.

A new file here is a new command and a new recipe method. `contract.py` says what a `Stage` is.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from vcompress.bench.errors import UserError, nearest

from .contract import Stage


def names() -> tuple[str, ...]:
    """The names of all stages, sorted."""
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.name != "contract"))


def load(name: str) -> Stage[Any]:
    """The stage of the file `name`.

    Raises:
        UserError: there is no such stage.
    """
    if name not in names():
        raise UserError(
            f"unknown stage {name!r}.{nearest(name, names())} Known: {', '.join(names())}."
        )
    stage: Stage[Any] = import_module(f"{__name__}.{name}").STAGE
    return stage
