"""Networks by name: an alias, a name of torchvision, `timm:NAME`, `hf:NAME`, one for segmentation
(`segmentation.py`), or the user's own `module:factory`.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from vcompress.bench.apart import memory_limit
from vcompress.bench.config import from_mapping
from vcompress.bench.errors import EnvironmentLacks, UserError, nearest, to_install
from vcompress.bench.own_code import check_trusted, import_own, is_factory, raised
from vcompress.export.folding import modernise

from . import channels, huggingface, pretrained, segmentation
from .head import note_head, of_classes, with_outputs
from .outputs import choosing
from .pretrained import TIMM

log = logging.getLogger(__name__)


ALIASES = {
    "r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101",
    "r152": "resnet152", "rx50": "resnext50_32x4d", "wr50": "wide_resnet50_2",
    "mnv2": "mobilenet_v2", "mnv3s": "mobilenet_v3_small", "mnv3l": "mobilenet_v3_large",
    "effb0": "efficientnet_b0", "effb1": "efficientnet_b1", "effb2": "efficientnet_b2",
    "effb3": "efficientnet_b3", "effv2s": "efficientnet_v2_s", "dn121": "densenet121",
    "vgg16": "vgg16_bn", "cnxt": "convnext_tiny", "cnxs": "convnext_small",
    "vits16": "timm:vit_small_patch16_224", "vitb16": "vit_b_16", "vitb32": "vit_b_32",
    "swint": "swin_t", "swins": "swin_s", "shuf1": "shufflenet_v2_x1_0", "sqz": "squeezenet1_1",
}  # fmt: skip

# The names under which factories take the image size and the number of channels.
_SIZE_KEYS = ("image_size", "img_size", "input_size")
_MOST_PIXELS = 4096
_USUAL_CLASSES = 25_000
"""ImageNet's largest set has 21,841. Beyond, a head may take all memory."""
_SAFE_KWARGS = {
    *_SIZE_KEYS, *channels.KEYS, "aux_logits", "init_weights", "num_classes", "transform_input",
}  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """An architecture: `name` is an alias already resolved."""

    name: str
    classes: int
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    """Path of the layer that gives the logits, where the user names it."""
    output: str | None = None
    """Name or number of the output that counts, of a network that gives several."""
    folder: Path | None = field(default=None, compare=False)
    """Where `build` finds the default weights of an `hf:` name; a bundle does not record it."""

    def to_json(self) -> dict[str, Any]:
        found = {"name": self.name, "classes": self.classes, "kwargs": dict(self.kwargs)}
        named = {"head": self.head, "output": self.output}
        return found | {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class _SpecJson:
    name: str
    classes: int
    kwargs: dict[str, Any]
    head: str | None = None
    output: str | None = None


def spec_from_json(data: Any, where: str, trusted_factory: str | None = None) -> ModelSpec:
    """A spec read from a bundle. It is data from elsewhere, so it may name only factories of the
    two libraries with harmless arguments, or the one that the user has named as trusted.

    Raises:
        UserError: anything else.
    """
    spec = from_mapping(_SpecJson, data, where)
    if is_factory(spec.name):
        what = f"{where}: this bundle is built by your own factory"
        check_trusted(spec.name, trusted_factory, what)
    if spec.name.startswith(huggingface.PREFIX):
        return _hf_spec_from_json(spec, where)
    if odd := set(spec.kwargs) - _SAFE_KWARGS:
        raise UserError(f"{where}: the argument {sorted(odd)[0]!r} is not allowed in a bundle.")
    sizes = [spec.kwargs.get(key, 1) for key in _SIZE_KEYS]
    if any(not 1 <= side <= _MOST_PIXELS for side in _numbers(sizes)):
        raise UserError(f"{where}: an image size of {sizes}; expected 1 to {_MOST_PIXELS:,}.")
    if not channels.check(spec.kwargs):
        raise UserError(f"{where}: {spec.kwargs!r:.200}: channels are not 1 to 4,096.")
    _check_classes(spec, where)
    return ModelSpec(spec.name, spec.classes, spec.kwargs, spec.head, spec.output)


def _hf_spec_from_json(spec: _SpecJson, where: str) -> ModelSpec:
    if set(spec.kwargs) != {"config"}:
        raise UserError(f"{where}: {spec.name} has {sorted(spec.kwargs)}; expected config alone.")
    _check_classes(spec, where)
    family = spec.name.removeprefix(huggingface.PREFIX)
    config = huggingface.checked(family, spec.kwargs["config"], where)
    return ModelSpec(spec.name, spec.classes, {"config": config}, spec.head, spec.output)


def _check_classes(spec: _SpecJson, where: str) -> None:
    if not 1 <= spec.classes <= 1_000_000:
        raise UserError(f"{where}: classes = {spec.classes}; expected 1 to 1,000,000.")


def _numbers(sizes: list[Any]) -> list[float]:
    """Sides of an image, alone or in pairs; what is no number becomes nought."""
    flat = [x for size in sizes for x in (size if isinstance(size, (list, tuple)) else [size])]
    return [x if isinstance(x, int) else 0 for x in flat]


def make_spec(
    name: str, classes: int, size: tuple[int, int], head: str | None = None,
    weights: str | None = None, in_chans: int = 3,
) -> ModelSpec:  # fmt: skip
    """Resolve an alias, check the name, and fit the spec to inputs of `size` (height, width).

    Args:
        in_chans: channels of the images; the first convolution of a network for three is fitted.
        head: path of the layer that gives the logits; None takes what the library records.
        weights: those that `build` will be given; what the library's builder sets beside weights is
            part of the architecture.

    Raises:
        UserError: an unknown name; the message suggests the nearest.
    """
    name = ALIASES.get(name, name)
    if name.startswith(huggingface.PREFIX):
        named = huggingface.resolve(name)
        config = {**huggingface.at_size(named.config, size), "num_channels": in_chans}
        resolved = f"{huggingface.PREFIX}{named.family}"
        return ModelSpec(resolved, classes, {"config": config}, head, folder=named.folder)
    factory = _factory(name)
    parameters = inspect.signature(factory).parameters
    kwargs: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):
        # The auxiliary heads are thrown away at inference; without them one output remains.
        kwargs |= {"aux_logits": False, "init_weights": True}
        kwargs |= {} if weights is None else pretrained.arguments(name)
    side = size[0] if size[0] == size[1] else size
    if name.startswith(TIMM):
        kwargs |= {"img_size": side} if _takes_size(name, size[0]) else {}
        kwargs |= {channels.IN_CHANS: in_chans} if in_chans != 3 else {}
    elif name.startswith(("vit_", "maxvit")):
        if size[0] != size[1]:
            raise UserError(f"{name} takes square images; got {size[0]} x {size[1]}.")
        kwargs |= {"input_size": size} if name.startswith("maxvit") else {"image_size": size[0]}
    elif is_factory(name):
        kwargs |= {
            key: size if key == "input_size" else side for key in _SIZE_KEYS if key in parameters
        }
    if not name.startswith(TIMM):
        kwargs |= channels.argument(parameters if is_factory(name) else {}, in_chans)
    return ModelSpec(name, classes, kwargs, head)


def build(spec: ModelSpec, weights: str | None = None, key: str | None = None) -> nn.Module:
    """The network with random weights, or with `weights`: `default` (torchvision's or timm's
    pretrained ones, those in a folder of transformers) or a file. The head is left random where the
    number of classes differs. The network carries the paths of its head, where they are known.

    Args:
        key: dotted path of the weights inside the file; by default what fits the network best.

    Raises:
        UserError: the factory refuses its arguments or the file cannot be used.
        EnvironmentLacks: pretrained weights cannot be downloaded.
    """
    model = _made(spec)
    if spec.output is not None:
        model = choosing(model, spec.output)
    if paths := _head_paths(spec, model):
        note_head(model, paths, spec.classes)
    if weights == "default":
        _load_default(spec, model, paths)
    elif weights is not None:
        # Auxiliary heads may have other classes in the file too.
        beside = _varying(spec, model) if is_factory(spec.name) else ()
        _load_file(model, Path(weights), tuple(dict.fromkeys((*paths, *beside))), key)
    modernise(model)
    return model


def _made(spec: ModelSpec) -> nn.Module:
    if spec.classes > _USUAL_CLASSES:
        _check_fits(spec)
    if spec.name.startswith(huggingface.PREFIX):
        family = spec.name.removeprefix(huggingface.PREFIX)
        return huggingface.build(family, spec.kwargs["config"], spec.classes)
    factory = _factory(spec.name)
    arguments = dict(spec.kwargs)
    accepts = inspect.signature(factory).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepts.values())
    if "num_classes" in accepts or takes_any:
        arguments["num_classes"] = spec.classes
    fitted = None
    if channels.IN_CHANS not in accepts and not spec.name.startswith(TIMM):
        fitted = arguments.pop(channels.IN_CHANS, None)
    for key in _SIZE_KEYS:  # JSON has no tuples
        if isinstance(arguments.get(key), list):
            arguments[key] = tuple(arguments[key])
    try:
        model = factory(**arguments)
    except UserError:
        raise
    except Exception as error:  # whatever a user's factory raises
        said = raised(error, spec.name) if is_factory(spec.name) else str(error)
        raise UserError(f"{spec.name} cannot be built with {arguments}: {said}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec.name} returned {type(model).__name__}, expected a torch nn.Module.")
    for path, module in model.named_modules():
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():  # type: ignore[misc]
            kind = type(module).__name__
            raise UserError(
                f"{spec.name}: the layer {path} is a {kind}, whose weights have no shape before it "
                "has run, so none can be loaded into it. Give its input width: "
                f"nn.{kind.removeprefix('Lazy')}(...)."
            )
    return model if fitted is None else channels.fit_first(model, fitted)


def _check_fits(spec: ModelSpec) -> None:
    """Raise a UserError where the network and its copy for another head need more memory than there
    is. What a class adds is seen in small networks."""
    small, larger = (
        sum(p.nbytes for p in _made(replace(spec, classes=classes)).parameters())
        for classes in (2, 3)
    )
    needed = 2 * (small + (larger - small) * (spec.classes - 2))
    if needed > (most := memory_limit()):
        raise UserError(
            f"{spec.name} with {spec.classes:,} classes needs {needed / 1e9:.1f} GB of memory, and "
            f"this process may have {most / 1e9:.1f} GB. Look whether the number of classes is "
            f"right, or take a network with a smaller head."
        )


def _head_paths(spec: ModelSpec, model: nn.Module) -> tuple[str, ...]:
    """The layers that give the logits: as the user says, as the library records, else those that
    differ in a network for one class more. None where that does not tell."""
    if spec.head is not None:
        return (spec.head,)
    recorded = segmentation.head_paths(model)
    if spec.name.startswith(huggingface.PREFIX):
        recorded = tuple(n for n, _ in model.named_modules() if n.startswith(huggingface.HEADS))
    elif spec.name.startswith(TIMM):
        names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
        recorded = (names,) if isinstance(names, str) else tuple(names)
    found = with_outputs(model, recorded, spec.classes)
    if found:
        return found
    if is_factory(spec.name):  # the user's own may be another one under the same name
        return _varying_head(spec, model)
    key = json.dumps(spec.to_json(), sort_keys=True)
    if key not in _HEADS:
        _HEADS[key] = _varying_head(spec, model)
    return _HEADS[key]


_HEADS: dict[str, tuple[str, ...]] = {}


def _varying(spec: ModelSpec, model: nn.Module) -> tuple[str, ...]:
    """The layers of `model` whose outputs follow the number of classes."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            other = _made(replace(spec, classes=spec.classes + 1))
    except Exception:  # a factory of the user's that reads files, or values of its weights
        return ()
    return of_classes(model, other, spec.classes)


def _varying_head(spec: ModelSpec, model: nn.Module) -> tuple[str, ...]:
    """The one layer of `model` whose outputs follow the number of classes; empty for several."""
    found = _varying(spec, model)
    return found if len(found) == 1 else ()


def _factory(name: str) -> Any:
    if name.startswith(TIMM):
        return _timm_factory(name.removeprefix(TIMM))
    found = segmentation.factory(name, lambda backbone: _factory(ALIASES.get(backbone, backbone)))
    if found is not None:
        return found
    if is_factory(name):
        return import_own(name)
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = nearest(name, [*ALIASES, *known, *segmentation.names()])
        raise UserError(
            f"unknown model {name!r}.{hint} Expected an alias ({', '.join(list(ALIASES)[:6])}, "
            f"...), a name of torchvision, timm:NAME, hf:NAME, HEAD+BACKBONE such as "
            f"deeplabv3+r18, module:factory, or a bundle."
        )
    return torchvision.models.get_model_builder(name)


def _timm_factory(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise EnvironmentLacks(f"timm:{name} needs timm: {to_install('timm')}.") from None
    if not timm.is_model(name):
        raise UserError(
            f"unknown model 'timm:{name}'."
            f"{nearest(f'timm:{name}', [f'timm:{known}' for known in timm.list_models()])} "
            f"`python -c 'import timm; print(timm.list_models())'` lists them."
        )

    def factory(**kwargs: Any) -> Any:
        return timm.create_model(name, pretrained=False, **kwargs)

    return factory


@lru_cache(maxsize=256)
def _takes_size(name: str, side: int) -> bool:
    """Whether timm's network is asked for by `img_size`: it is built once, without memory."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            _timm_factory(name.removeprefix(TIMM))(img_size=side)
    except TypeError:  # its class has no such argument
        return False
    except Exception:  # it takes a size, but not this one: `build` says why
        return True
    return True


def _pretrained(spec: ModelSpec) -> dict[str, Tensor]:
    if is_factory(spec.name):
        raise UserError(
            f"--weights default: {spec.name} is your own network. Give a file instead: --weights "
            f"FILE.safetensors or FILE.pth."
        )
    if not spec.name.startswith(huggingface.PREFIX):
        return pretrained.tensors(spec.name, spec.kwargs)
    if spec.folder is None:
        raise UserError(
            f"--weights default: {spec.name} is a family with random weights. Name a folder of "
            f"transformers: hf:FOLDER."
        )
    return huggingface.weights(spec.folder)


def _load_default(spec: ModelSpec, model: nn.Module, paths: tuple[str, ...]) -> None:
    """The library's pretrained weights; of a head on a backbone, the backbone's."""
    _, plus, backbone = spec.name.partition("+")
    if not plus:
        _load_matching(model, _pretrained(spec), paths)
        return
    from .checkpoints import load_backbone

    source = ALIASES.get(backbone, backbone)
    trunk = segmentation.backbone_of(model)
    assert trunk is not None
    load_backbone(trunk, pretrained.tensors(source, {}), f"the weights of {source}")


def _load_file(model: nn.Module, file: Path, heads: tuple[str, ...], key: str | None) -> None:
    """Weights of the whole network, or of its backbone alone where it has one and they fit that."""
    from .checkpoints import load_into

    backbone = segmentation.backbone_of(model)
    try:
        load_into(model, file, heads=heads, key=key)
    except UserError as whole:
        if backbone is None:
            raise
        try:
            load_into(backbone, file, key=key)
        except UserError:
            raise whole from None
        log.info("%s: weights of the backbone alone; the head starts anew", file)


def _load_matching(model: nn.Module, tensors: Mapping[str, Tensor], heads: tuple[str, ...]) -> None:
    own = model.state_dict()
    tensors = channels.fitted(tensors, own)
    fits = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fits, strict=False)
    random = [k for k in own if k not in fits and k.rpartition(".")[0] not in heads]
    if random:  # such as the positions of a ViT at another image size
        log.warning("the pretrained weights do not fit these, which start anew: %s", random)
