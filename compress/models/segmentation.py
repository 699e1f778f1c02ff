"""Networks that give every pixel a class, by name: torchvision's own,
`smp:ARCHITECTURE-ENCODER`, and the heads FCN, DeepLabV3 and LR-ASPP on any backbone of torchvision
or timm (`deeplabv3+r18`).

What they give stays at the stride of the head: `[B, K, h, w]` logits. Whoever wants them at the
size of the image resizes them, after the network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import EnvironmentLacks, UserError, nearest, to_install
from vcompress.export.modes import evaluating

HEADS = ("fcn", "deeplabv3", "lraspp")
SMP = "smp:"
_FINEST, _USUAL = 8, 16
"""Output strides: of ResNets, as torchvision has them, and of other backbones."""
_LOW = 8
"""Stride of the finer features that LR-ASPP adds."""
_SIDE = 128
"""Height and width of the image that shows a backbone's strides."""


class Segmenter(nn.Module):
    """A backbone with a head. The names of its tensors are those of torchvision's networks.

    Gives logits `[B, K, h, w]`; in training with an auxiliary head `{"out": ..., "aux": ...}`.
    """

    def __init__(
        self, backbone: nn.Module, classifier: nn.Module, aux_classifier: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.classifier = backbone, classifier
        self.aux_classifier = aux_classifier
        self.takes_two = "low_classifier" in dict(classifier.named_children())

    def forward(self, images: Tensor) -> Any:
        """From `[B, C, H, W]`."""
        features = self.backbone(images)
        if self.takes_two:
            return self.classifier(features)
        found = self.classifier(features["out"])
        if self.aux_classifier is None or not self.training:
            return found
        return {"out": found, "aux": self.aux_classifier(features["aux"])}


class _ByName(nn.Module):
    """timm's features under the names that heads ask for."""

    def __init__(self, network: nn.Module, places: Mapping[str, int]) -> None:
        super().__init__()
        self.network, self.places = network, dict(places)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.network(images)
        return {name: features[place] for name, place in self.places.items()}


def factory(name: str, classifier: Callable[[str], Any]) -> Callable[..., nn.Module] | None:
    """What builds the network `name` from `num_classes`; None for a name of another kind.

    Args:
        classifier: gives the factory of a classification network by its name, whose trunk becomes
            the backbone.

    Raises:
        UserError: an unknown head, architecture or encoder.
        EnvironmentLacks: segmentation_models_pytorch is not installed.
    """
    if name.startswith(SMP):
        return _smp(name)
    if name in names():
        return partial(_of_torchvision, name)
    head, plus, backbone = name.partition("+")
    if not plus or ":" in head:
        return None
    if head not in HEADS:
        raise UserError(
            f"unknown head {head!r} in {name!r}.{nearest(head, HEADS)} Expected HEAD+BACKBONE with "
            f"one of {', '.join(HEADS)}, such as deeplabv3+r18."
        )
    if not backbone:
        raise UserError(f"{name!r}: no backbone behind the +. Expected one such as {head}+r18.")
    return partial(_assembled, head, backbone, classifier)


def is_one(name: str) -> bool:
    """Whether `name` is that of a network which `factory` builds."""
    return name.startswith(SMP) or "+" in name or name in names()


def names() -> list[str]:
    """torchvision's own."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models.segmentation))


def head_paths(model: nn.Module) -> tuple[str, ...]:
    """Dotted names of the layers whose outputs are the logits; empty for another network than
    those that are built here."""
    if isinstance(model, Segmenter):
        if model.takes_two:
            return ("classifier.low_classifier", "classifier.high_classifier")
        found = [f"classifier.{len(model.classifier) - 1}"]  # type: ignore[arg-type]
        if model.aux_classifier is not None:
            found.append(f"aux_classifier.{len(model.aux_classifier) - 1}")  # type: ignore[arg-type]
        return tuple(found)
    return ("segmentation_head.0",) if hasattr(model, "segmentation_head") else ()


def backbone_of(model: nn.Module) -> nn.Module | None:
    """The part that classification weights fit."""
    if isinstance(model, Segmenter):
        backbone = model.backbone
        return backbone.network if isinstance(backbone, _ByName) else backbone
    found = getattr(model, "encoder", None)
    return found if isinstance(found, nn.Module) else None


def _of_torchvision(name: str, num_classes: int) -> nn.Module:
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    aux = {} if name.startswith("lraspp") else {"aux_loss": True}
    net = builder(weights=None, weights_backbone=None, num_classes=num_classes, **aux)
    return Segmenter(net.backbone, net.classifier, getattr(net, "aux_classifier", None))


def _assembled(
    head: str, backbone: str, classifier: Callable[[str], Any], num_classes: int
) -> nn.Module:
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.models.segmentation.fcn import FCNHead
    from torchvision.models.segmentation.lraspp import LRASPPHead

    deep = "high" if head == "lraspp" else "out"
    if backbone.startswith("timm:"):
        trunk, widths = _timm_trunk(backbone, deep)
    else:
        trunk, widths = _trunk(backbone, classifier(backbone), deep)
    if head == "lraspp":
        if "low" not in widths:
            raise UserError(
                f"lraspp+{backbone}: the backbone gives no features at stride {_LOW}, which the "
                f"head adds. Take fcn+{backbone} or deeplabv3+{backbone}."
            )
        return Segmenter(trunk, LRASPPHead(widths["low"], widths["high"], num_classes, 128))
    made = FCNHead if head == "fcn" else DeepLabHead
    aux = FCNHead(widths["aux"], num_classes) if "aux" in widths else None
    return Segmenter(trunk, made(widths["out"], num_classes), aux)


def _trunk(
    name: str, builder: Callable[..., nn.Module], deep: str
) -> tuple[nn.Module, dict[str, int]]:
    """A classification network up to its last map of features, and the channels of its outputs:
    `deep`, `aux` one stage before, and `low` at stride 8.

    The last stages keep their resolution: their strides become dilation, as in DeepLab
    (arXiv:1706.05587).
    """
    from torchvision.models._utils import IntermediateLayerGetter

    known = inspect.signature(builder).parameters
    whole = builder(
        **({"aux_logits": False, "init_weights": True} if "aux_logits" in known else {})
    )
    features = getattr(whole, "features", getattr(whole, "layers", None))
    part = features if isinstance(features, nn.Sequential) else whole
    maps = _maps(part)
    if len(maps) < 2:
        raise UserError(
            f"{name}: its layers give no maps of features one after the other, so it is no "
            f"backbone here. Take a convolutional one, such as r18, mnv2 or mnv3l."
        )
    finest = _FINEST if "layer4" in maps else _USUAL
    before = 1
    for child, (_, stride) in maps.items():
        if stride > finest and stride <= 2 * before:  # one stage, and not several
            _dilate(part.get_submodule(child), stride // finest)
        before = stride
    after = _maps(part)
    last, end = list(maps)[-1], maps[list(maps)[-1]][1]
    places = {last: deep}
    stages = [child for child, (_, stride) in maps.items() if stride == end // 2]
    aux, low = stages[-1:], [child for child, (_, stride) in maps.items() if stride == _LOW][-1:]
    # One layer has one name; where the two fall together, LR-ASPP needs the finer one.
    places |= dict.fromkeys(aux, "aux") | dict.fromkeys(low, "low")
    widths = {role: after[child][0] for child, role in places.items()}
    return IntermediateLayerGetter(part, return_layers=places), widths


def _maps(part: nn.Module) -> dict[str, tuple[int, int]]:
    """Channels and stride behind each child of `part`, as long as they give maps, in turn."""
    found: dict[str, tuple[int, int]] = {}
    x: Any = torch.zeros(1, 3, _SIDE, _SIDE)
    with evaluating(part), torch.no_grad():
        for name, child in part.named_children():
            if isinstance(child, (nn.AdaptiveAvgPool2d, nn.Linear)):
                break
            try:
                x = child(x)
            except Exception:  # a child that is not one in a row
                break
            if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[2] != x.shape[3]:
                break
            found[name] = int(x.shape[1]), _SIDE // int(x.shape[2])
    # Maps grow coarser and never finer: another order of axes would.
    strides = [stride for _, stride in found.values()]
    return found if strides == sorted(strides) else {}


def _dilate(stage: nn.Module, rate: int) -> None:
    """Take the strides of convolutions out, and spread those behind them, in place."""
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
    pools = [m for m in stage.modules() if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d))]
    if any(m.kernel_size[0] % 2 == 0 for m in convolutions) or pools:
        return
    for m in convolutions:
        first = m.stride != (1, 1)
        m.stride = (1, 1)
        spread = rate // 2 if first else rate
        if m.kernel_size != (1, 1):
            m.dilation = (spread, spread)
            m.padding = (spread * (m.kernel_size[0] // 2), spread * (m.kernel_size[1] // 2))


def _timm_trunk(name: str, deep: str) -> tuple[nn.Module, dict[str, int]]:
    try:
        import timm
    except ImportError:
        raise EnvironmentLacks(f"{name} needs timm: {to_install('timm')}.") from None
    short = name.removeprefix("timm:")
    if not timm.is_model(short):
        raise UserError(f"unknown backbone {name!r}.{nearest(short, timm.list_models())}")
    network: Any = None
    refused, choices = "", [{"output_stride": _USUAL}, {}]
    for more in choices:
        try:
            create: Any = timm.create_model
            network = create(short, pretrained=False, features_only=True, **more)
            break
        except Exception as error:  # whatever timm raises for one without features or dilation
            refused = str(error)
    if network is None:
        raise UserError(f"{name} gives no features: {refused}. Take another backbone.")
    places, widths, strides = {}, network.feature_info.channels(), network.feature_info.reduction()
    places[deep] = len(strides) - 1
    if len(strides) > 1:
        places["aux"] = len(strides) - 2
    if _LOW in strides:
        places["low"] = strides.index(_LOW)
    return _ByName(network, places), {role: widths[n] for role, n in places.items()}


def _smp(name: str) -> Callable[..., nn.Module]:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise EnvironmentLacks(
            f"{name} needs segmentation_models_pytorch: {to_install('smp')}."
        ) from None
    architecture, dash, encoder = name.removeprefix(SMP).partition("-")
    kinds = {kind.__name__.lower(): kind for kind in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if architecture.lower() not in kinds or not dash:
        raise UserError(
            f"unknown model {name!r}.{nearest(architecture, kinds)} Expected "
            f"smp:ARCHITECTURE-ENCODER with one of {', '.join(sorted(kinds))}, such as "
            f"smp:unet-resnet34."
        )

    def made(num_classes: int) -> nn.Module:
        kind = kinds[architecture.lower()]
        try:
            found: nn.Module = kind(encoder_name=encoder, encoder_weights=None, classes=num_classes)
        except (KeyError, ValueError):
            raise UserError(
                f"{name}: {architecture} has no encoder {encoder!r}."
                f"{nearest(encoder, smp.encoders.get_encoder_names())} Expected one of smp's, or "
                f"tu-NAME with a name of timm."
            ) from None
        return found

    return made
