"""Options that every command of `vcompress` shares, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vcompress.bench.errors import UserError

TargetName = Literal["onnxruntime", "openvino", "tensorrt"]
"""The tables of rules in `quantization/targets/`, which needs torch and so is not read here."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Data, preprocessing and how a command runs."""

    data: str | None = None
    """digits, a folder of class folders, or torchvision:NAME. Default: what the bundle was made
    with, else digits."""
    data_root: str | None = None
    """Where the files of torchvision:NAME are, or shall go."""
    image_size: int | None = None
    """Side of the network's square input, pixels. Default: the bundle's, else by the data."""
    preprocess: str | None = None
    """imagenet, or JSON (or a .json file) with size, resize, mean, std, channels, interpolation."""
    augment: Literal["auto", "none", "affine", "crop-flip", "rand", "trivial"] = "auto"
    """Of the training images; auto takes affine up to 64 px and crop-flip above. rand (RandAugment)
    and trivial (TrivialAugmentWide) come after crop-flip above 64 px, and stand alone below."""
    erase: float = 0.0
    """Probability that a rectangle of a training image is blotted out."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """An image that cannot be read ends the run, or is left out, counted and named at the end."""
    weights: str | None = None
    """Where a model named here starts: default (the library's pretrained weights) or a file."""
    data_licence: str | None = None
    """Of the images: an SPDX identifier such as CC-BY-4.0, or words. Default: what the bundle says,
    what is known of digits, else unknown."""
    weights_licence: str | None = None
    """Of the weights. Default: what the bundle says, else unknown."""
    trust: str | None = None
    """Your own module:factory that a bundle may run when it is loaded."""
    seed: int = 0
    """Of the split, the weights, the order and the augmentation."""
    resume: bool = False
    """Go on where a run with the same options stopped."""
    overwrite: bool = False
    """Replace a bundle that is already at --out."""
    robustness: int = 0
    """Test images on which robustness is measured, for the report; 0 leaves it out."""
    track: tuple[str, ...] = ()
    """Trackers: tensorboard, wandb, mlflow."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed = {self.seed}: it must be 0 or more.")
        if self.robustness < 0:
            raise UserError(f"robustness = {self.robustness}: it must be 0 or more.")
        if not 0 <= self.erase <= 1:
            raise UserError(f"erase = {self.erase}: it must be from 0 to 1.")
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite contradict each other; give one.")
        for name in ("data_licence", "weights_licence"):
            text = getattr(self, name)
            if text is not None and not (text.strip() and text.isprintable() and len(text) <= 200):
                raise UserError(
                    f"{name} = {text!r:.80}: expected an SPDX identifier such as CC-BY-4.0, or up "
                    f"to 200 printable characters."
                )
