"""Dataclasses from data (a recipe's table, a manifest, a gate file), and values as plain data.

An unknown key is an error that names the nearest known one. A dataclass with a field of the
metadata `{"rest": True}` keeps unknown keys there. One with a static method `from_older` also takes
records of an older form, which that method turns into today's.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UserError, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
MOST_BYTES = 2**20
MOST_DOTS = 200
"""Largest number in a line: the parser takes time with the square of the parts of a key."""


def from_mapping(cls: type[T], data: Any, where: str) -> T:
    """Make the dataclass `cls` from `data`; `where` names the source in an error.

    Lists become tuples where `cls` says so, and whole numbers become floats: JSON and TOML write
    1 for 1.0. A text is no list of letters, and true is no 1.

    Raises:
        UserError: an unknown or missing key, a value of another type, or a value that `cls`
            itself refuses.
    """
    try:
        made: T = _table(cls, data, where, "")
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {error}") from None
    return made


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no TOML, or takes too long to read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    text = content.decode("utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("tables in tables without end") from None


def plain(value: Any) -> Any:
    """`value` in JSON's own types: arrays and tuples become lists, a number that is not finite null
    (the SQNR of two equal outputs is infinite), paths and all else text."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, without importing it
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _made(kind: Any, value: Any, where: str, path: str) -> Any:
    """`value` as a value of the type `kind`."""
    if kind is Any:
        return value
    origin, arguments = _parts(kind)
    if origin in (Union, UnionType):
        return _either(arguments, value, where, path)
    if dataclasses.is_dataclass(kind):
        return _table(kind, value, where, path)
    if origin in (tuple, list):
        return origin(_items(origin, arguments, value, where, path))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _refused(where, path, value, "a table of named values")
        of = arguments[1] if arguments else Any
        return {key: _made(of, inner, where, _join(path, key)) for key, inner in value.items()}
    if origin is Literal:
        if value not in arguments:
            hint = nearest(str(value), [a for a in arguments if isinstance(a, str)])
            choices = "one of " + ", ".join(map(str, arguments))
            raise UserError(f"{_refused(where, path, value, choices)}{hint}")
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is float and whole:
        return float(value)
    if not isinstance(value, kind) or (kind is int and not whole):
        raise _refused(where, path, value, _name(kind))
    return value


def _either(options: Sequence[Any], value: Any, where: str, path: str) -> Any:
    wanted = [option for option in options if option is not NoneType]
    if value is None and len(wanted) < len(options):
        return None
    for option in wanted[:-1]:
        try:
            return _made(option, value, where, path)
        except UserError:
            continue
    return _made(wanted[-1], value, where, path)


def _items(
    origin: Any, arguments: Sequence[Any], value: Any, where: str, path: str
) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise _refused(where, path, value, "a list")
    kinds: Sequence[Any] = [arguments[0] if arguments else Any] * len(value)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        kinds = arguments
        if len(value) != len(kinds):
            raise _refused(where, path, value, f"{len(kinds)} values")
    return [
        _made(kind, inner, where, f"{path}[{number}]")
        for number, (kind, inner) in enumerate(zip(kinds, value, strict=True))
    ]


def _table(kind: Any, value: Any, where: str, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise _refused(where, path, value, "a table of named values")
    if hasattr(kind, "from_older"):
        value = kind.from_older(value)
    known, rest, needed = _fields(kind)
    found: dict[str, Any] = {}
    left: dict[str, Any] = {}
    for key, inner in value.items():
        if key in known:
            found[key] = _made(known[key], inner, where, _join(path, key))
        elif rest is not None:
            left[key] = inner
        else:
            hint = nearest(str(key), known) or f" Known: {', '.join(sorted(known))}."
            raise UserError(f"{where}: unknown key {_join(path, key)!r}.{hint}")
    for name in needed:
        if name not in found:
            raise UserError(f"{where}: the key {_join(path, name)!r} is missing.")
    return kind(**found) if rest is None else kind(**found, **{rest: left})


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], str | None, tuple[str, ...]]:
    """The types of its fields by name, the field for unknown keys, and those without default."""
    hints = get_type_hints(kind)
    given = [f for f in dataclasses.fields(kind) if f.init]
    rest = next((f.name for f in given if f.metadata.get("rest")), None)
    needed = [f.name for f in given if f.default is f.default_factory is dataclasses.MISSING]
    return {f.name: hints[f.name] for f in given if f.name != rest}, rest, tuple(needed)


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(kind) or kind, get_args(kind)


def _refused(where: str, path: str, value: Any, expected: str) -> UserError:
    if not path:
        return UserError(f"{where}: got {type(value).__name__}, expected {expected}.")
    return UserError(f"{where}: {path} = {_short(value)}, expected {expected}.")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind) or getattr(kind, "__name__", None) or str(kind).replace("typing.", "")
