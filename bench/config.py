"""Dataclasses from data: a recipe's table, a manifest, a gate file.

Data is only data: an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import dacite

from .errors import UserError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], data: Any, where: str) -> T:
    """Make the dataclass `cls` from `data`; `where` names the source in an error.

    Raises:
        UserError: an unknown or missing key, a value of another type, or a value that `cls`
            itself refuses.
    """
    _check(cls, data, where, "")
    try:
        return dacite.from_dict(
            cls,
            data,
            dacite.Config(cast=[tuple], type_hooks={float: _int_to_float}, check_types=True),
        )
    except dacite.MissingValueError as error:
        raise UserError(f"{where}: the key {error.field_path!r} is missing.") from None
    except dacite.WrongTypeError as error:
        raise UserError(
            f"{where}: {error.field_path} = {_short(error.value)}, "
            f"expected {_name(error.field_type)}."
        ) from None
    except (dacite.DaciteError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: {error}") from None


def _check(kind: Any, value: Any, where: str, path: str) -> None:
    """What dacite lets pass: unknown keys further down, a text for a list (it would become a tuple
    of letters), true for 1."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in options:
        return
    wanted = [option for option in options if option is not NoneType]
    if len(wanted) != 1:
        return
    kind = wanted[0]
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _refused(where, path, value, "a table of named values")
        hints = get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind) if f.init}
        for key, inner in value.items():
            if key not in known:
                hint = nearest(str(key), known) or f" Known: {', '.join(sorted(known))}."
                raise UserError(f"{where}: unknown key {_join(path, key)!r}.{hint}")
            _check(hints[key], inner, where, _join(path, key))
    elif origin in (tuple, list):
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise _refused(where, path, value, "a list")
        fixed = origin is tuple and arguments and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            raise _refused(where, path, value, f"{len(arguments)} values")
        for number, inner in enumerate(value):
            inner_kind = (arguments[number] if fixed else arguments[0]) if arguments else Any
            _check(inner_kind, inner, where, f"{path}[{number}]")
    elif origin is dict and isinstance(value, Mapping) and arguments:
        for key, inner in value.items():
            _check(arguments[1], inner, where, _join(path, key))
    elif origin is Literal and value not in arguments:
        hint = nearest(str(value), [a for a in arguments if isinstance(a, str)])
        choices = "one of " + ", ".join(map(str, arguments))
        raise UserError(f"{_refused(where, path, value, choices)}{hint}")
    elif (kind in (str, bool) and not isinstance(value, kind)) or (
        kind in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, kind)))
    ):
        raise _refused(where, path, value, _name(kind))


def _refused(where: str, path: str, value: Any, expected: str) -> UserError:
    if not path:
        return UserError(f"{where}: got {type(value).__name__}, expected {expected}.")
    return UserError(f"{where}: {path} = {_short(value)}, expected {expected}.")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _int_to_float(value: Any) -> Any:
    """TOML and JSON write 1 for 1.0."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _name(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind) or getattr(kind, "__name__", None) or str(kind).replace("typing.", "")
