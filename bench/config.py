"""Dataclasses from data: a recipe's table, a manifest, a gate file.

Data is only data: an unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import dacite

from .errors import UserError, nearest

T = TypeVar("T")


def from_mapping(cls: type[T], data: Any, where: str) -> T:
    """Make the dataclass `cls` from `data`; `where` names the source in an error.

    Raises:
        UserError: an unknown or missing key, a value of another type, or a value that `cls`
            itself refuses.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where}: got {type(data).__name__}, expected a table of named values.")
    known = {f.name for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            hint = nearest(str(key), known) or f" Known: {', '.join(sorted(known))}."
            raise UserError(f"{where}: unknown key {key!r}.{hint}")
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
            f"{where}: {error.field_path} = {error.value!r}, expected {_name(error.field_type)}."
        ) from None
    except (dacite.DaciteError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None


def _int_to_float(value: Any) -> Any:
    """TOML and JSON write 1 for 1.0."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind).replace("typing.", "")
