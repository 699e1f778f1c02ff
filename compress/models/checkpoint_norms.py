"""Weight norm and spectral norm in a checkpoint, under the names that a network has for them.

torch has two writings of each: hooks (`weight_g` and `weight_v`; `weight_orig` and `weight_u`) and
parametrisations (`parametrizations.weight.original0`, ...). A file of one is read into a network of
the other, and weight norm into a network with the plain weight too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .checkpoint_tree import Node

_SPECTRAL = {"orig": "original", "u": "0._u", "v": "0._v"}
_NORM = {"g": "original0", "v": "original1"}


def under_names_of(network: Node, file: Node) -> Mapping[str, Node]:
    """The children of a module of the file by the names that the same module of the network has."""
    made = dict(file.children)
    if "parametrizations" not in made:
        made |= _as_parametrisations(network, file)
    for name, wanted in network.children.items():
        if wanted.tensor is not None and name not in made:
            weight = _plain_weight(file, name)
            if weight is not None:
                made[name] = weight
    return made


def _as_parametrisations(network: Node, file: Node) -> dict[str, Node]:
    """Tensors of hooks where the network has parametrisations."""
    wanted = network.children.get("parametrizations")
    root = Node(file.key, (*file.prefix, "parametrizations"))
    for name in wanted.children if wanted is not None else ():
        for names in (_SPECTRAL, _NORM):
            tensors = {new: file.children.get(f"{name}_{old}") for old, new in names.items()}
            if any(node is None or node.tensor is None for node in tensors.values()):
                continue
            below = root.children[name] = Node(root.key, (*root.prefix, name))
            for new, node in tensors.items():
                assert node is not None
                first, _, last = new.partition(".")
                if last:
                    inner = below.children.setdefault(first, Node(root.key, below.prefix))
                    inner.children[last] = node
                else:
                    below.children[first] = node
            break
    return {"parametrizations": root} if root.children else {}


def _plain_weight(file: Node, name: str) -> Node | None:
    """What weight norm comes to: the direction `v` at the length `g`."""
    g, v = file.children.get(f"{name}_g"), file.children.get(f"{name}_v")
    if g is None or v is None:
        held = file.at(f"parametrizations.{name}")
        g, v = (held.children.get(key) if held else None for key in ("original0", "original1"))
    if g is None or v is None or g.tensor is None or v.tensor is None:
        return None
    weight = _at_length(g.tensor, v.tensor)
    if weight is None:
        return None
    return Node(file.key, (*file.prefix, name), tensor=weight, made_of=(g, v))


def _at_length(g: Tensor, v: Tensor) -> Tensor | None:
    """The shape of `g` says over which dimensions the length is taken: where it is 1."""
    if g.ndim not in (0, v.ndim) or not v.is_floating_point():
        return None
    over = [dim for dim in range(v.ndim) if g.ndim == 0 or g.shape[dim] == 1]
    if g.ndim and any(g.shape[dim] not in (1, v.shape[dim]) for dim in range(v.ndim)):
        return None
    length = v.square().sum(over, keepdim=True).sqrt()
    weight: Tensor = v * (g / length)
    return weight
