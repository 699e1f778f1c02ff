"""A network to and from a bundle: `architecture.json` and `weights.safetensors`, no pickle.

The architecture is the name of a factory, what pruning changed in it, and where quantisers sit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError
from vcompress.export.mixing import unsteady_layer
from vcompress.export.modes import evaluating
from vcompress.export.parity import rounds_activation

from .. import quantization
from ..models import changes
from ..models.catalogue import ModelSpec, build, spec_from_json
from ..models.faithful import tensors_of
from ..models.layout import same_outputs
from ..models.precision import Precision, precision_of, set_precision

ARCHITECTURE = "architecture.json"
WEIGHTS = "weights.safetensors"
_KEYS = {"model", "changes", "quantization"}


@dataclass(frozen=True)
class Network:
    """A network and the architecture that it started from."""

    model: nn.Module
    spec: ModelSpec
    changes: Mapping[str, Any] | None = None
    """What pruning changed, noted before quantisers went in; None where it can still be seen."""
    has_factory: bool = True
    """Whether `spec` builds it; else the spec only says what class it is of."""
    output: str | None = None
    """Name of the output that is exported, of several; None is the first tensor."""

    def noted(self) -> Mapping[str, Any]:
        """`changes`, worked out from the network where it is not quantised yet."""
        if self.changes is not None:
            return self.changes
        return changes.describe(self.model, build(self.spec))


def save_network(network: Network, folder: Path) -> None:
    """Write both files into `folder`."""
    model = network.model
    quantised = quantization.is_quantized(model)
    architecture: dict[str, Any] = {
        "model": network.spec.to_json() if network.has_factory else None,
        "changes": network.noted() if network.has_factory else None,
        "quantization": quantization.placement(model) if quantised else None,
    }
    if precision_of(model) != "fp32":  # a reader that does not know it must not take it for float32
        architecture["precision"] = precision_of(model)
    text = json.dumps(architecture, indent=1, allow_nan=False) + "\n"
    (folder / ARCHITECTURE).write_text(text, encoding="utf-8")
    try:
        changes.save_tensors(model, folder / WEIGHTS)
    except SafetensorError as error:  # it wraps what the disk says
        raise UserError(
            f"{WEIGHTS} could not be written ({error}). Make room and retry."
        ) from error
    shutil.copymode(folder / ARCHITECTURE, folder / WEIGHTS)  # safetensors keeps it to its owner


def load_network(bundle: Bundle, trusted_factory: str | None = None) -> Network:
    """Rebuild the network of `bundle`, bit for bit, in eval mode.

    Args:
        trusted_factory: the user's own `module:factory` that may be run, if the bundle names it.

    Raises:
        UserError: a file that was changed, an architecture that is not valid, or a bundle of a
            network that nothing here can build.
    """
    file, architecture = bundle.path / ARCHITECTURE, _buildable(bundle)
    spec = architecture["model"]
    if isinstance(spec, dict) and spec.get("classes") != len(bundle.labels):
        raise UserError(
            f"{file}: the network has {spec.get('classes')!r:.40} classes, and the manifest has "
            f"{len(bundle.labels)} labels."
        )
    return _rebuilt(architecture, bundle.file(WEIGHTS), str(file), trusted_factory)


def check_reloads(network: Network, folder: Path, images: Tensor) -> None:
    """Build the network again from what `save_network` wrote into `folder`, and hold it against
    `network` on `images` `[N, C, H, W]`.

    Raises:
        UserError: it cannot be loaded, or it computes something else; or the network gives NaN, or
            something else for the same images.
    """
    _check_steady(network.model, images)
    if not network.has_factory:
        return
    text = (folder / ARCHITECTURE).read_text(encoding="utf-8")
    again = _rebuilt(json.loads(text), folder / WEIGHTS, ARCHITECTURE, network.spec.name).model
    if not same_outputs(network.model, again, images):
        odd = changes.differing(network.model, again)
        raise UserError(
            "The network computes something else once it is loaded again: something decides its "
            "outputs that is no parameter, no buffer and no number that fell."
            + (f" Attributes that training changed: {', '.join(odd[:5])}." if odd else "")
            + " Keep it in a buffer (register_buffer)."
        )


def _check_steady(model: nn.Module, images: Tensor) -> None:
    layer = unsteady_layer(model, images, any(map(rounds_activation, model.modules())))
    if layer is not None:
        raise UserError(
            f"The network gives something else when the same images come again: {layer} draws "
            "random numbers or keeps what it has seen, in evaluation too. Let it do so in training "
            "alone (if self.training)."
        )
    with evaluating(model), torch.no_grad():
        outputs = tensors_of(model(images[:1].to(next(model.parameters()).device)))
    if any(bool(torch.isnan(out).any()) for out in outputs if out.is_floating_point()):
        raise UserError(
            "The network gives NaN for a real image. Look for a logarithm or a root of what may be "
            "negative, a division by what may be 0, or weights that are NaN."
        )


def _rebuilt(
    architecture: dict[str, Any], weights: Path, where: str, trusted_factory: str | None
) -> Network:
    """The network of an architecture that is data, with its weights."""
    precision = architecture.get("precision", "fp32")
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise UserError(f"{where}: precision {precision!r:.80}; known: {known}.")
    spec = spec_from_json(architecture["model"], where, trusted_factory)
    tensors = changes.load_tensors(weights)
    changed, placement = architecture["changes"], architecture["quantization"]
    base = changes.reshape(build(spec), changed)
    if placement is None:
        model = changes.load(base, tensors, changed.get("versions")).eval()
        set_precision(model, precision)
        return Network(model, spec)
    if not isinstance(placement, dict):
        raise UserError(f"{where}: quantization is a {type(placement).__name__}, expected a table.")
    model = changes.load(quantization.restore(base, placement), tensors).eval()
    set_precision(model, precision)
    return Network(model, spec, changed)


def check_buildable(bundle: Bundle) -> None:
    """Raise a UserError for a bundle of a network that nothing here can build."""
    _buildable(bundle)


def read_architecture(bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of its network: `model`, `changes`, `quantization`, perhaps `precision`.

    Raises:
        UserError: a file that was changed, or that is no such JSON object.
    """
    file = bundle.file(ARCHITECTURE)
    try:
        architecture: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(architecture, dict) or set(architecture) - {"precision"} != _KEYS:
        raise UserError(f"{file}: expected a JSON object with {', '.join(sorted(_KEYS))}.")
    return architecture


def _buildable(bundle: Bundle) -> dict[str, Any]:
    """The architecture of a network that can be built."""
    architecture = read_architecture(bundle)
    if architecture["model"] is None and architecture["changes"] is None:
        raise UserError(
            f"{bundle.path} can't be trained further here: it has no factory that builds it, only "
            "its ONNX file and its weights. Measure, verify, pack it and predict with it as it is, "
            "or save it again with factory='module:function', which returns the network."
        )
    return architecture
