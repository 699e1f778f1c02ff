"""What a network makes of an example: the output that counts, and what is wrong where it fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.errors import UserError, nearest
from vcompress.bench.own_code import raised
from vcompress.export.modes import evaluating

_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
_PRECISION = re.compile(r"\b(c10::)?(Half|BFloat16|Double|double)\b")
_ARGUMENTS = re.compile(r"forward\(\) missing \d+ required positional arguments?: (.*)")
_SIZES = re.compile(
    r"shapes cannot be multiplied|size of tensor|must match|padded input size|[Kk]ernel size|"
    r"output size|image size|input size|invalid for input|shape|height|width|img_size",
)
_OUTPUTS: tuple[str, ...] = ("out",)


def choose(model: nn.Module, example: Tensor, output: str | None, name: str = "") -> str | None:
    """Which of the network's outputs counts: its key in a dictionary, or its number in a tuple.

    Args:
        example: `[1, C, H, W]`.
        output: as the user names it; None takes `out` where there is one, else the first tensor.
        name: `module:factory`, whose lines are shown where it fails.

    Returns:
        None for a network that gives one tensor.

    Raises:
        UserError: the network fails, has no such output, or gives no tensor.
    """
    found = run(model, example, name)
    if isinstance(found, Tensor) and output is None:
        return None
    tensors = {key: value for key, value in _items(found).items() if isinstance(value, Tensor)}
    shown = ", ".join(f"{key} {list(value.shape)}" for key, value in tensors.items())
    if output is not None and output not in tensors:
        got = f"the outputs {shown}" if tensors else "one output without a name"
        raise UserError(
            f"--output {output}: the network gives {got}.{nearest(output, tensors)} "
            + ("Name one of them." if tensors else "Leave --output out.")
        )
    if not tensors:
        raise UserError(
            f"The network gives a {type(found).__name__}; expected a tensor, or a dictionary or a "
            f"tuple that holds one."
        )
    return output or next((key for key in _OUTPUTS if key in tensors), next(iter(tensors)))


def choosing(model: nn.Module, output: str) -> nn.Module:
    """`model` itself, whose forward pass from now on gives that output alone.

    Its class becomes a subclass, so that names of layers and tensors stay as they are.
    """
    model.__class__ = _choosing(type(model), output)  # type: ignore[arg-type]
    return model


@lru_cache(maxsize=64)
def _choosing(kind: type[nn.Module], output: str) -> type[nn.Module]:
    plain: Callable[[nn.Module, Tensor], Any] = kind.forward

    def forward(self: nn.Module, images: Tensor) -> Any:
        return _picked(plain(self, images), output)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _picked(found: Any, output: str) -> Any:
    """No value is asked for its type: a tracer's are no tensors."""
    items = _items(found)
    return items.get(output, found) if items else found


def _items(found: Any) -> Mapping[str, Any]:
    """The parts of a dictionary, a tuple or a dataclass by their names, which are text."""
    if isinstance(found, Mapping):
        return {str(key): value for key, value in found.items()}
    if hasattr(found, "_asdict"):
        return dict(found._asdict())
    if isinstance(found, (tuple, list)):
        return {str(number): value for number, value in enumerate(found)}
    if is_dataclass(found):
        return vars(found)
    return {}


def mean_loss(outputs: Any, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of `loss` over what a network gives in training: its logits `[B, K]`, or several of
    the first one's shape, such as those of auxiliary heads or of a distilled DeiT. Features of
    another shape are left out."""
    if isinstance(outputs, Tensor):
        return loss(outputs)
    tensors = [value for value in _items(outputs).values() if isinstance(value, Tensor)]
    if not tensors:
        raise UserError(
            f"In training the network gives a {type(outputs).__name__} without tensors; expected "
            f"logits, or a dictionary or a tuple that holds them."
        )
    losses = [loss(value) for value in tensors if value.shape == tensors[0].shape]
    return torch.stack(losses).mean() if len(losses) > 1 else losses[0]


def check_forward(
    model: nn.Module, example: Tensor, classes: int, name: str = "", *, maps: bool = False
) -> None:
    """Raise a UserError where the network does not turn `example` into `[1, classes]` logits, or
    into `[1, classes, h, w]` where the task has `maps` of them."""
    found = run(model, example, name)
    fits = isinstance(found, Tensor) and found.shape[:2] == (1, classes)
    if fits and found.ndim == (4 if maps else 2):
        return
    if isinstance(found, Tensor):
        got = str(list(found.shape))
    else:
        shapes = {k: v for k, v in _items(found).items() if isinstance(v, Tensor)}
        got = f"{type(found).__name__} of " + (
            ", ".join(f"{k} {list(v.shape)}" for k, v in shapes.items()) or "no tensors"
        )
    raise UserError(
        f"The network gives {got} for one image; expected logits "
        + (
            f"[1, {classes}, h, w], for each pixel one for each class of the data. Take a network "
            f"for segmentation, such as lraspp+mnv2."
            if maps
            else f"[1, {classes}], one for each class of the data. "
            + (
                "Such maps are for --task segmentation."
                if fits and found.ndim == 4
                else "Of several outputs, --output NAME takes another."
            )
        )
    )


def run(model: nn.Module, example: Tensor, name: str = "") -> Any:
    """What the network gives for `example` in evaluation, whatever that is.

    Raises:
        UserError: it fails; the message says in which layer, on which of the user's lines, and why.
    """
    try:
        with evaluating(model), torch.no_grad():
            return model(example)
    except UserError:
        raise
    except Exception as error:  # whatever a user's forward pass raises
        raise UserError(_why(model, example, error, name)) from error


def _why(model: nn.Module, example: Tensor, error: Exception, name: str) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    shape = list(example.shape)
    if found := _CHANNELS.search(text):
        return (
            f"The network takes images of {found[1]} channels, and the preprocessing gives "
            f"{found[2]}: {shape}{_in(model, error)}. Give --preprocess with as many means and "
            f'deviations; "channels" is RGB, L or RGBA.'
        )
    if isinstance(error, TypeError) and (found := _ARGUMENTS.search(text)):
        return (
            f"The network's forward pass wants more than the images: {found[1]} has no value. Let "
            f"the factory return a module whose forward pass takes images [B, C, H, W] alone."
        )
    if _PRECISION.search(text):
        return (
            f"The network is no float32 network: {text}{_in(model, error)}. Let the factory return "
            f"net.float(); vcompress export --precision fp16 casts the file that ships."
        )
    said = raised(error, name) if ":" in name else f"{type(error).__name__}: {text}"
    said = said.replace(str(error), text) if str(error) else said
    advice = ""
    if isinstance(error, (RuntimeError, ValueError, AssertionError)) and _SIZES.search(text):
        advice = (
            " Mend that layer, which is for other inputs at any image size."
            if _fails_alike(model, example, text)
            else " Give another --image-size, or mend that layer where it is for other inputs."
        )
    return f"The network fails on an input {shape}{_in(model, error)}: {said}.{advice}"


def _fails_alike(model: nn.Module, example: Tensor, text: str) -> bool:
    """Whether images of twice the size end in the same message."""
    larger = example.repeat_interleave(2, -1).repeat_interleave(2, -2)
    try:
        with evaluating(model), torch.no_grad():
            model(larger)
    except Exception as error:  # whatever a user's forward pass raises
        return (str(error).strip().splitlines() or [""])[0] == text
    return False


def _in(model: nn.Module, error: Exception) -> str:
    """` in LAYER (its class)`: the innermost layer that was at work."""
    names = {id(module): name for name, module in model.named_modules()}
    found, traceback = None, error.__traceback__
    while traceback is not None:
        own = traceback.tb_frame.f_locals.get("self")
        found = own if isinstance(own, nn.Module) and names.get(id(own)) else found
        traceback = traceback.tb_next
    return "" if found is None else f" in {names[id(found)]} ({type(found).__name__})"
