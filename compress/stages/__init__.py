"""One stage a file: a frozen dataclass `Config` and `apply(model, config, context)`.

A new file here is a new command and a new recipe method. `INPUTS` says which networks a stage
takes: a name stands for a `fresh` network, or for one that is `trained` first. The last one is
changed; the default is one trained `model`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from vcompress.bench.errors import UserError, nearest


def names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """The stage's module.

    Raises:
        UserError: there is no such stage.
    """
    if name not in names():
        raise UserError(
            f"unknown stage {name!r}.{nearest(name, names())} Known: {', '.join(names())}."
        )
    return import_module(f"{__name__}.{name}")


def inputs(stage: ModuleType) -> dict[str, str]:
    """Role to `fresh` or `trained`."""
    found: dict[str, str] = getattr(stage, "INPUTS", {"model": "trained"})
    return found
