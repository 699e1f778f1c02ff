"""Latencies of single layers at given widths on the runtime that ships, kept in a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.bundle.output import write_text
from vcompress.bench.errors import UserError

from .shadow import run, shadow
from .structure import is_depthwise

log = logging.getLogger(__name__)

TELL_SECONDS = 10.0


@dataclass(frozen=True)
class LayerCall:
    """One convolution or linear layer as the network calls it for one image."""

    path: str
    kind: str
    """conv, depthwise or linear."""
    shape: tuple[int, ...]
    """Shape of the input without channels: [H, W] of a convolution, [rows] of a linear layer."""
    inputs: int
    outputs: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def key(self, inputs: int, outputs: int) -> str:
        numbers = (self.shape, self.groups if self.kind == "conv" else 0, self.kernel, self.stride,
                   self.padding, self.dilation)  # fmt: skip
        return f"{self.kind} {inputs}>{outputs} " + " ".join(
            "x".join(map(str, n)) if isinstance(n, tuple) else f"g{n}" for n in numbers
        )


def layer_calls(model: nn.Module, example: Tensor) -> list[LayerCall]:
    """The convolutions and linear layers that run for `example` [1, C, H, W], in order."""
    calls: list[LayerCall] = []

    def remember(path: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
        images = inputs[0]
        if isinstance(module, nn.Linear):
            rows = images.numel() // images.shape[-1]
            calls.append(
                LayerCall(path, "linear", (rows,), module.in_features, module.out_features)
            )
            return
        padding = module.padding
        if isinstance(padding, str):
            padding = tuple(
                d * (k - 1) // 2 if padding == "same" else 0
                for d, k in zip(module.dilation, module.kernel_size, strict=True)
            )
        calls.append(
            LayerCall(
                path, "depthwise" if is_depthwise(module) else "conv", tuple(images.shape[2:]),
                module.in_channels, module.out_channels, module.groups,
                tuple(module.kernel_size), tuple(module.stride), tuple(padding),
                tuple(module.dilation),
            )
        )  # fmt: skip

    copy = shadow(model, lambda tensor: tensor)
    copy.eval()
    for path, module in copy.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(
                lambda module, inputs, path=path: remember(path, module, inputs)
            )
    with torch.no_grad():
        run(copy, example)
    return calls


def write_layer(call: LayerCall, inputs: int, outputs: int, path: Path) -> None:
    """An ONNX file of that layer alone, at these widths, with a ReLU behind it as usual."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return random.standard_normal(shape).astype(np.float32) * 0.1

    bias = numpy_helper.from_array(weights(outputs), "b")
    if call.kind == "linear":
        shape = [*call.shape, inputs]
        stored = [numpy_helper.from_array(weights(inputs, outputs), "w"), bias]
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    else:
        groups = inputs if call.kind == "depthwise" else call.groups
        shape = [1, inputs, *call.shape]
        stored = [numpy_helper.from_array(weights(outputs, inputs // groups, *call.kernel), "w"),
                  bias]  # fmt: skip
        nodes = [
            helper.make_node(
                "Conv", ["x", "w", "b"], ["c"], kernel_shape=call.kernel, strides=call.stride,
                pads=[*call.padding, *call.padding], dilations=call.dilation, group=groups,
            ),
            helper.make_node("Relu", ["c"], ["y"]),
        ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "layer", [value("x", TensorProto.FLOAT, shape)],
        [value("y", TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), str(path))


Measure = Callable[[Path], float]
"""From an ONNX file to its median latency in ms."""
Ratio = Callable[[Path, Path], float]
"""From two ONNX files to the latency of the second over that of the first."""


@dataclass
class LatencyTable:
    """Median latencies in ms by layer and widths; what is not there yet is measured."""

    measure: Measure
    environment: dict[str, Any]
    """Where they were taken; a file from elsewhere is not used."""
    file: Path | None = None
    entries: dict[str, float] = field(default_factory=dict)
    ratio: Ratio | None = None
    """How whole networks are compared; by default, two separate measurements are divided."""
    told_s: float | None = None
    """When the log last said how far it is, by the monotonic clock."""

    @classmethod
    def open(
        cls,
        file: Path | None,
        measure: Measure,
        environment: dict[str, Any],
        ratio: Ratio | None = None,
    ) -> LatencyTable:
        """The table in `file` if it was taken in this environment, or an empty one."""
        environment = json.loads(json.dumps(environment))
        table = cls(measure, environment, file, ratio=ratio)
        if file is None or not file.exists():
            return table
        try:
            data = json.loads(file.read_text())
            same = data["environment"] == environment
            entries = {str(key): float(value) for key, value in data["latency_ms"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{file} is no table of latencies ({error!r}): delete it, or give another file."
            ) from error
        if same:
            table.entries = entries
        return table

    def save(self) -> None:
        if self.file is None:
            return
        data = {"environment": self.environment, "latency_ms": self.entries}
        write_text(self.file, json.dumps(data, indent=1, sort_keys=True))

    def at(self, call: LayerCall, inputs: int, outputs: int) -> float:
        """Latency in ms of one call of the layer, without what any call costs."""
        return max(self._get(call, inputs, outputs) - self._idle(), 0.0)

    def _get(self, call: LayerCall, inputs: int, outputs: int) -> float:
        key = call.key(inputs, outputs)
        if key not in self.entries:
            self._tell(call, inputs, outputs)
            with temporary_folder() as folder:
                path = folder / "layer.onnx"
                write_layer(call, inputs, outputs, path)
                self.entries[key] = self.measure(path)
        return self.entries[key]

    def _tell(self, call: LayerCall, inputs: int, outputs: int) -> None:
        """Log the first measurement, then one every few seconds: a table takes minutes."""
        now = monotonic()
        if self.told_s is None or now - self.told_s >= TELL_SECONDS:
            log.info(
                "measuring latencies of layers: %d are known, now %s of %d to %d channels",
                len(self.entries), call.path or call.kind, inputs, outputs,
            )  # fmt: skip
            self.told_s = now

    def _idle(self) -> float:
        """What a run costs that computes next to nothing."""
        return self._get(LayerCall("", "linear", (1,), 1, 1), 1, 1)


def open_table(file: Path | None, threads: int = 1) -> LatencyTable:
    """The table of float networks in ONNX Runtime on this machine's CPU, with vbench's clock.

    Args:
        threads: of the runtime.
    """
    from vcompress.bench.timing.environment import preflight

    environment = {
        "runtime": "onnxruntime", "device": "cpu", "threads": threads, **preflight().comparable(),
    }  # fmt: skip
    return LatencyTable.open(
        file, vbench_measure(0.3, "cpu", threads), environment, vbench_ratio(4.0, "cpu", threads)
    )


def vbench_measure(seconds: float, device: str | None, threads: int) -> Measure:
    """Median by vbench's own loop in the runtime that the file's ending calls for."""

    def measure(path: Path) -> float:
        from vcompress.bench.runtimes import open_session
        from vcompress.bench.timing.inputs import Feed, resolve_shapes
        from vcompress.bench.timing.measure import Effort, measure

        random = np.random.default_rng(0)
        with open_session(path, device=device, threads=threads) as session:
            shapes = resolve_shapes(session.inputs, 1)
            ring = tuple(
                {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
                for _ in range(4)
            )
            feed = Feed(ring, "random N(0, 1), seed 0")
            return float(measure(session, feed, Effort.quick(seconds)).median_ms)

    return measure


def vbench_ratio(seconds: float, device: str | None, threads: int) -> Ratio:
    """Interleaved by vbench's comparison: a machine that drifts slows both files alike."""

    def ratio(first: Path, second: Path) -> float:
        from vcompress.bench.runtimes import open_session
        from vcompress.bench.timing.compare import DROPPED, BlockPlan, interleave
        from vcompress.bench.timing.inputs import resolve_shapes, synthetic
        from vcompress.bench.timing.measure import Effort, Ring, warm_up

        with (
            open_session(first, device=device, threads=threads) as a,
            open_session(second, device=device, threads=threads) as b,
        ):
            feeds = [synthetic(s.inputs, resolve_shapes(s.inputs, 1)) for s in (a, b)]
            rings = Ring(a, feeds[0]), Ring(b, feeds[1])
            for ring in rings:
                warm_up(ring, Effort.quick(seconds))
            found = interleave(
                *rings, quads=10, seconds=seconds, precision=0.005, plan=BlockPlan(DROPPED, 5, 0.02)
            )
            return float(found.ratio().value)

    return ratio
