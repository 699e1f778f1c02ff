"""Finds layers that feed others through operations which keep channels apart and let a factor pass.

f(s x) = s f(x) for s > 0 holds for a ReLU, pooling, dropout and the identity, channel by channel,
and s (x + y) = s x + s y. So a positive factor may move from the output of layers into the weights
of the next ones, and the network computes what it did: cross-layer equalisation rests on that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from .graph import activations_of, bn_after, kind, leaf, qualified_name, tail, tensor_inputs
from .trace import shape

_LETS_THROUGH = frozenset({"relu", "relu6", "maxpool", "avgpool", "global_pool", "identity", "pad"})
_LAYERS = ("conv", "linear")


@dataclass(frozen=True)
class Writer:
    """A layer that makes a tensor of a chain, and its BN."""

    layer: str
    """Path of the convolution or linear layer; as are the others."""
    bn: str | None


@dataclass(frozen=True)
class Chain:
    """Layers whose outputs are added up, one at the least, and every layer that reads a sum."""

    writers: tuple[Writer, ...]
    readers: tuple[str, ...]
    tensors: tuple[str, ...]
    """Names of the nodes behind each writer and each sum, and their ReLUs: what is rounded."""
    axis: int
    """Axis of the channels in those tensors."""
    limited: bool
    """Whether a ReLU6 stands between; a channel that reaches 6 must then stay as it is."""


def find_chains(graph: fx.GraphModule) -> list[Chain]:
    """Every chain of a traced network, in order; `record_shapes` has been called.

    Left out are layers that are called twice, whose weight is tied to another's, or that have a
    reader of another kind (a gate, the network's output).
    """
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    owners: Counter[int] = Counter()
    for module in graph.modules():
        owners.update(id(p) for p in module.parameters(recurse=False))

    def own(node: fx.Node) -> nn.Module | None:
        """The module of a node, where no other node uses it or its parameters."""
        module = leaf(node)
        if module is None or calls[str(node.target)] != 1:
            return None
        return module if all(owners[id(p)] == 1 for p in module.parameters()) else None

    found: list[Chain] = []
    seen: set[str] = set()
    for node in graph.graph.nodes:
        if kind(node) in _LAYERS and node.name not in seen:
            search = _Search(own)
            chain = search.chain(node)
            seen.update(n.name for n in search.writers)
            if chain is not None:
                found.append(chain)
    return found


class _Search:
    """What one layer's output is added to and read by, back and forth through sums."""

    def __init__(self, own: Callable[[fx.Node], nn.Module | None]) -> None:
        self.own = own
        self.writers: dict[fx.Node, fx.Node | None] = {}
        """Layer -> its BN."""
        self.readers: list[fx.Node] = []
        self.made: list[fx.Node] = []
        self.limited = False
        self.carriers: set[fx.Node] = set()

    def chain(self, first: fx.Node) -> Chain | None:
        if not self._writes(first):
            return None
        waiting = [self.made[0]]
        while waiting:
            node = waiting.pop()
            if node in self.carriers:
                continue
            self.carriers.add(node)
            before = self._before(node)
            after = self._after(node)
            if before is None or after is None:
                return None
            waiting += [*before, *after]
        modules = [leaf(n) for n in self.writers]
        linear = isinstance(modules[0], nn.Linear)
        alike = all(isinstance(m, nn.Linear) == linear for m in modules)
        if not self.readers or not alike or (self.limited and len(self.writers) > 1):
            return None
        return Chain(
            tuple(
                Writer(qualified_name(n), None if bn is None else qualified_name(bn))
                for n, bn in self.writers.items()
            ),
            tuple(map(qualified_name, self.readers)),
            tuple(tail(n).name for n in self.made),
            -1 if linear else 1,
            self.limited,
        )

    def _writes(self, node: fx.Node) -> bool:
        """Take note of a layer, and of the BN behind it; False where neither may change."""
        if kind(node) not in _LAYERS or self.own(node) is None:
            return False
        bn = bn_after(node)
        norm = None if bn is None else self.own(bn)
        if bn is not None and (
            not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.weight is None
        ):
            return False
        self.writers[node] = bn
        self.made.append(node if bn is None else bn)
        return True

    def _before(self, node: fx.Node) -> list[fx.Node] | None:
        """What made a tensor, where that carries the factor too; None where it cannot."""
        if node in self.made:
            return [] if kind(node) != "add" else list(tensor_inputs(node))
        what, inputs = kind(node), tensor_inputs(node)
        if what in _LETS_THROUGH or _flattens_a_pixel(node):
            return inputs[:1]
        if what == "add" and _of_one_shape(node):
            self.made.append(node)
            return inputs
        layer = inputs[0] if what == "bn" else node
        return [] if self._writes(layer) and self.made[-1] is node else None

    def _after(self, node: fx.Node) -> list[fx.Node] | None:
        """Where a tensor goes with its factor, past the layers that read it; None where it ends in
        something else."""
        further = []
        for user in node.users:
            what = kind(user)
            if what in _LAYERS and activations_of(user)[:1] == [node]:
                module = self.own(user)
                reads = getattr(module, "in_features", getattr(module, "in_channels", None))
                if module is None or reads != self._channels():
                    return None  # such as a linear layer behind a map that was flattened
                self.readers.append(user)
            elif what in _LETS_THROUGH or _flattens_a_pixel(user):
                self.limited = self.limited or what == "relu6"
                further.append(user)
            elif what == "add" and _of_one_shape(user):
                further.append(user)
            else:
                return None
        return further

    def _channels(self) -> int | None:
        module = leaf(next(iter(self.writers)))
        found: int | None = getattr(module, "out_features", getattr(module, "out_channels", None))
        return found


def _of_one_shape(node: fx.Node) -> bool:
    """Whether a sum is of two tensors, neither of them widened, and of nothing else."""
    inputs = tensor_inputs(node)
    plain = len(node.args) == 2 and len(inputs) == 2 and not node.kwargs
    return plain and shape(node) is not None and all(shape(n) == shape(node) for n in inputs)


def _flattens_a_pixel(node: fx.Node) -> bool:
    """Whether a reshape only drops a height and a width of one."""
    if kind(node) != "reshape" or len(node.all_input_nodes) != 1:
        return False
    before, after = shape(node.all_input_nodes[0]), shape(node)
    return (
        before is not None
        and after is not None
        and len(before) == 4
        and before[2:] == (1, 1)
        and tuple(after) == tuple(before[:2])
    )
