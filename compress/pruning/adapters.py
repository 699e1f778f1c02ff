"""Makes modules traceable that torch-pruning cannot trace, on the copy that is traced.

A module whose inside confuses the graph becomes one opaque operation that keeps its channels. A
module whose channels move in a known way becomes an operation with that mapping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .attention import layout

# Modules that keep the channels in place while they reshape what is around them.
_OPAQUE = {
    ("torchvision.models.maxvit", "WindowPartition"),
    ("torchvision.models.maxvit", "WindowDepartition"),
    ("torchvision.models.maxvit", "SwapAxes"),
}
# Norms over the channels of maps [B, C, H, W]: drawn whole, since they move the channels around.
_MAP_NORMS = {("transformers.models.convnext.modeling_convnext", "ConvNextLayerNorm")}
_SHUFFLES = {("torchvision.models.shufflenetv2", "InvertedResidual")}
_MERGES = {
    ("torchvision.models.swin_transformer", "PatchMerging"),
    ("torchvision.models.swin_transformer", "PatchMergingV2"),
}
_LONG_MERGES = {("transformers.models.swin.modeling_swin", "SwinPatchMerging")}

# Numbers that a network keeps about a layer inside it and reshapes by: attribute to layer.
_FOLLOWERS = {
    ("torchvision.models.vision_transformer", "VisionTransformer"): {"hidden_dim": "conv_proj"},
}


def follow(model: nn.Module) -> None:
    """Set such numbers to what the layers now have."""
    for module in model.modules():
        kind = (type(module).__module__, type(module).__name__)
        for attribute, layer in _FOLLOWERS.get(kind, {}).items():
            setattr(module, attribute, module.get_submodule(layer).out_channels)


class _Opaque(torch.autograd.Function):
    """One node of the graph, whatever `function` does inside; channels stay in place."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(images.detach()).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("the traced copy has no gradients")


class _Shuffle(_Opaque):
    """Channels change places in a way that pruning must leave whole."""


class _Tile(torch.autograd.Function):
    """[..., C] to [..., 4 C]: output channel j is input channel j modulo C."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.width = tokens.shape[-1]
        return function(tokens.detach()).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("the traced copy has no gradients")


def prepare(mirror: nn.Module) -> None:
    """Replace the forward pass of such modules in `mirror`, the copy that is traced."""
    for module in mirror.modules():
        kind = (type(module).__module__, type(module).__name__)
        if isinstance(module, nn.MultiheadAttention):
            module.forward = _attention(module.forward)  # type: ignore[method-assign]
        elif kind[0].startswith("transformers.") and layout(module) is not None:
            module.forward = _with_weights(module.forward)
        elif layout(module) is not None or kind in _OPAQUE | _MAP_NORMS or _frozen_norm(module):
            module.forward = _opaque(module.forward)
        elif kind in _LONG_MERGES:
            module.forward = _long_merge(module)
        elif kind in _MERGES:
            module.forward = _merge(module)
        elif kind in _SHUFFLES:
            module.forward = _shuffle(module)


def _opaque(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def drawn(images: Tensor, *rest: Any, **options: Any) -> Tensor:
        return _call(_Opaque, images, lambda plain: forward(plain, *rest, **options))

    return drawn


def _with_weights(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Attention that returns its weights as well."""

    def drawn(tokens: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        made = _call(_Opaque, tokens, lambda plain: forward(plain, *rest, **options)[0])
        return made, None

    return drawn


def _attention(forward: Callable[..., Any]) -> Callable[..., Any]:
    def drawn(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> tuple[Tensor, None]:
        # all three share the stream's channels, whatever their lengths
        joined = query + key.mean(dim=-2, keepdim=True) + value.mean(dim=-2, keepdim=True)
        if query is key and key is value:
            joined = query
        return _call(_Opaque, joined, lambda _: forward(query, key, value, **options)[0]), None

    return drawn


def _merge(module: Any) -> Callable[[Tensor], Tensor]:
    from torchvision.models.swin_transformer import _patch_merging_pad

    v2 = type(module).__name__.endswith("V2")

    def drawn(tokens: Tensor) -> Tensor:
        tiled = _call(_Tile, tokens, _patch_merging_pad)
        if v2:
            return module.norm(module.reduction(tiled))  # type: ignore[no-any-return]
        return module.reduction(module.norm(tiled))  # type: ignore[no-any-return]

    return drawn


def _long_merge(module: Any) -> Callable[..., Tensor]:
    """As `_merge`, where the tokens [B, N, C] come with the sides of their map."""
    bare = copy.copy(module)  # what only moves values
    bare._modules = {"norm": nn.Identity(), "reduction": nn.Identity()}

    def drawn(tokens: Tensor, sides: tuple[int, int]) -> Tensor:
        tiled = _call(_Tile, tokens, lambda plain: bare(plain, sides))
        return module.reduction(module.norm(tiled))  # type: ignore[no-any-return]

    return drawn


def _shuffle(module: Any) -> Callable[[Tensor], Tensor]:
    def drawn(images: Tensor) -> Tensor:
        if module.stride == 1:
            whole = _call(_Shuffle, images, lambda plain: plain)
            kept, changed = whole.chunk(2, dim=1)
            parts = (kept, _call(_Shuffle, module.branch2(changed), lambda plain: plain))
        else:
            parts = (module.branch1(images), module.branch2(images))
        return _call(_Shuffle, torch.cat(parts, dim=1), lambda plain: plain)

    return drawn


def _call(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    return function.apply(*arguments)  # type: ignore[no-any-return]


def _frozen_norm(module: nn.Module) -> bool:
    return type(module).__name__.startswith("FrozenBatchNorm")


def customized_pruners(mirror: nn.Module) -> dict[Any, Any]:
    """Fresh torch-pruning functions for modules that its own do not know.

    They are only for the graph: they say that channels go straight through. What is cut, and
    where, is in `structure.slices`.
    """
    from torch_pruning.pruner.function import BasePruningFunc

    class Through(BasePruningFunc):  # type: ignore[misc]
        def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
            raise RuntimeError("the traced copy is never cut")

        prune_in_channels = prune_out_channels

        def get_out_channels(self, layer: nn.Module) -> int:
            return stream_width(layer)

        get_in_channels = get_out_channels

    return {
        type(module): Through()
        for module in mirror.modules()
        if layout(module) is not None or _frozen_norm(module)
    }


def stream_width(module: nn.Module) -> int:
    found = layout(module)
    if found is not None:
        return int(module.get_submodule(found.proj).weight.shape[0])  # type: ignore[index]
    return int(module.weight.shape[0])  # type: ignore[index]


def remap(graph: Any) -> None:
    """Give the drawn operations their mappings of channels."""
    for node in graph.module2node.values():
        name = type(node.grad_fn).__name__
        if name == "_TileBackward":
            _set_mappings(node, _tile(node.grad_fn.width), _untile(node.grad_fn.width))
            for reader in node.outputs:  # the library takes a wider linear layer for a flatten
                for dependency in (*reader.dependencies, *node.dependencies):
                    if {dependency.source, dependency.target} == {reader, node}:
                        dependency.index_mapping[0] = None
        elif name == "_ShuffleBackward":
            _set_mappings(node, _lost, _lost)


def _set_mappings(node: Any, forward: Any, backward: Any) -> None:
    for source in node.inputs:
        for dependency in source.dependencies:
            if dependency.target is node:
                dependency.index_mapping[1] = forward
        for dependency in node.dependencies:
            if dependency.target is source:
                dependency.index_mapping[0] = backward


def _tile(width: int) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [
        item._replace(idx=item.idx + block * width) for item in items for block in range(4)
    ]


def _untile(width: int) -> Callable[[list[Any]], list[Any]]:
    return lambda items: [item._replace(idx=item.idx % width) for item in items]


def _lost(items: list[Any]) -> list[Any]:
    """No root index: the walk takes the channels for not understood and leaves them alone."""
    return [item._replace(root_idx=None) for item in items]
