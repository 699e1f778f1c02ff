"""Attention with its matrix products as separate operations, so that they can be quantised.

These modules replace the library's own ones, which hide their products in one call. Parameters keep
their names. A function that only moves values is a leaf of the graph, because it looks at shapes.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn


class OtherAttention(Exception):
    """What `SelfAttention` does not compute."""


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` as vision transformers use it: query, key and value are one tensor
    [B, N, D] (batch first), and there is no mask. Anything else stops the tracer, and the module
    is left whole.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.in_proj_weight, self.in_proj_bias = source.in_proj_weight, source.in_proj_bias
        self.out_proj = source.out_proj
        self.dropout = nn.Dropout(source.dropout)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, None]:  # fmt: skip
        if key is not query or value is not query:
            raise OtherAttention("attention between several tensors")
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise OtherAttention("attention under a mask")
        made = nn.functional.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = _heads(made, self.num_heads, self.head_dim)
        scores = torch.matmul(q * self.head_dim**-0.5, k)
        weights = self.dropout(scores.softmax(-1))
        return self.out_proj(torch.matmul(weights, v).transpose(1, 2).flatten(2, 3)), None


def _heads(made: Tensor, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and values [B, heads, N, D] and keys [B, heads, D, N] of one projection."""
    q, k, v = made.chunk(3, -1)
    heads = (num_heads, head_dim)
    q, v = (torch.unflatten(part, -1, heads).transpose(1, 2) for part in (q, v))
    return q, torch.unflatten(k, -1, heads).permute(0, 2, 3, 1), v


class WindowAttention(nn.Module):
    """torchvision's `ShiftedWindowAttention` (Swin), between maps [B, H, W, C]."""

    qkv: nn.Linear
    proj: nn.Linear
    relative_position_index: Tensor
    relative_position_bias_table: Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.window, self.shift = list(source.window_size), list(source.shift_size)
        self.qkv, self.proj = source.qkv, source.proj
        self.num_heads = int(source.num_heads)
        self.head_dim = self.qkv.in_features // self.num_heads
        self.weight_dropout = nn.Dropout(source.attention_dropout)
        self.dropout = nn.Dropout(source.dropout)
        self.register_buffer("relative_position_index", source.relative_position_index)
        self._take_position_bias(source)

    def forward(self, x: Tensor) -> Tensor:
        made = self._project(split_windows(x, self.window, self.shift))
        q, k, v = _heads(made, self.num_heads, self.head_dim)
        scores = self._scores(q, k)
        scores = hide_strangers(scores + self._position_bias(), x, self.window, self.shift)
        weights = self.weight_dropout(scores.softmax(-1))
        made = self.proj(torch.matmul(weights, v).transpose(1, 2).flatten(2, 3))
        return join_windows(self.dropout(made), x, self.window, self.shift)

    def _take_position_bias(self, source: Any) -> None:
        self.relative_position_bias_table = source.relative_position_bias_table

    def _project(self, x: Tensor) -> Tensor:
        made: Tensor = self.qkv(x)
        return made

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.matmul(q * self.head_dim**-0.5, k)

    def _position_bias(self) -> Tensor:
        return self._between_places(self.relative_position_bias_table)

    def _between_places(self, table: Tensor) -> Tensor:
        """[1, heads, N, N] for the N places of a window."""
        places = self.window[0] * self.window[1]
        bias = torch.unflatten(table[self.relative_position_index], 0, (places, places))
        return bias.permute(2, 0, 1).unsqueeze(0)


class CosineWindowAttention(WindowAttention):
    """torchvision's `ShiftedWindowAttentionV2` (Swin V2): it compares directions, and its keys have
    no bias. torchvision clears that part in every pass, a mask does here.
    """

    logit_scale: Tensor
    cpb_mlp: nn.Module
    relative_coords_table: Tensor
    without_key_bias: Tensor

    def _take_position_bias(self, source: Any) -> None:
        self.logit_scale, self.cpb_mlp = source.logit_scale, source.cpb_mlp
        self.register_buffer("relative_coords_table", source.relative_coords_table)
        mask = torch.ones(3, self.qkv.in_features)
        mask[1] = 0
        self.register_buffer("without_key_bias", mask.flatten(), persistent=False)

    def _project(self, x: Tensor) -> Tensor:
        bias = None if self.qkv.bias is None else self.qkv.bias * self.without_key_bias
        return nn.functional.linear(x, self.qkv.weight, bias)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        factor = self.logit_scale.clamp(max=math.log(100.0)).exp()
        return torch.matmul(unit(q, -1), unit(k, -2)) * factor

    def _position_bias(self) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        return torch.sigmoid(self._between_places(table)) * 16


def _grid(x: Tensor, window: list[int], shift: list[int]) -> tuple[list[int], list[int]]:
    """How many windows a map [B, H, W, C] has each way, and the shift; none for a single window."""
    counts = [-(-size // w) for size, w in zip(x.shape[1:3], window, strict=True)]
    return counts, [0 if n == 1 else s for n, s in zip(counts, shift, strict=True)]


@fx.wrap
def split_windows(x: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """The windows [B * windows, N, C] of a map [B, H, W, C] that is padded with zeros and rolled
    by `shift`."""
    counts, shift = _grid(x, window, shift)
    edges = [n * w - size for n, w, size in zip(counts, window, x.shape[1:3], strict=True)]
    x = nn.functional.pad(x, (0, 0, 0, edges[1], 0, edges[0]))
    if any(shift):
        x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    x = torch.unflatten(x, 2, (counts[1], window[1]))
    x = torch.unflatten(x, 1, (counts[0], window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


@fx.wrap
def join_windows(x: Tensor, like: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """The map of windows [B * windows, N, C], of the height and width of `like` [B, H, W, C]."""
    counts, shift = _grid(like, window, shift)
    x = torch.unflatten(x, 1, (window[0], window[1]))
    x = torch.unflatten(x, 0, (-1, counts[0], counts[1]))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if any(shift):
        x = torch.roll(x, (shift[0], shift[1]), (1, 2))
    return x[:, : like.shape[1], : like.shape[2]]


@fx.wrap
def hide_strangers(scores: Tensor, like: Tensor, window: list[int], shift: list[int]) -> Tensor:
    """The scores [B * windows, heads, N, N], 100 less between places that the roll brought
    together."""
    counts, shift = _grid(like, window, shift)
    if not any(shift):
        return scores
    region = scores.new_zeros(1)
    for axis in range(2):
        place = torch.arange(counts[axis] * window[axis], device=scores.device)
        last = len(place) - place
        part = (last <= window[axis]).to(scores.dtype) + (last <= shift[axis]).to(scores.dtype)
        region = region.unsqueeze(-1) * 3 + part * bool(shift[axis])
    region = torch.unflatten(region[0], 1, (counts[1], window[1]))
    region = torch.unflatten(region, 0, (counts[0], window[0]))
    region = region.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    strange = (region.unsqueeze(1) != region.unsqueeze(2)).to(scores.dtype) * -100.0
    apart = torch.unflatten(scores, 0, (-1, counts[0] * counts[1])) + strange.unsqueeze(1)
    return apart.flatten(0, 1)


@fx.wrap
def unit(x: Tensor, dim: int) -> Tensor:
    """Vectors along `dim`, of length one."""
    return nn.functional.normalize(x, dim=dim)


@fx.wrap
def attention_scale(q: Tensor) -> float:
    """1 / sqrt(D) of queries [..., N, D]."""
    return float(q.shape[-1] ** -0.5)


def open_products(graph: fx.GraphModule) -> None:
    """Write calls of `scaled_dot_product_attention` as two products and a softmax.

    Those without a mask; one that drops weights does so in evaluation too, and stays.
    """
    sdpa = nn.functional.scaled_dot_product_attention
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    for node in list(graph.graph.find_nodes(op="call_function", target=sdpa)):
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        q, k, v, scale = (given.pop(name, None) for name in ("query", "key", "value", "scale"))
        if any(bool(value) for value in given.values()):
            continue
        with graph.graph.inserting_before(node):
            make = graph.graph.call_function
            factor = make(attention_scale, (q,)) if scale is None else scale
            keys = graph.graph.call_method("transpose", (k, -2, -1))
            scores = make(torch.matmul, (make(operator.mul, (q, factor)), keys))
            made = make(torch.matmul, (make(torch.softmax, (scores, -1)), v))
        node.replace_all_uses_with(made)
        graph.graph.erase_node(node)


def open_attention(model: nn.Module, leaves: frozenset[str]) -> None:
    """Replace the attention modules that ours can stand for, but those at the paths `leaves`."""
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if (f"{path}.{name}" if path else name) in leaves:
                continue
            if _is_plain(child):
                assert isinstance(child, nn.MultiheadAttention)
                parent.add_module(name, SelfAttention(child))
            elif (ours := _windowed(child)) is not None:
                parent.add_module(name, ours(child))


def keep_masks(model: nn.Module) -> None:
    """Let the shifted windows of transformers' Swin read their mask from a buffer: the graph then
    has it as a tensor of its own. The sizes are those of the first call."""
    for module in model.modules():
        if type(module).__module__ == "transformers.models.swin.modeling_swin" and hasattr(
            module, "get_attn_mask"
        ):
            _keep_mask(module)


def _keep_mask(layer: Any) -> None:
    make = layer.get_attn_mask

    def kept(*sizes: Any, **options: Any) -> Tensor | None:
        if not hasattr(layer, "attn_mask"):
            layer.register_buffer("attn_mask", make(*sizes, **options))
        found: Tensor | None = layer.attn_mask
        return found

    layer.get_attn_mask = kept


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.batch_first
        and module.bias_k is None
        and not module.add_zero_attn
    )


def _windowed(module: nn.Module) -> type[WindowAttention] | None:
    """What stands for torchvision's attention in windows; None for others, and for one that was
    pruned to heads of another width."""
    from torchvision.models import swin_transformer as swin

    kinds: dict[type[nn.Module], type[WindowAttention]] = {
        swin.ShiftedWindowAttention: WindowAttention,
        swin.ShiftedWindowAttentionV2: CosineWindowAttention,
    }
    found, qkv = kinds.get(type(module)), getattr(module, "qkv", None)
    if type(qkv) is not nn.Linear or qkv.out_features != 3 * qkv.in_features:
        return None
    return found
