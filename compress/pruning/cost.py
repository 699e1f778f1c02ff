"""Predicts the cost of widths from one forward pass of the unpruned network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .attention import layout
from .functional import Again, Call, Calls
from .shadow import run, shadow
from .structure import Group, is_depthwise, named_tensor, slices

SideKey = tuple[str, str]


@dataclass(frozen=True)
class CostModel:
    """Costs as sums of products of widths.

    `terms[i]` is an amount and the sides whose kept share it is multiplied by; `fixed` depends on
    no width. Predictions are exact but for operations outside layers (counted in `fixed`).
    """

    terms: tuple[tuple[float, tuple[SideKey, ...]], ...]
    fixed: float
    shares: dict[SideKey, tuple[tuple[str, float], ...]]
    """Per side: group name and the share of the side that the whole group holds."""

    def at(self, kept: Mapping[str, float]) -> float:
        """Cost where `kept` maps a group's name to the share of its units that stay."""
        left = {
            key: 1.0 - sum(share * (1.0 - kept.get(name, 1.0)) for name, share in parts)
            for key, parts in self.shares.items()
        }
        total = self.fixed
        for amount, sides in self.terms:
            for side in sides:
                amount *= left.get(side, 1.0)
            total += amount
        return total


def side_shares(groups: Sequence[Group]) -> dict[SideKey, tuple[tuple[str, float], ...]]:
    """Per side of a layer, the groups on it and the share of its channels that each has."""
    shares: dict[SideKey, list[tuple[str, float]]] = {}
    for group in groups:
        for cut in group.cuts:
            shares.setdefault((cut.module, cut.side), []).append(
                (group.name, len(cut.indices) / cut.width)
            )
    return {key: tuple(parts) for key, parts in shares.items()}


def parameter_cost(model: nn.Module, groups: Sequence[Group]) -> CostModel:
    """Number of parameters."""
    shares = side_shares(groups)
    modules = dict(model.named_modules())
    sides: dict[int, list[SideKey]] = {}
    for path, side in shares:
        if path not in modules:
            sides.setdefault(id(named_tensor(model, path)), []).append((path, side))
            continue
        for part in slices(modules[path], side):  # type: ignore[arg-type]
            tensor = named_tensor(modules[path], part.tensor)
            if isinstance(tensor, nn.Parameter):
                sides.setdefault(id(tensor), []).append((path, side))
    terms, fixed = [], 0.0
    for parameter in model.parameters():
        if id(parameter) in sides:
            terms.append((float(parameter.numel()), tuple(sides[id(parameter)])))
        else:
            fixed += parameter.numel()
    return CostModel(tuple(terms), fixed, shares)


def channel_cost(groups: Sequence[Group]) -> CostModel:
    """Channels, each group counted once."""
    terms = tuple((float(group.width), ((group.name, "group"),)) for group in groups)
    shares: dict[SideKey, tuple[tuple[str, float], ...]] = {
        (group.name, "group"): ((group.name, 1.0),) for group in groups
    }
    return CostModel(terms, 0.0, shares)


def mac_cost(model: nn.Module, example: Tensor, groups: Sequence[Group], total: int) -> CostModel:
    """Multiply-accumulates of one image like `example` [1, C, H, W]; `total` was counted."""
    terms: list[tuple[float, tuple[SideKey, ...]]] = []

    def remember(path: str, module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        if isinstance(output, tuple):
            output = output[0]
        if not isinstance(output, Tensor):
            return
        both = ((path, "out"), (path, "in"))
        if isinstance(module, nn.modules.conv._ConvNd):
            spatial = inputs[0] if module.transposed else output
            places = spatial[0, 0].numel()
            macs = float(places * module.weight.numel())
            # an input side in groups shrinks with the output side's own groups
            terms.append((macs, both[:1] if is_depthwise(module) else both))
        elif isinstance(module, nn.Linear):
            rows = output.numel() // module.out_features
            terms.append((float(rows * module.weight.numel()), both))
        else:
            found = layout(module)
            if found is None:
                return
            output = output[0] if isinstance(output, tuple) else output
            rows = output.numel() // output.shape[-1]
            qkv = sum(named_tensor(module, name).numel() for name in found.qkv)
            proj = named_tensor(module, f"{found.proj}.weight").numel()
            stream, inner = (path, "out"), (path, "inner")
            calls = {f"{path}.{name}" for name, _ in module.named_modules() if name}
            terms[:] = [term for term in terms if term[1][0][0] not in calls]
            terms.append((float(rows * (qkv + proj)), (stream, inner)))

    def remember_call(call: Call, images: Tensor, again: Again) -> Tensor:
        output = again(None, images)
        weight = call.held.get("weight")
        if weight is not None and weight.dim() > 1:
            both = ((call.name, "out"), (call.name, "in"))
            spatial = images if call.transposed else output
            places = spatial[0, 0].numel() if weight.dim() > 2 else spatial[..., 0].numel()
            alone = is_depthwise(call.stand_in())
            terms.append((float(places * weight.numel()), both[:1] if alone else both))
        return output

    copy = shadow(model, lambda tensor: tensor)
    copy.eval()
    for path, module in copy.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) or layout(module) is not None:
            module.register_forward_hook(
                lambda module, inputs, output, path=path: remember(path, module, inputs, output)
            )
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), Calls(copy, remember_call):
            run(copy, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return CostModel(tuple(terms), total - sum(amount for amount, _ in terms), side_shares(groups))
