"""The contract of a stage, free of heavy imports so that the command line starts at once.

A stage is one file in `compress/stages/`: a frozen dataclass `Config`, a function
`apply(model, config, context) -> Outcome`, and `STAGE`, which says which networks it takes. The
same `Config` is the Python API, the command's flags and a table of the recipe file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vcompress.bench.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import nn

    from ..training.config import Context

C = TypeVar("C", bound="DataclassInstance")
"""The stage's own `Config`."""


class Kind(Enum):
    """What a role takes: a model's name or a bundle. The two differ in what a name stands for."""

    FRESH = "fresh"
    """A name is a network with random weights, or with those of --weights."""
    TRAINED = "trained"
    """A name is a network that is fine-tuned first."""
    OPTIONAL = "optional"
    """As trained, and may be left out."""
    SEVERAL = "several"
    """As trained, one or more."""


@dataclass(frozen=True)
class Role:
    """A network that a stage takes, under the name of its flag and of its key in a recipe."""

    name: str
    kind: Kind
    changed: bool = False
    """Whether this is the network that the stage changes: exactly one is."""

    def numbered(self, values: Sequence[str]) -> dict[str, str]:
        """A name for each of several: teacher, teacher-2, teacher-3."""
        return {
            self.name if number == 1 else f"{self.name}-{number}": value
            for number, value in enumerate(values, 1)
        }

    def is_one_of(self, name: str) -> bool:
        """Whether `name` is this role, or one of its numbers."""
        return name == self.name or (self.kind is Kind.SEVERAL and name.startswith(f"{self.name}-"))


@dataclass(frozen=True)
class Outcome:
    """What a stage hands on."""

    model: nn.Module
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts for the bundle's history: what was reached against what was asked."""
    section: str = ""
    """HTML for this stage's report alone."""


def never(_: Any) -> bool:
    """For a stage that does this with none of its options."""
    return False


def always(_: Any) -> bool:
    """For a stage that does this with all of its options."""
    return True


def nothing(_: Any) -> str:
    """For a stage that names nothing with any of its options."""
    return ""


@dataclass(frozen=True)
class Stage(Generic[C]):
    """One stage, generic in its `Config`, so that an `apply` that takes another one is an error of
    types."""

    Config: type[C]
    apply: Callable[[nn.Module, C, Context], Outcome]
    """Takes the network of the changed role."""
    roles: tuple[Role, ...] = (Role("model", Kind.TRAINED, changed=True),)
    asked_roles: Callable[[C], tuple[Role, ...]] | None = None
    """The roles that these options have a use for; None: always all of them."""
    inherits_teacher: Callable[[C], bool] = never
    """Whether the teacher of the bundle's history is wanted where none is named."""
    trains: Callable[[C], bool] = always
    """Whether these options need a training and a validation part of the data."""
    unlabelled: Callable[[C], str] = nothing
    """The option with a folder of images without labels that will do where a bundle records no data
    and none are named; empty where none will."""

    def __post_init__(self) -> None:
        if sum(role.changed for role in self.roles) != 1:
            raise ValueError(f"stage {self.name}: exactly one role is changed, got {self.roles}")

    @property
    def name(self) -> str:
        """The command, the recipe's `stage` and the history's: the name of the file."""
        return self.apply.__module__.rpartition(".")[2]

    @property
    def help(self) -> str:
        """The docstring of the file; its first line stands in the overview of commands."""
        return (sys.modules[self.apply.__module__].__doc__ or self.name).strip()

    @property
    def changed(self) -> Role:
        """The role whose network the stage changes."""
        return next(role for role in self.roles if role.changed)

    def asked(self, config: C) -> tuple[Role, ...]:
        """The roles that the options ask for."""
        return self.roles if self.asked_roles is None else self.asked_roles(config)

    def assigned(self, config: C, given: Mapping[str, str]) -> dict[str, Role]:
        """The role of every network that is to be opened; those of several under their numbers.

        Args:
            given: `model`, `teacher-2`, ... to a model's name or the path of a bundle.

        Raises:
            UserError: a network that is missing, or one that the options have no use for.
        """
        found: dict[str, Role] = {}
        for role in self.asked(config):
            names = [name for name in given if role.is_one_of(name)]
            if not names and role.kind is not Kind.OPTIONAL:
                raise UserError(
                    f"{self.name} needs a {role.name}: give a model's name or a bundle."
                )
            found |= dict.fromkeys(names, role)
        for name in given:
            if name not in found:
                raise UserError(f"{self.name} takes no {name} with these options; omit it.")
        return found
