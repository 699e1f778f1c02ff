"""Options that every command of `vcompress` shares, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import at_least, check_ranges, share

TargetName = Literal["onnxruntime", "openvino", "tensorrt"]
"""The tables of rules in `quantization/targets/`, which needs torch and so is not read here."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Data, preprocessing, and how a command runs."""

    task: str | None = None
    """Task of the network: classification, multilabel or regression. Default: the bundle's, else
    classification."""
    data: str | None = None
    """Data set: digits, a folder (of class folders; for multilabel with labels.csv, for regression
    with targets.csv, for segmentation of images and masks), torchvision:NAME, or your own
    module:factory. Default: what the bundle was made with, else digits."""
    data_root: str | None = None
    """Folder where the files of torchvision:NAME are, or shall go; own code is told it too."""
    classes: str | None = None
    """Text file with a name for each output of the network, a line each and in order, where the
    folders of --data are some of its classes or in another order: by the name, its first word (a
    wnid) or the number of the output. The word imagenet means the 1,000 classes of ImageNet."""
    image_size: int | None = None
    """Side of the network's square input, pixels. Default: the bundle's, else by the data."""
    preprocess: str | None = None
    """Preprocessing: imagenet, or JSON (or a .json file) with size, resize, mean, std, channels
    (RGB, L or RGBA), interpolation. Default: the bundle's, else by the data."""
    augment: Literal["auto", "none", "affine", "crop-flip", "rand", "trivial"] = "auto"
    """Augmentation of the training images. auto: affine up to 64 px, crop-flip above. rand
    (RandAugment) and trivial (TrivialAugmentWide) follow crop-flip above 64 px, and stand alone
    below."""
    erase: Annotated[float, share()] = 0.0
    """Probability, from 0 to 1, that a rectangle of a training image is erased (random erasing)."""
    on_bad_image: Literal["fail", "skip"] = "fail"
    """Treatment of an image that cannot be read. fail: the run ends; skip: the image is left out,
    counted and named at the end."""
    weights: str | None = None
    """Initial weights of a model that is only a name: default (the library's pretrained weights) or
    a file. Default: random weights."""
    checkpoint_key: str | None = None
    """Path of the weights inside the file of --weights, such as model_ema or net.state_dict.
    Default: what fits the network best, averaged weights first."""
    head: str | None = None
    """Path of the layer that gives the logits, such as classifier.3. Default: what the model's
    library records, or what follows the number of classes."""
    output: str | None = None
    """Output that counts, of a network that gives a dictionary or a tuple: its name or its number,
    from 0. Default: out where there is one, else the first tensor."""
    data_licence: str | None = None
    """Licence of the images: an SPDX identifier such as CC-BY-4.0, or words. Default: what the
    bundle says, what is known of digits, else unknown."""
    weights_licence: str | None = None
    """Licence of the weights: an SPDX identifier, or words. Default: what the bundle says, else
    unknown."""
    trust: str | None = None
    """Names of your own module:factory, with commas between several, that a bundle may run when
    its network or its data are loaded."""
    seed: Annotated[int, at_least(0)] = 0
    """Random seed for the split, the weights, the order and the augmentation, 0 or more."""
    resume: bool = False
    """Go on where a run with the same options stopped."""
    overwrite: bool = False
    """Replace a bundle that is already at --out."""
    threads: Annotated[int | None, at_least(1)] = None
    """Number of threads that latencies are measured with, in pruning, verdicts, tables and vbench,
    1 or more. Default: the bundle's, else 1."""
    robustness: Annotated[int, at_least(0)] = 0
    """Number of test images on which robustness is measured, for the report; 0 leaves it out."""
    track: tuple[str, ...] = ()
    """Trackers: tensorboard, wandb, mlflow."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.resume and self.overwrite:
            raise UserError("--resume and --overwrite contradict each other; give one.")
        if self.checkpoint_key is not None and self.weights == "default":
            raise UserError("--checkpoint-key names weights in a file; give --weights FILE.")
        for name in ("data_licence", "weights_licence"):
            text = getattr(self, name)
            if text is not None and not (text.strip() and text.isprintable() and len(text) <= 200):
                raise UserError(
                    f"{name} = {text!r:.80}: expected an SPDX identifier such as CC-BY-4.0, or up "
                    f"to 200 printable characters."
                )
