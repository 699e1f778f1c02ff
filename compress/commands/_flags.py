"""Some fields of a shared dataclass as the flags of a command."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, get_type_hints

import tyro


def only(kind: type[Any], *names: str, **helps: str) -> Any:
    """For `Annotated[kind, only(kind, ...)]`: the fields `names` are flags with the help and the
    defaults of `kind`, those of `helps` with a help of their own. The others are no flags and keep
    their defaults."""

    def narrowed() -> type[Any]:
        types = get_type_hints(kind, include_extras=True)
        fields: list[Any] = []
        for field in dataclasses.fields(kind):
            if field.name in names:
                continue
            default: Any = {"default": field.default, "default_factory": field.default_factory}
            # With its type: tyro's cache takes `Any` with 0 and with False for the same field.
            note: Any = Annotated[types[field.name], tyro.conf.Fixed, tyro.conf.Suppress]
            if field.name in helps:
                note = Annotated[types[field.name], tyro.conf.arg(help=helps[field.name])]
            fields.append((field.name, note, dataclasses.field(**default)))
        return dataclasses.make_dataclass(
            kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True
        )

    # Made when this command is chosen: an overview of all commands needs none of it.
    return tyro.conf.arg(constructor_factory=narrowed, prefix_name=False, name="")
