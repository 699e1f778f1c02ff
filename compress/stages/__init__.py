"""One stage a file: a frozen dataclass `Config` and `apply(model, config, context)`.

A new file here is a new command and a new recipe method. `INPUTS` says which networks a stage
takes: a name stands for a `fresh` network, or for one that is `trained` first. The last one is
changed; the default is one trained `model`. `optional` may be left out, `several` are one or more.
A function `inputs(config)` says which of them the options ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from vcompress.bench.errors import UserError, nearest


def names() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in iter_modules(__path__) if m.name != "contract"))


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


def inputs(stage: ModuleType, config: Any = None) -> dict[str, str]:
    """Role to `fresh`, `trained`, `optional` or `several`."""
    if config is not None and hasattr(stage, "inputs"):
        asked: dict[str, str] = stage.inputs(config)
        return asked
    found: dict[str, str] = getattr(stage, "INPUTS", {"model": "trained"})
    return found


def several(role: str, values: Sequence[str]) -> dict[str, str]:
    """One role for each: teacher, teacher-2, teacher-3."""
    return {role if n == 0 else f"{role}-{n + 1}": value for n, value in enumerate(values)}


def roles(stage: ModuleType, config: Any, given: Iterable[str]) -> dict[str, str]:
    """As `inputs`, with a role for each of several.

    Raises:
        UserError: a role that is missing, or one that the options have no use for.
    """
    names, found = list(given), {}
    for role, kind in inputs(stage, config).items():
        if kind != "several":
            found[role] = kind
            continue
        numbered = [name for name in names if name == role or name.startswith(f"{role}-")]
        if not numbered:
            raise UserError(f"{_name(stage)} needs a {role}: give a model's name or a bundle.")
        found |= dict.fromkeys(numbered, kind)
    for name in names:
        if name not in found:
            raise UserError(f"{_name(stage)} takes no {name} with these options; leave it out.")
    return found


def _name(stage: ModuleType) -> str:
    return stage.__name__.rpartition(".")[2]
