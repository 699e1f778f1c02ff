"""Layouts of attention layers: where the kinds that we can cut keep their projections.

Attention has two widths: the stream that goes in and out, and the inner width of its heads. Many
implementations need the two equal, though they are different channels: then their *widths* are
tied, and the channels of each are still chosen on their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class AttentionLayout:
    qkv: tuple[str, ...]
    """Weights of the projection to queries, keys and values: one tensor, or three."""
    biases: tuple[str, ...]
    proj: str
    heads: str = "num_heads"
    tied: bool = True
    """The forward pass takes the inner width for that of the stream."""
    rescale: bool = True
    """The softmax scale follows the width of a head, so the queries must make up for it."""

    @property
    def blocks(self) -> int:
        """How often the inner channels lie in each of `qkv`."""
        return 3 // len(self.qkv)


_MULTIHEAD = AttentionLayout(("in_proj_weight",), ("in_proj_bias",), "out_proj")
# transformers keeps the scale of its softmax as a number.
_APART = AttentionLayout(
    ("q_proj.weight", "k_proj.weight", "v_proj.weight"),
    ("q_proj.bias", "k_proj.bias", "v_proj.bias"),
    "o_proj", heads="num_attention_heads", tied=False, rescale=False,
)  # fmt: skip
_LAYOUTS = {
    ("torchvision.models.swin_transformer", "ShiftedWindowAttention"): AttentionLayout(
        ("qkv.weight",), ("qkv.bias",), "proj"
    ),
    ("torchvision.models.swin_transformer", "ShiftedWindowAttentionV2"): AttentionLayout(
        ("qkv.weight",), ("qkv.bias",), "proj", rescale=False
    ),
    ("torchvision.models.maxvit", "RelativePositionalMultiHeadAttention"): AttentionLayout(
        ("to_qkv.weight",), ("to_qkv.bias",), "merge", heads="n_heads", rescale=False
    ),
    ("timm.layers.attention", "Attention"): AttentionLayout(
        ("qkv.weight",), ("qkv.bias",), "proj", tied=False
    ),
    ("timm.models.swin_transformer", "WindowAttention"): AttentionLayout(
        ("qkv.weight",), ("qkv.bias",), "proj", tied=False
    ),
    **{
        (
            f"transformers.models.{family.lower()}.modeling_{family.lower()}",
            f"{family}Attention",
        ): _APART
        for family in ("ViT", "DeiT", "Swin", "Dinov2", "Beit", "Segformer")
    },
}


def layout(module: nn.Module) -> AttentionLayout | None:
    """How an attention layer is laid out, or None for any other module."""
    if isinstance(module, nn.MultiheadAttention):
        return _MULTIHEAD
    return _LAYOUTS.get((type(module).__module__, type(module).__name__))


def head_count(module: nn.Module) -> int:
    found = layout(module)
    return int(getattr(module, found.heads)) if found else 1


def unsupported(module: nn.Module) -> str | None:
    """Why the channels of this attention layer cannot be cut, or None."""
    if isinstance(module, nn.MultiheadAttention):
        if not module._qkv_same_embed_dim or module.bias_k is not None:
            return "has keys or values of another width"
        return None
    for name in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(module, name, None), (nn.Identity, type(None))):
            return "normalises its queries and keys"
    if getattr(module, "gate", None) is not None:
        return "has a gate"
    if hasattr(module, "sequence_reduction"):
        return "reduces its keys by a convolution of its own"
    return None


def set_attention_width(module: nn.Module, inner: bool, width: int) -> None:
    """Write a new stream or inner width into the numbers that an attention layer keeps."""
    found = layout(module)
    assert found is not None
    proj: Any = module.get_submodule(found.proj)
    layers: list[Any] = [
        module.get_submodule(name.rpartition(".")[0]) for name in found.qkv if "." in name
    ]
    if inner:
        proj.in_features = width
        for layer in layers:
            layer.out_features = found.blocks * width
        head_width = width // head_count(module)
        for name, value in (("head_dim", head_width), ("attn_dim", width)):
            if hasattr(module, name):
                setattr(module, name, value)
        if found.rescale and isinstance(getattr(module, "scale", None), float):
            module.scale = head_width**-0.5
        return
    proj.out_features = width
    for layer in layers:
        layer.in_features = width
    for name in ("embed_dim", "kdim", "vdim"):
        if isinstance(module, nn.MultiheadAttention):
            setattr(module, name, width)
