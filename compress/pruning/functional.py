"""Layers that are calls alone: `F.conv2d(x, self.kernel)`, `F.linear`, `x @ self.matrix` and
`F.batch_norm`, with tensors that the network keeps itself.

The graph of channels knows modules. In the copy that is traced each such call goes through a module
that stands for it; in the structure that is found its tensors stand in the place of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .attention import layout
from .structure import Cut, Structure, slices

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups")
_PRODUCT = ("input", "matrix")
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    torch.conv1d: _CONV,
    torch.conv2d: _CONV,
    torch.conv3d: _CONV,
    torch.conv_transpose1d: _TRANSPOSED,
    torch.conv_transpose2d: _TRANSPOSED,
    torch.conv_transpose3d: _TRANSPOSED,
    F.linear: ("input", "weight", "bias"),
    torch.matmul: _PRODUCT,
    torch.mm: _PRODUCT,
    Tensor.matmul: _PRODUCT,
    Tensor.mm: _PRODUCT,
    Tensor.__matmul__: _PRODUCT,
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var"),
}
_MODULES: dict[tuple[bool, int], Any] = {
    (False, 3): nn.Conv1d, (False, 4): nn.Conv2d, (False, 5): nn.Conv3d,
    (True, 3): nn.ConvTranspose1d, (True, 4): nn.ConvTranspose2d, (True, 5): nn.ConvTranspose3d,
}  # fmt: skip
_KNOWN = (
    nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention, nn.modules.batchnorm._NormBase,
    nn.Embedding, nn.RNNBase,
)  # fmt: skip
"""Modules that are layers themselves: their calls are theirs."""


@dataclass(frozen=True)
class Call:
    """One function with tensors of the network."""

    name: str
    """Name of the tensor that the others go with: the weight, or a running mean."""
    tensors: Mapping[str, str]
    """Names in the network by what they are to the module that stands for the call."""
    held: Mapping[str, Tensor]
    transposed: bool
    """Whether it is a transposed convolution."""
    flipped: bool
    """Whether the weight lies as [in, out], as in a matrix product."""
    groups: int

    def stand_in(self) -> nn.Module:
        """A module with these tensors; its forward pass takes the input and what is then called."""
        weight = self.held.get("weight")
        made: Any
        if "running_mean" in self.held:
            made = _Norm(len(self.held["running_mean"]), affine=False)
        elif weight is not None and weight.dim() == 2:
            made = _Linear(1, 1, bias=False)
            made.in_features, made.out_features = (
                weight.shape if self.flipped else reversed(weight.shape)
            )
        else:
            assert weight is not None
            kind = _MODULES[self.transposed, weight.dim()]
            ways = weight.shape[0] if self.transposed else weight.shape[1] * self.groups
            made = _through(kind)(self.groups, self.groups, 1, groups=self.groups, bias=False)
            made.in_channels = ways
            made.out_channels = (
                weight.shape[1] * self.groups if self.transposed else weight.shape[0]
            )
        for role, tensor in self.held.items():
            if role.startswith("running"):
                setattr(made, role, tensor.detach())
                continue
            if self.flipped and role == "weight":
                tensor = tensor.detach().t()
            if not isinstance(tensor, nn.Parameter):
                tensor = nn.Parameter(tensor.detach(), requires_grad=tensor.is_floating_point())
            made.register_parameter(role, tensor)
        return made  # type: ignore[no-any-return]


def _through(kind: type[nn.Module]) -> Any:
    """A module of `kind`, as far as its channels go, that calls what it is given."""

    def forward(self: Any, images: Tensor, call: Callable[[Any, Tensor], Tensor]) -> Tensor:
        return call(self, images)

    return type(f"Called{kind.__name__}", (kind,), {"forward": forward})


_Linear, _Norm = _through(nn.Linear), _through(nn.BatchNorm2d)


Again = Callable[[Any, Tensor], Tensor]
"""A call again, with the tensors of a module (None: its own) and another input."""


class Calls(TorchFunctionMode):
    """Hands each call of a layer's function with the network's own tensors to `handle`.

    Args:
        handle: takes the call, its input and the function to call again; gives the output.
    """

    def __init__(
        self,
        model: nn.Module,
        handle: Callable[[Call, Tensor, Again], Tensor],
    ) -> None:
        super().__init__()
        self.handle = handle
        owned = {
            id(tensor)
            for module in model.modules()
            if isinstance(module, _KNOWN) or layout(module) is not None
            for tensor in (*module.parameters(), *module.buffers())
        }
        named = (*model.named_parameters(), *model.named_buffers())
        self.names = {id(tensor): name for name, tensor in named if id(tensor) not in owned}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        arguments = _ARGUMENTS.get(func)
        call = self._call(func, {**dict(zip(arguments, args, strict=False)), **kwargs}) if (
            arguments
        ) else None  # fmt: skip
        if arguments is None or call is None or not args:
            return func(*args, **kwargs)

        def again(module: Any, images: Tensor) -> Tensor:
            given: dict[str, Tensor] = {}
            if module is not None and call.flipped:
                given = {"matrix": module.weight.t()}
            elif module is not None:
                given = {role: getattr(module, role) for role in call.held}
            places = (given.get(name, value) for name, value in zip(arguments[1:], args[1:],
                                                                    strict=False))  # fmt: skip
            named = {name: given.get(name, value) for name, value in kwargs.items()}
            rest = args[len(arguments) :]
            return func(images, *places, *rest, **named)  # type: ignore[no-any-return]

        return self.handle(call, args[0], again)

    def _call(self, func: Any, given: dict[str, Any]) -> Call | None:
        flipped = "matrix" in given
        if flipped:
            given["weight"] = given.pop("matrix")
        roles = [r for r in ("weight", "bias", "running_mean", "running_var") if r in given]
        held: dict[str, Any] = {role: given[role] for role in roles if given[role] is not None}
        first = next((role for role in ("weight", "running_mean") if role in held), None)
        norm = "running_mean" in roles
        if first is None or not isinstance(given.get("input"), Tensor):
            return None
        if norm and ("running_var" not in held or "running_mean" not in held):
            return None
        if any(id(tensor) not in self.names for tensor in held.values()):
            return None  # computed from others, or a layer's
        weight = held.get("weight")
        if not norm and (weight is None or weight.dim() < 2 or (flipped and weight.dim() != 2)):
            return None
        tensors: dict[str, str] = {role: self.names[id(tensor)] for role, tensor in held.items()}
        transposed = _ARGUMENTS[func] is _TRANSPOSED
        groups = int(given.get("groups", 1))
        return Call(tensors[first], tensors, held, transposed, flipped, groups)


class Traceable(nn.Module):
    """`network` with a module for each of its calls, for the trace.

    Args:
        network: the copy that is traced.
        example: one image, [1, C, H, W].
        run: how the network is run to its end.
    """

    def __init__(self, network: nn.Module, example: Tensor, run: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self.run = run
        found: dict[tuple[str, int], Call] = {}

        def note(call: Call, images: Tensor, again: Again) -> Tensor:
            found.setdefault((call.name, call.groups), call)
            return again(None, images)

        with Calls(network, note):
            run(network, example)
        self.calls = {key: (call.stand_in(), call) for key, call in found.items()}
        self.stand_ins = nn.ModuleList(module for module, _ in self.calls.values())

    def forward(self, images: Tensor) -> Any:
        def through(call: Call, given: Tensor, again: Again) -> Tensor:
            module, _ = self.calls[call.name, call.groups]
            return module(given, again)  # type: ignore[no-any-return]

        with Calls(self.network, through):
            return self.run(self.network, images)

    def paths(self) -> dict[nn.Module, str]:
        """Every module by the name that it has in the network; those of calls by their tensor's."""
        return {module: path for path, module in self.network.named_modules()} | {
            module: call.name for module, call in self.calls.values()
        }

    def in_tensors(self, found: Structure) -> Structure:
        """`found` with cuts of tensors in the place of cuts of the modules of calls."""
        calls = {call.name: (module, call) for module, call in self.calls.values()}
        groups = []
        for group in found.groups:
            cuts: list[Cut] = []
            for cut in group.cuts:
                known = calls.get(cut.module) if cut.dim is None else None
                cuts += [cut] if known is None else _of_tensors(cut, *known)
            groups.append(replace(group, cuts=tuple(cuts)))
        return replace(found, groups=tuple(groups))


def _of_tensors(cut: Cut, module: nn.Module, call: Call) -> list[Cut]:
    made = []
    for part in slices(module, cut.side):
        name = call.tensors.get(part.tensor)
        if name is None:
            continue
        unit_of = dict(zip(cut.indices, cut.units, strict=True))
        if part.modulo:
            unit_of = {index % part.modulo: unit for index, unit in unit_of.items()}
        dim = 1 - part.dim if call.flipped else part.dim
        width = part.modulo or cut.width
        indices = tuple(sorted(unit_of))
        units = tuple(unit_of[index] for index in indices)
        made.append(Cut(name, cut.side, indices, units, width, dim))
    return made
