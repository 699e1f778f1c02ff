"""The names of a checkpoint, or of a network, as a tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

_AVERAGED = {"ema", "swa", "avg", "average", "averaged", "shadow", "polyak", "teacher"}


@dataclass
class Node:
    """A name in the file, with what lies below it."""

    key: tuple[str, ...] = ()
    """The keys of dictionaries that lead to it."""
    prefix: tuple[str, ...] = ()
    """The parts of a tensor's name, below those keys."""
    children: dict[str, Node] = field(default_factory=dict)
    tensor: Tensor | None = None
    listed: Sequence[Tensor] = ()
    """Tensors without names, as some averages keep the parameters."""
    made_of: Sequence[Node] = ()
    """The file's tensors of which this one was computed."""

    def nodes(self) -> Iterator[Node]:
        """This one and all below it, in the order of the file."""
        yield self
        for child in self.children.values():
            yield from child.nodes()

    def at(self, path: str) -> Node | None:
        """What lies at the dotted `path`."""
        found: Node | None = self
        for part in path.split("."):
            found = None if found is None else found.children.get(part)
        return found

    @property
    def path(self) -> str:
        return ".".join((*self.key, *self.prefix))

    @property
    def holds(self) -> bool:
        """Whether there are tensors in it or below it."""
        return any(node.tensor is not None or node.listed for node in self.nodes())

    @property
    def averaged(self) -> bool:
        """Whether its name is that of an average of weights."""
        words = re.split(r"[^a-z]+", self.path.lower())
        return not _AVERAGED.isdisjoint(words)


def leaf(node: Node, parts: Sequence[str], tensor: Tensor) -> None:
    """Put a tensor below `node`, under the parts of its name."""
    for part in parts:
        made = Node(node.key, (*node.prefix, part))
        node = node.children.setdefault(part, made)
    node.tensor = tensor
