"""Walks torch-pruning's dependency graph channel by channel.

Two channels that meet anywhere are one unit. That covers what a walk with whole lists of indices
loses: channels shared through slice and concat, groups of a grouped convolution, the heads of
attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..models.patterns import matches
from .attention import head_count, layout, unsupported
from .structure import Cut, Group, Side, Structure, is_depthwise, multiplier

ROOTS = (nn.modules.conv._ConvNd, nn.Linear)
"""Layers whose channels can go."""


@dataclass
class _Union:
    """Disjoint sets over integers, with path halving."""

    parent: list[int] = field(default_factory=list)

    def add(self) -> int:
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def find(self, item: int) -> int:
        parent = self.parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        if one != other:
            self.parent[max(one, other)] = min(one, other)


class Walk:
    """Slots (one channel on one side of one node of the graph) and which of them are one unit."""

    def __init__(
        self, graph: Any, mirror: nn.Module, paths: dict[nn.Module, str], called: set[nn.Module]
    ) -> None:
        self.graph = graph
        self.union = _Union()
        self.slots: dict[tuple[Any, Any], dict[int, int]] = {}
        self.paths, self.called = paths, called
        self.shared = _shared_tensors({module: path for path, module in mirror.named_modules()})
        self.parameters = {id(p): name for name, p in mirror.named_parameters()}
        self.broken: dict[int, str] = {}

    def spread(self, root: Any) -> None:
        """Follow all output channels of a layer to wherever they reach."""
        from torch_pruning._helpers import _HybridIndex

        function = self.graph.get_pruner_of_module(root.module).prune_out_channels
        width = self.graph.get_out_channels(root)
        if width == 1:
            return  # a mask, which may be spread over any number of channels
        known = self.slots.setdefault((root, function), {})
        fresh = [index for index in range(width) if index not in known]
        for index in fresh:
            known[index] = self.union.add()
        stack = [(root, function, fresh)]
        while stack:
            node, function, indices = stack.pop()
            here = self.slots[node, function]
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(function):
                    continue
                # the root index carries our slot through the library's mappings
                if self._is_mask(dependency.target, dependency.handler):
                    continue
                mapped = [_HybridIndex(idx=index, root_idx=here[index]) for index in indices]
                for mapping in dependency.index_mapping:
                    if mapping is not None:
                        mapped = mapping(mapped)
                target = self.slots.setdefault((dependency.target, dependency.handler), {})
                onward = []
                for item in mapped:
                    if item.root_idx is None:
                        for index in indices:
                            self.broken[here[index]] = "its channels are shuffled among others"
                        continue
                    slot = target.get(item.idx)
                    if slot is None:
                        slot = target[item.idx] = self.union.add()
                        onward.append(item.idx)
                    self.union.join(slot, item.root_idx)
                if onward:
                    stack.append((dependency.target, dependency.handler, onward))

    def _without_layer(self) -> dict[str, str]:
        """Weights that a function uses after others have changed them: known to no layer."""
        found = {}
        layers = {
            id(parameter)
            for module in self.paths
            if isinstance(module, ROOTS) or layout(module) is not None
            for parameter in module.parameters()
        }
        for node in self.graph.module2node.values():
            name = node.grad_fn.name() if node.module not in self.paths and node.grad_fn else ""
            products = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "BmmBackward")
            if not name.startswith(products):
                continue
            for before, _ in node.grad_fn.next_functions:
                for weight in _leaves(before):
                    if weight.dim() > 1 and id(weight) in self.parameters.keys() - layers:
                        found[self.parameters[id(weight)]] = (
                            "a function computes a weight of it; make it that of a layer"
                        )
        return found

    def _unreached(self) -> dict[str, str]:
        """Layers that are called and not met by the trace, such as those before a detach()."""
        return {
            path: "no operation that autograd follows leads from it to an output"
            for module, path in self.paths.items()
            if isinstance(module, ROOTS)
            and module in self.called
            and module not in self.graph.module2node
            and not any(layout(owner) is not None for owner in self._owners(path))
        }

    def _owners(self, path: str) -> Iterator[nn.Module]:
        """The modules that `path` lies in."""
        return (module for module, own in self.paths.items() if own and path.startswith(f"{own}."))

    def _is_mask(self, node: Any, function: Any) -> bool:
        """Whether a layer makes one channel: it cannot go, and others meet it by spreading."""
        made = node.module in self.paths and self.side(node, function) == "out"
        return made and self.graph.get_out_channels(node) == 1

    def side(self, node: Any, function: Any) -> Side:
        pruner = self.graph.get_pruner_of_module(node.module)
        if pruner.prune_out_channels == pruner.prune_in_channels:
            return "out"
        return "out" if function == pruner.prune_out_channels else "in"

    def structure(self, outputs: set[Any], protect: tuple[str, ...]) -> Structure:
        sides = [
            (node, self.side(node, function), channels)
            for (node, function), channels in self.slots.items()
            if channels and (node.module in self.paths or id(node.module) in self.parameters)
        ]
        for node, side, channels in sides:
            self._join_grouped(node, side, channels)
        reasons = self._reasons(sides, outputs, protect)

        # Groups: units that share the output side of a layer.
        families = _Union()
        family: dict[int, int] = {}
        for node, side, channels in sides:
            if side != "out" or not isinstance(node.module, ROOTS):
                continue
            first: int | None = None
            for slot in channels.values():
                unit = self.union.find(slot)
                member = family.setdefault(unit, -1)
                if member < 0:
                    member = family[unit] = families.add()
                if first is None:
                    first = member
                families.join(first, member)
        members: dict[int, list[int]] = {}
        for unit, member in family.items():
            members.setdefault(families.find(member), []).append(unit)
        number = {
            unit: (key, position)
            for key, units in members.items()
            for position, unit in enumerate(sorted(units))
        }
        cuts: dict[int, list[Cut]] = {key: [] for key in members}
        for node, side, channels in sides:
            parts: dict[int, list[tuple[int, int]]] = {}
            for index, slot in sorted(channels.items()):
                found = number.get(self.union.find(slot))
                if found is not None:  # else channels that no layer makes, such as the image's
                    parts.setdefault(found[0], []).append((index, found[1]))
            for key, pairs in parts.items():
                cuts[key].append(self._cut(node, side, pairs))
        groups: list[Group] = []
        left_alone = self._without_layer() | self._unreached()
        order = {path: position for position, path in enumerate(self.paths.values())}
        for key, units in members.items():
            group = self._group(cuts[key], len(units), order)
            if group is None:
                continue
            why = next((reasons[unit] for unit in units if unit in reasons), None)
            if why is None and group.units < 2:
                why = "its channels cannot be told apart"
            if why is None:
                groups.append(group)
            else:
                left_alone[group.name] = why
        groups.sort(key=lambda group: order[group.name])
        return Structure(tuple(_with_heads(groups, self.paths)), left_alone)

    def _join_grouped(self, node: Any, side: Side, channels: dict[int, int]) -> None:
        """In groups of channels the same place goes in each, so that they stay equal."""
        module = node.module
        count = 1
        if is_depthwise(module) and self._join_made(node):
            return
        if isinstance(module, nn.modules.conv._ConvNd):
            count = module.groups
        elif isinstance(module, nn.GroupNorm):
            count = module.num_groups
        if count == 1:
            return
        total = self._width(module, side, channels)
        places: dict[int, int] = {}
        for index, slot in channels.items():
            self.union.join(places.setdefault(index % (total // count), slot), slot)
        if len(channels) != total:
            for slot in channels.values():
                self.broken[slot] = "a grouped layer has its channels and others"

    def _join_made(self, node: Any) -> bool:
        """The channels that a depthwise convolution makes of one go with it. False where those that
        it reads are no layer's (an image's)."""
        factor = multiplier(node.module)
        if factor == 1:
            return True  # the graph has one slot for both
        pruner = self.graph.get_pruner_of_module(node.module)
        read = self.slots.get((node, pruner.prune_in_channels), {})
        made = self.slots.get((node, pruner.prune_out_channels), {})
        if len(read) * factor != len(made):
            return False
        for index, slot in made.items():
            self.union.join(slot, read[index // factor])
        return True

    def _reasons(
        self,
        sides: list[tuple[Any, Side, dict[int, int]]],
        outputs: set[Any],
        protect: tuple[str, ...],
    ) -> dict[int, str]:
        reasons = {self.union.find(slot): why for slot, why in self.broken.items()}
        for (node, function), channels in self.slots.items():
            is_output = node.grad_fn in outputs or type(node.module).__name__ == "_OutputOp"
            if is_output and (self.side(node, function) == "out"):
                for slot in channels.values():
                    reasons.setdefault(self.union.find(slot), "it is an output of the network")
        for node, side, channels in sides:
            path = self.paths.get(node.module, "")
            why = None
            if path in self.shared:
                why = f"{path} shares its weights with another layer"
            elif isinstance(node.module, nn.LayerNorm) and len(node.module.normalized_shape) > 1:
                why = f"{path} normalises over more than the channels"
            elif (
                path in self.paths.values()
                and layout(node.module) is not None
                and (unsupported(node.module))
            ):
                why = f"{path} {unsupported(node.module)}"
            elif isinstance(node.module, (nn.LSTM, nn.Embedding)):
                why = f"{path} is a {type(node.module).__name__}"
            elif side == "out" and matches(path, protect):
                why = "protected"
            elif (
                side == "out"
                and isinstance(node.module, ROOTS)
                and (len(channels) != self._width(node.module, side, channels))
            ):
                why = f"only part of {path} was understood"
            if why:
                for slot in channels.values():
                    reasons.setdefault(self.union.find(slot), why)
        return reasons

    def _width(self, module: nn.Module, side: Side, channels: dict[int, int]) -> int:
        if isinstance(module, nn.Parameter):
            return int(module.shape[self.graph.module2node[module].pruning_dim])
        node = self.graph.module2node[module]
        get = self.graph.get_in_channels if side == "in" else self.graph.get_out_channels
        width = get(node)
        return int(width) if width else len(channels)

    def _cut(self, node: Any, side: Side, pairs: list[tuple[int, int]]) -> Cut:
        module = node.module
        indices = tuple(index for index, _ in pairs)
        units = tuple(unit for _, unit in pairs)
        if isinstance(module, nn.Parameter):
            width = int(module.shape[node.pruning_dim])
            return Cut(self.parameters[id(module)], side, indices, units, width, node.pruning_dim)
        width = self._width(module, side, dict.fromkeys(indices, 0))
        return Cut(self.paths[module], side, indices, units, width)

    def _group(self, cuts: list[Cut], units: int, order: dict[str, int]) -> Group | None:
        modules = {path: module for module, path in self.paths.items()}
        roots = [
            cut
            for cut in cuts
            if cut.side == "out" and cut.dim is None and isinstance(modules[cut.module], ROOTS)
        ]
        if not roots:
            return None
        root = min(roots, key=lambda cut: order[cut.module])
        return Group(root.module, units, len(root.indices), tuple(cuts))


def _leaves(end: Any) -> list[Tensor]:
    """The parameters that a value is computed of, where nothing else goes into it."""
    found, stack, seen = [], [end], set()
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if function.name().startswith(("ConvolutionBackward", "AddmmBackward", "MmBackward")):
            return []  # a map, and no weight
        if hasattr(function, "variable"):
            found.append(function.variable)
        stack += [before for before, _ in function.next_functions]
    return found


def _shared_tensors(paths: dict[nn.Module, str]) -> set[str]:
    seen: dict[int, str] = {}
    shared: set[str] = set()
    for module, path in paths.items():
        for parameter in module.parameters(recurse=False):
            other = seen.setdefault(id(parameter), path)
            if other != path:
                shared.update((other, path))
    return shared


def _with_heads(groups: list[Group], paths: dict[nn.Module, str]) -> list[Group]:
    """Attention in a stream: its inner width must follow, in whole heads."""
    modules = {path: module for module, path in paths.items()}
    result = []
    for group in groups:
        inner = []
        multiple = 1
        for cut in group.cuts:
            module = modules.get(cut.module)
            found = layout(module) if module is not None else None
            if module is None or found is None:
                continue
            heads = head_count(module)
            if found.tied:
                multiple = math.lcm(multiple, heads)
            width = int(module.get_submodule(found.proj).weight.shape[1])  # type: ignore[index]
            per_head = width // heads
            channels = tuple(range(width))
            places = tuple(channel % per_head for channel in channels)
            inner.append(
                Group(
                    f"{cut.module}.heads",
                    per_head,
                    width,
                    (Cut(cut.module, "inner", channels, places, width),),
                    multiple=heads,
                    tied_to=group.name if found.tied else None,
                )
            )
        result.append(
            Group(group.name, group.units, group.width, group.cuts, multiple) if inner else group
        )
        result.extend(inner)
    return result
