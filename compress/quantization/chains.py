"""Finds layers that feed others through operations which keep channels apart and let a factor pass.

f(s x) = s f(x) for s > 0 holds for a ReLU, pooling, dropout and the identity, channel by channel.
So a positive factor may move from the output of one layer into the weights of the next ones, and
the network computes what it did: cross-layer equalisation rests on that.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import fx, nn

from .graph import activations_of, bn_after, kind, leaf, qualified_name

_LETS_THROUGH = frozenset({"relu", "relu6", "maxpool", "avgpool", "global_pool", "identity", "pad"})
_LAYERS = ("conv", "linear")


@dataclass(frozen=True)
class Chain:
    """A layer, its BN, and every layer that reads what comes out."""

    layer: str
    """Path of the convolution or linear layer; as are the others."""
    bn: str | None
    readers: tuple[str, ...]
    tensor: str
    """Name of the node behind the ReLU: the tensor that is rounded."""
    axis: int
    """Axis of the channels in that tensor."""
    limited: bool
    """Whether a ReLU6 stands between; a channel that reaches 6 must then stay as it is."""


def find_chains(graph: fx.GraphModule) -> list[Chain]:
    """Every chain of a traced network, in order; `record_shapes` has been called.

    Left out are layers that are called twice, whose weight is tied to another's, or that have a
    reader of another kind (a residual addition, a gate, the network's output).
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

    found = []
    for node in graph.graph.nodes:
        layer = own(node)
        if kind(node) not in _LAYERS or layer is None:
            continue
        last, bn = node, None
        after = bn_after(node)
        if after is not None:
            norm = own(after)
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.weight is None:
                continue
            last, bn = after, qualified_name(after)
        reached = _readers(last, layer, node)
        if reached is None:
            continue
        readers, limited, tensor = reached
        if readers and all(own(r) is not None for r in readers):
            names = tuple(map(qualified_name, readers))
            axis = -1 if isinstance(layer, nn.Linear) else 1
            found.append(Chain(qualified_name(node), bn, names, tensor, axis, limited))
    return found


def _readers(
    start: fx.Node, layer: nn.Module, first: fx.Node
) -> tuple[list[fx.Node], bool, str] | None:
    """The layers that read `start`, whether a ReLU6 is passed, and the tensor that is rounded."""
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    readers: list[fx.Node] = []
    limited, tensor, waiting = False, start.name, [start]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            what = kind(user)
            if what in _LAYERS and activations_of(user)[:1] == [node]:
                module = leaf(user)
                reads = getattr(module, "in_features", getattr(module, "in_channels", None))
                if reads != channels:  # such as a linear layer behind a map that was flattened
                    return None
                readers.append(user)
            elif what in _LETS_THROUGH or _flattens_a_pixel(user):
                if what == "relu6":
                    limited = True
                if what in ("relu", "relu6") and node is start:
                    tensor = user.name
                waiting.append(user)
            else:
                return None
    return readers, limited, tensor


def _flattens_a_pixel(node: fx.Node) -> bool:
    """Whether a reshape only drops a height and a width of one."""
    from .trace import shape

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
