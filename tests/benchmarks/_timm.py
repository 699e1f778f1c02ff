"""Networks of timm that the sweeps try: those people deploy, and one of each unusual form."""

from __future__ import annotations

from typing import Any

NAMES = (
    "resnet50", "resnet50d", "resnext50_32x4d", "resnetv2_50", "regnety_016",
    "efficientnet_b0", "tf_efficientnetv2_s", "mobilenetv3_large_100",
    "mobilenetv4_conv_small", "mobilenetv2_100", "ghostnet_100", "densenet121",
    "convnext_tiny", "convnextv2_tiny", "vgg16_bn", "hrnet_w18", "repvgg_a2",
    "res2net50_26w_4s", "vit_small_patch16_224", "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224", "mixer_s16_224", "levit_192", "efficientformer_l1",
    "fastvit_t8", "edgenext_small",
)  # fmt: skip


def listed() -> list[str]:
    return [f"timm:{name}" for name in NAMES]


def build(name: str) -> Any:
    """`timm:<name>` with random weights."""
    import timm

    return timm.create_model(name.removeprefix("timm:"))


def size(name: str) -> int:
    """Of the images that a network was made for."""
    import timm

    return int(timm.get_pretrained_cfg(name.removeprefix("timm:")).input_size[-1])
