"""A trace that knows the sizes of one network's input, for forward passes that branch on them.

Every step also runs on two batches of fake tensors, of 2 and of 3 images. A size that is the same
in both is a number; one that differs depends on the batch and stays a node of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .in_place import Assignable

_BATCHES = (2, 3)
_MISSING = object()


class Shaped(Assignable):
    """A value of the graph that knows its sizes, type and device."""

    @property
    def shape(self) -> Any:
        return self.size()

    @property
    def dtype(self) -> Any:
        return self._own("dtype")

    @property
    def device(self) -> Any:
        return self._own("device")

    @property
    def ndim(self) -> Any:
        return self._own("ndim")

    def dim(self) -> Any:
        return self._own("ndim")

    def size(self, dim: int | None = None) -> Any:
        """All sizes, or one."""
        values = self._values()
        if not all(isinstance(value, Tensor) for value in values):
            return self.tracer.create_proxy("call_method", "size", (self, *_given(dim)), {})
        one, other = values
        places = range(one.ndim) if dim is None else (dim % one.ndim,)
        sizes = [one.shape[n] if one.shape[n] == other.shape[n] else self._size(n) for n in places]
        return tuple(sizes) if dim is None else sizes[0]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """A change to the type that it has anyway is none."""
        wanted = args[0] if len(args) == 1 and not kwargs else kwargs.get("dtype")
        if isinstance(wanted, torch.dtype) and wanted == self._own("dtype"):
            return self
        return self.tracer.create_proxy("call_method", "to", (self, *args), kwargs)

    def _size(self, dim: int) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, dim), {})

    def _own(self, name: str) -> Any:
        value = self._values()[0]
        return getattr(value, name) if isinstance(value, Tensor) else fx.proxy.Attribute(self, name)

    def _values(self) -> tuple[Any, ...]:
        return self.tracer.values.get(self.node, (_MISSING,))  # type: ignore[attr-defined, no-any-return]


class ShapedTracer(fx.Tracer):
    """Traces a network whose one input is `[B, *input_shape]`."""

    proxy_buffer_attributes = True

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.values: dict[fx.Node, tuple[Any, Any]] = {}
        # The weights need not be converted one by one.
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._aside = False
        """While a step is run on the fake tensors: nothing of that belongs to the graph."""

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._aside:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._aside:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Shaped(node, self)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind != "output":
            values = tuple(self._value(node, batch) for batch in range(len(_BATCHES)))
            if not any(value is _MISSING for value in values):
                self.values[node] = values
        return node

    def _value(self, node: fx.Node, batch: int) -> Any:
        if node.op == "placeholder":
            with self._fake:
                return torch.empty(_BATCHES[batch], *self.input_shape)
        if any(n not in self.values for n in node.all_input_nodes):
            return _MISSING
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n][batch])
        self._aside = True
        try:
            with self._fake, torch.no_grad():
                return self._run(node, args, kwargs)
        except Exception:  # what cannot be run without values has no sizes
            return _MISSING
        finally:
            self._aside = False

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            return type(module).forward(module, *args, **kwargs)
        if node.op == "get_attr":
            found: Any = self.root
            for name in str(node.target).split("."):
                found = getattr(found, name)
            return found
        return _MISSING


def _given(dim: int | None) -> tuple[int, ...]:
    return () if dim is None else (dim,)


def input_shape(model: nn.Module) -> tuple[int, ...] | None:
    """The sizes of one input, where a network keeps them because its forward pass asks."""
    found: tuple[int, ...] | None = getattr(model, "input_shape", None)
    return found
