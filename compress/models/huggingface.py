"""Classifiers and segmenters of `transformers`: `hf:FAMILY`, `hf:FAMILY-tiny`, or `hf:FOLDER`.

A bundle records the family and the plain numbers of its configuration, so it is rebuilt without the
folder. Code that comes with a folder never runs, and only safetensors are read.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import EnvironmentLacks, UserError, nearest, to_install

log = logging.getLogger(__name__)

PREFIX = "hf:"
HEADS = ("network.classifier", "network.decode_head.classifier")
"""Where these families have their last layer: it is one of them, or lies in it."""

_TOKENS = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128,
    "patch_size": 8,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "vit": _TOKENS,
    "deit": _TOKENS,
    "swin": {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "convnext": {"hidden_sizes": [24, 48, 96, 192], "depths": [1, 1, 2, 1]},
    "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "dinov2": {**{k: v for k, v in _TOKENS.items() if k != "intermediate_size"}, "mlp_ratio": 2},
    "beit": {**_TOKENS, "use_relative_position_bias": True},
    "segformer": {
        "hidden_sizes": [16, 32, 64, 96],
        "depths": [1, 1, 1, 1],
        "decoder_hidden_size": 64,
    },
}
"""The known families (`model_type`), and what makes a small network of each."""

GIVE_MAPS = frozenset(["segformer"])
"""The families that give every pixel a class."""
_MOST = 65_536
_MOST_LAYERS = 512
_MOST_PLACES = 256
_MOST_PARAMETERS = 5_000_000_000
_INTERPOLATION = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them


class Classifier(nn.Module):
    """A network of the library, from images `[B, C, H, W]` to logits `[B, K]`, of a segmenter to
    maps `[B, K, h, w]`."""

    def __init__(self, network: nn.Module, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.input_shape = input_shape
        """Channels, height, width: the forward passes of these networks branch on them."""

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(pixel_values=images).logits
        return logits


@dataclass(frozen=True)
class Named:
    """What a name stands for."""

    family: str
    config: dict[str, Any]
    """The family's own settings, plain values; number of classes left out."""
    folder: Path | None = None
    labels: tuple[str, ...] | None = None
    """Names of the classes of a folder's classifier; None for a family or a bare backbone."""


def resolve(name: str) -> Named:
    """A family or a folder by its name `hf:...`.

    Raises:
        UserError: no such family or folder, or a folder of something else.
        EnvironmentLacks: transformers is not installed.
    """
    value = name.removeprefix(PREFIX)
    family = value.removesuffix("-tiny").replace("mobilenetv2", "mobilenet_v2")
    if family in TINY:
        return Named(family, _settings(family, TINY[family] if value.endswith("-tiny") else {}))
    folder = Path(value).expanduser()
    if not folder.is_dir():
        known = [*TINY, *(f"{one}-tiny" for one in TINY)]
        raise UserError(
            f"unknown model {name!r}.{nearest(value, known)} Expected hf: and a family "
            f"({', '.join(TINY)}; {next(iter(TINY))}-tiny and so on are small), or a folder of "
            f"transformers with config.json."
        )
    data = _json(folder / "config.json", name)
    family = str(data.get("model_type"))[:80]
    if family not in TINY:
        raise UserError(
            f"{name}: config.json is of the family {family!r}.{nearest(family, TINY)} Known: "
            f"{', '.join(TINY)}."
        )
    kind = _network_class(family).__name__
    backbone = re.sub("For(ImageClassification|SemanticSegmentation)", "Model", kind)
    made_for = data.get("architectures") or [kind]
    if not {kind, backbone} & set(map(str, made_for)):
        raise UserError(
            f"{name}: config.json is of {made_for[0]}, another task. Expected {kind}, or a bare "
            f"{backbone}, whose head then starts anew."
        )
    labels = _labels(data) if kind in made_for else None
    own = {key: value for key, value in data.items() if key in _own_keys(family)}
    return Named(family, checked(family, own, name), folder, labels)


def build(family: str, config: Mapping[str, Any], classes: int) -> nn.Module:
    """A network with random weights; its forward pass takes images and gives logits.

    Raises:
        UserError: the library refuses the settings.
    """
    try:
        network = _make(family, config, classes)
        return Classifier(
            network, (config.get("num_channels", 3), *_sides(config.get("image_size", 224)))
        )
    except Exception as error:  # the library's own checks raise many kinds
        raise UserError(
            f"{PREFIX}{family} cannot be built with {dict(config)}: {_first_line(error)}"
        ) from error


def at_size(config: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """The settings for images of `size` (height, width), pixels."""
    return {**config, "image_size": size[0] if size[0] == size[1] else list(size)}


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's network, under the names of `build`'s.

    Raises:
        UserError: the folder has no safetensors, or they do not fit its own config.json.
    """
    from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

    if not any(folder.glob("*.safetensors")):
        pickled = next((f.name for f in (*folder.glob("*.bin"), *folder.glob("*.pt*"))), None)
        got = f"only {pickled}, which may hold code" if pickled else "no weights"
        raise UserError(
            f"--weights default: {folder} has {got}. Expected model.safetensors; where the network "
            f"was made: model.save_pretrained(FOLDER, safe_serialization=True)."
        )
    maps = _json(folder / "config.json", str(folder)).get("model_type") in GIVE_MAPS
    kind = AutoModelForSemanticSegmentation if maps else AutoModelForImageClassification
    try:
        network = kind.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, trust_remote_code=False,
            attn_implementation="eager",
        )  # fmt: skip
    except Exception as error:  # the library's own checks raise many kinds
        raise UserError(f"--weights default: {folder}: {_first_line(error)}") from error
    return {f"network.{name}": tensor for name, tensor in network.state_dict().items()}


def checked(family: str, config: Any, where: str) -> dict[str, Any]:
    """The settings of `config`, which is data from elsewhere: plain values that the family knows,
    of sizes that can be built.

    Raises:
        UserError: anything else.
    """
    if family not in TINY:
        raise UserError(f"{where}: unknown family {PREFIX}{family}.{nearest(family, TINY)}")
    if not isinstance(config, Mapping):
        raise UserError(f"{where}: config is a {type(config).__name__}, expected a table.")
    own = _own_keys(family)
    for key, value in config.items():
        if key not in own:
            raise UserError(f"{where}: config.{key} is not allowed for {PREFIX}{family}.")
        several = isinstance(value, (list, tuple))
        if (several and len(value) > 64) or not all(map(_plain, value if several else [value])):
            raise UserError(
                f"{where}: config.{key} = {value!r:.80}; expected a plain value of at most "
                f"{_MOST:,}."
            )
    made = _settings(family, config)
    _check_sizes(family, made, where)
    return made


def preprocess(name: str) -> Preprocess | None:
    """What a folder's `preprocessor_config.json` does to an image; None where there is none.

    Raises:
        UserError: a step that cannot be expressed.
    """
    file = Path(name.removeprefix(PREFIX)).expanduser() / "preprocessor_config.json"
    if not name.startswith(PREFIX) or not file.is_file():
        return None
    return preprocess_from(_json(file, name), str(file))


def preprocess_from(data: Mapping[str, Any], where: str) -> Preprocess:
    """What the settings of an image processor do to an image; `where` names them in a message.

    Raises:
        UserError: a step that cannot be expressed.
    """
    try:
        return _preprocess_from(data, where)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{where}: cannot be understood ({error!r}). Give --preprocess.") from error


def _preprocess_from(data: Mapping[str, Any], where: str) -> Preprocess:
    factor = data.get("rescale_factor", 1 / 255)
    if not data.get("do_rescale", True) or not math.isclose(float(factor), 1 / 255, rel_tol=1e-3):
        raise UserError(
            f"{where}: values are scaled by {factor}; expected 1/255. Give --preprocess."
        )
    size, crop = data.get("size", 224), data.get("crop_size")
    shorter = size.get("shortest_edge") if isinstance(size, Mapping) else None
    if data.get("do_center_crop") and crop is not None:
        sides, resize = _sides(crop), shorter or max(_sides(size))
    elif shorter is not None:  # ConvNeXt's and ResNet's processors
        sides = (int(shorter), int(shorter))
        share = float(data.get("crop_pct") or 224 / 256)
        resize = int(shorter / share) if shorter < 384 else None
    elif not isinstance(size, Mapping) and data.get("crop_pct"):
        sides, resize = _sides(size), int(size / float(data["crop_pct"]))
    else:
        sides, resize = _sides(size), None
    normalised = data.get("do_normalize", True)
    resample = data.get("resample", 2)
    if resample not in _INTERPOLATION:
        log.warning(
            "%s: resample %s is not at hand; images are resized bicubically", where, resample
        )
    return Preprocess(
        size=sides,
        resize=None if resize is None else int(resize),
        mean=tuple(map(float, data["image_mean"])) if normalised else (0.0, 0.0, 0.0),
        std=tuple(map(float, data["image_std"])) if normalised else (1.0, 1.0, 1.0),
        interpolation=_INTERPOLATION.get(resample, "bicubic"),  # type: ignore[arg-type]
    )


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return (int(size[0]), int(size[1])) if isinstance(size, list) else (int(size), int(size))


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise EnvironmentLacks(f"{PREFIX}{name} needs transformers: {to_install('hf')}.") from None
    return transformers


def _config_class(family: str) -> Any:
    _transformers(family)
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[family]


def _network_class(family: str) -> Any:
    from transformers import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    )

    mapping = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    if family in GIVE_MAPS:
        mapping = MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    found = mapping[_config_class(family)]
    return found[0] if isinstance(found, tuple) else found


def _own_keys(family: str) -> set[str]:
    """The settings that a family adds to what all configurations of the library have."""
    kind = _config_class(family)
    noted = inspect.get_annotations(kind)
    names = {name for name in noted if "ClassVar" not in str(noted[name])}
    names = names or set(inspect.signature(kind.__init__).parameters)
    left_out = {"self", "kwargs", "model_type", "out_features", "out_indices", "attribute_map"}
    return {name for name in names - left_out if not name.startswith("_")} | {"image_size"}


def _settings(family: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All own settings of a family, those that are not given by their defaults: a later version of
    the library may have others."""
    try:
        config = _config_class(family)(**given)
    except EnvironmentLacks:
        raise
    except Exception as error:  # the library's own checks raise many kinds
        raise UserError(f"{PREFIX}{family}: {_first_line(error)}") from error
    found = {key: getattr(config, key) for key in sorted(_own_keys(family)) if hasattr(config, key)}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return {key: value for key, value in plain.items() if value is not None}


def _make(family: str, config: Mapping[str, Any], classes: int) -> Any:
    # The products of attention in the open: the fused kernel could not be quantised inside.
    settings = _config_class(family)(**config, num_labels=classes, attn_implementation="eager")
    return _network_class(family)(settings)


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"[a-z0-9_]{1,40}", value) is not None
    if value is None or isinstance(value, bool):
        return True
    return isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= _MOST


def _check_sizes(family: str, config: Mapping[str, Any], where: str) -> None:
    def numbers(key: str) -> list[float]:
        value = config.get(key, 0)
        several = value if isinstance(value, (list, tuple)) else [value]
        return [x for x in several if isinstance(x, (int, float))]

    layers = max(sum(numbers("depths")), *numbers("num_hidden_layers"), 0)
    places = max([*numbers("image_size"), 0]) / max(min([*numbers("patch_size"), 1e9]), 1)
    if family in ("swin", "convnext", "resnet", "mobilenet_v2", "segformer"):
        places = max([*numbers("window_size"), 0])
    if layers > _MOST_LAYERS or places > _MOST_PLACES:
        raise UserError(
            f"{where}: {layers:.0f} layers on {places:.0f} x {places:.0f} places; expected at most "
            f"{_MOST_LAYERS} and {_MOST_PLACES} x {_MOST_PLACES}."
        )
    with torch.device("meta"):
        count = sum(p.numel() for p in build(family, config, 1).parameters())
    if count > _MOST_PARAMETERS:
        raise UserError(
            f"{where}: config asks for {count:,} parameters; expected at most {_MOST_PARAMETERS:,}."
        )


def _labels(data: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = data.get("id2label")
    if not isinstance(names, Mapping):
        return ("LABEL_0", "LABEL_1")  # the library leaves its default out
    try:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except ValueError:
        return None


def _json(file: Path, name: str) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{name}: {file} cannot be read as JSON ({_first_line(error)}). Expected a folder that "
            f"model.save_pretrained(FOLDER) of transformers has written."
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{name}: {file} holds a {type(data).__name__}, expected a table.")
    return data


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
