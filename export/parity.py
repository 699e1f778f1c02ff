"""Parity: proves that the ONNX file computes what the network in torch computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from vcompress.bench.tasks import CLASSIFICATION, load

from . import mixing
from .integer_kernels import wrong_kernel
from .modes import evaluating
from .onnx_export import logits_of, output_names
from .runtime import Array, run_onnx

MIN_PARTS = 25.0
"""Least SQNR with optimisations on, for partly quantised networks, dB."""
ONE_CLASS = " Warning: the network gives every image the same class; agreement says little."
TIE = 0.01
"""Distance from the middle of two integers, in steps, within which either may be the result. A mean
of four integers is a tie one time in four."""


@dataclass(frozen=True)
class Agreement:
    """Two arrays of logits of the same images."""

    top1_agreement: float
    """Share of the decisions that are the same, 0 to 1: of images (of pixels, for a map of logits)
    the best class, of labels whether they are there; 1 where nothing is decided."""
    sqnr_db: float
    """Signal to error in decibels; infinite where they are equal."""
    max_abs: float


@dataclass(frozen=True)
class Parity:
    """Torch against ONNX Runtime on one file."""

    ok: bool
    message: str
    images: int
    optimised: Agreement
    """All graph optimisations of ONNX Runtime on, its default."""
    plain: Agreement
    """Optimisations off: the operators of the file one by one."""
    one_class: bool
    """The reference predicts one class for every image: agreement says little."""
    first_divergence: str | None
    """The first quantised tensor that differs by more than rounding, given equal inputs."""
    alone: Agreement | None = None
    """One image in a call, optimisations on; None where the file has another fixed batch."""
    mixes: str | None = None
    """The layer that makes an image's outputs depend on its batch."""


def compare(reference: Array, other: Array, task: str = CLASSIFICATION) -> Agreement:
    """Agreement of two arrays [B, K, ...] of outputs, whose decisions are those of `task`."""
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    difference = reference - other
    error, signal = float(np.square(difference).sum()), float(np.square(reference).sum())
    if error == 0:
        sqnr = float("inf")
    else:
        sqnr = 10 * float(np.log10(signal / error)) if signal > 0 and error > 0 else float("nan")
    decide = load(task).decisions
    decided, again = decide(reference), decide(other)
    same = 1.0 if decided is None or again is None else float((decided == again).mean())
    return Agreement(
        top1_agreement=same,
        sqnr_db=sqnr,
        max_abs=float(np.abs(difference).max(initial=0.0)),
    )


def run_torch(
    model: nn.Module, images: Tensor, batch_size: int = 32, output: str | None = None
) -> Array:
    """Logits of a network in evaluation, [N, K, ...]; the mode of each module is as before
    afterwards. `output` names one of several, see `logits_of`."""
    device = next((t.device for t in (*model.parameters(), *model.buffers())), images.device)
    parts = []
    with evaluating(model), torch.no_grad():
        for batch in torch.split(images, batch_size):
            made = logits_of(model(batch.to(device)), output)
            parts.append(made.float().cpu().numpy())
    return np.concatenate(parts)


def check(
    model: nn.Module,
    path: Path | str,
    images: Tensor,
    *,
    min_agreement: float = 0.999,
    min_sqnr_db: float = 40.0,
    batch_size: int = 32,
    task: str = CLASSIFICATION,
    output: str | None = None,
) -> Parity:
    """Compare `model` with the file at `path` on `images` [N, C, H, W].

    Rounding to 8 bits turns a last-bit difference near a tie into a whole step, and the steps
    spread from layer to layer: two correct implementations of a deep network agree to a fraction
    of its quantisation error, not to float32. So a file that falls short of the thresholds is
    searched tensor by tensor, each computed in torch from ONNX Runtime's own inputs: it is wrong
    where one of them differs.

    Args:
        model: the network that was exported (from `to_export`, or the float one).
        min_agreement: least share of images with the same best class, 0 to 1.
        min_sqnr_db: least signal-to-error ratio, dB.
        output: the name of the one that was exported, of several; where the file has all, the one
            that is compared.
    """
    path = Path(path)
    fixed, place = _fixed_batch(path), _place(path, output)
    batch_size = fixed or batch_size
    reference = run_torch(model, images, batch_size, output)
    array = images.cpu().numpy()
    optimised, plain = (
        compare(reference, run_onnx(path, array, optimised=on, batch_size=batch_size)[place], task)
        for on in (True, False)
    )
    one_class = _one_class(reference, task)
    rounds = any(map(rounds_activation, model.modules()))
    runs = [("optimisations on", optimised), ("optimisations off", plain)]
    alone, mixes = None, None
    if fixed in (None, 1):
        few = images[: mixing.IMAGES]
        found = run_onnx(path, few.cpu().numpy(), optimised=True, batch_size=1)[place]
        mixes = mixing.mixed_layer(model, few, rounds)
        wanted = reference[: len(few)] if mixes is None else run_torch(model, few, 1, output)
        alone = compare(wanted, found, task)
        if not rounds:  # of a few images a tie may be off by a step
            runs.append(("batch 1", alone))
    short = [
        f"{name}: {_decided(a, task)}SQNR {a.sqnr_db:.1f} dB"
        for name, a in runs
        if not (a.top1_agreement >= min_agreement and a.sqnr_db >= min_sqnr_db)
    ]
    first = first_divergence(model, path, images[:batch_size]) if short else None
    if short and first is None and rounds:
        first = wrong_kernel(path, array, batch_size)
    graph = isinstance(model, fx.GraphModule)
    explained = isinstance(model, fx.GraphModule) and bool(_roundings(model))
    failed = bool(short) and (first is not None or not explained)
    if not graph and rounds:
        # Quantised in parts: there is no one graph to search, so the default run decides.
        least = optimised.top1_agreement >= min_agreement and optimised.sqnr_db >= MIN_PARTS
        failed = first is not None or not least
    if failed:
        message = (
            f"{path.name} does not compute what the network computes ({'; '.join(short)}; expected "
            f"{min_agreement:.1%} and {min_sqnr_db:g} dB)."
            + (f" The first tensor that differs is {first}." if first else "")
        )
    elif short:
        searched = "every tensor is right given its inputs" if graph else "quantised in parts"
        message = (
            f"{path.name}: {searched}; end to end, ties in rounding add up ({'; '.join(short)})."
        )
    else:
        message = (
            f"{path.name} agrees: {_decided(optimised, task)}"
            f"SQNR {optimised.sqnr_db:.1f} dB, max abs {optimised.max_abs:.2g}."
        )
    if one_class:
        message += ONE_CLASS
    if mixes is not None:
        message += f" {mixing.across_the_batch(mixes)}"
    return Parity(
        ok=not failed,
        message=message,
        images=len(images),
        optimised=optimised,
        plain=plain,
        one_class=one_class,
        first_divergence=first,
        alone=alone,
        mixes=mixes,
    )


def _fixed_batch(path: Path) -> int | None:
    proto = onnx.load(str(path), load_external_data=False)
    return proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def _place(path: Path, output: str | None) -> int:
    """Which of a file's outputs has that name; the first of a file that has one alone."""
    names = output_names(path)
    return names.index(output) if output in names else 0


LEAST_CAST_SQNR_DB = {"fp16": 40.0, "bf16": 25.0, "int8+fp16": 15.0}
"""What a cast may cost. In a quantised network float16 turns values near a tie into whole steps."""
HELD_PIXELS = 8 * 224 * 224
"""Most pixels of the images whose tensors are held at once; 32 images took 20 GB in MaxViT."""
REFERENCE_IMAGES = 4
"""The reference evaluator of ONNX is slow."""


def check_cast(
    model: nn.Module, path: Path, images: Tensor, precision: str, task: str = CLASSIFICATION
) -> Parity:
    """Compare a file that was cast with the float32 network (or its fake-quant) in torch.

    ONNX Runtime has no bfloat16 convolution on the CPU: there the reference evaluator of ONNX
    computes the file, on a few images.

    Args:
        precision: fp16, bf16 or int8+fp16.
    """
    runs = runs_on_cpu(path)
    images = images if runs else images[:REFERENCE_IMAGES]
    reference, array = run_torch(model, images), images.cpu().numpy()
    if runs:
        where = "ONNX Runtime"
        optimised = compare(reference, run_onnx(path, array, optimised=True)[0], task)
        plain = compare(reference, run_onnx(path, array, optimised=False)[0], task)
    else:
        where = f"the reference evaluator of ONNX on {len(images)} images"
        optimised = plain = compare(reference, run_reference(path, array)[0], task)
    least = LEAST_CAST_SQNR_DB[precision]
    ok = min(optimised.sqnr_db, plain.sqnr_db) >= least
    one_class = _one_class(reference, task)
    message = (
        f"{path.name} in {precision} {'agrees with' if ok else 'differs from'} the float32 network "
        f"in {where}: {_decided(optimised, task)}SQNR {optimised.sqnr_db:.1f} dB"
        + ("." if ok else f"; expected {least:g} dB. Its values leave the range of the type.")
    )
    if one_class:
        message += ONE_CLASS
    return Parity(ok, message, len(images), optimised, plain, one_class, None)


def _one_class(outputs: Array, task: str) -> bool:
    """Whether every image is decided alike."""
    decided = load(task).decisions(outputs)
    return decided is not None and len(outputs) > 1 and bool((decided == decided[:1]).all())


def _decided(found: Agreement, task: str) -> str:
    """The share of equal decisions, as a part of a sentence; empty where nothing is decided."""
    what = load(task).decides
    return f"{what} equal in {found.top1_agreement:.2%}, " if what else ""


def runs_on_cpu(path: Path) -> bool:
    """Whether ONNX Runtime has every operator of the file on the CPU, in its types."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return False
    return True


def run_reference(path: Path, images: Array) -> list[Array]:
    """All outputs of a file in the reference evaluator of ONNX, one image at a time."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path))
    name = evaluator.input_names[0]
    parts: list[Any] = [evaluator.run(None, {name: images[i : i + 1]}) for i in range(len(images))]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def first_divergence(model: nn.Module, path: Path, images: Tensor) -> str | None:
    """The first quantised tensor that differs in torch and in the file, given the same inputs.

    Each node of the graph is computed in torch from the values that ONNX Runtime has for the
    tensors before it, so that nothing adds up. A tensor differs where more than one value in a
    thousand is off by a step and no tie, or any by more than one.
    """
    if not isinstance(model, fx.GraphModule):
        return None
    proto = onnx.load(str(path))
    maker = {n.output[0]: n for n in proto.graph.node}
    unrounded = {  # tensor -> what its QuantizeLinear reads; constants and padded ones have none
        n.output[0]: maker[n.input[0]].input[0]
        for n in proto.graph.node
        if n.op_type == "DequantizeLinear"
        and n.input[0] in maker
        and maker[n.input[0]].op_type == "QuantizeLinear"
    }
    steps = _roundings(model)
    wanted = [t for t in dict.fromkeys(steps.values()) if t in unrounded]
    if not wanted:
        return None
    inputs = {entry.name for entry in proto.graph.input}
    names = dict.fromkeys([*wanted, *(unrounded[t] for t in wanted)])
    asked = [name for name in names if name not in inputs]
    del proto.graph.output[:]
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in asked
    )
    file = proto.SerializeToString()
    walk = _TeacherForced(model, steps)
    for part in torch.split(images, max(1, HELD_PIXELS // (images.shape[-1] * images.shape[-2]))):
        array = part.numpy()
        made = run_onnx(file, array, optimised=False, batch_size=len(part))
        values = dict(zip(asked, made, strict=True)) | dict.fromkeys(inputs, array)
        walk.compare(part, {t: (values[t], values[unrounded[t]]) for t in wanted})
    return walk.first()


def rounds_activation(module: nn.Module) -> bool:
    """Whether a module is a quantiser: it makes an activation multiples of its buffer `scale`.

    It says so itself by a class attribute `rounds_activation = True`. One that rounds another unit
    than it gives has a method `in_its_unit` from what is rounded to that.
    """
    return getattr(module, "rounds_activation", False) is True


def _roundings(model: fx.GraphModule) -> dict[str, str]:
    """Node -> module, of the nodes of a network from `to_export` that round an activation."""
    return {
        node.name: str(node.target)
        for node in model.graph.nodes
        if node.op == "call_module" and rounds_activation(model.get_submodule(str(node.target)))
    }


class _TeacherForced(fx.Interpreter):
    """Runs a graph; a quantised tensor is compared, then replaced by ONNX Runtime's."""

    def __init__(self, model: fx.GraphModule, steps: dict[str, str]):
        super().__init__(model)
        self.steps = steps
        self.shapes: dict[str, tuple[int, ...]] = {}
        """ONNX Runtime's, of tensors that have another one in torch."""
        self.tally: dict[str, tuple[int, int, int]] = {}
        """Tensor -> values that are off and no tie, all values, the most steps that one is off."""

    def compare(self, images: Tensor, found: dict[str, tuple[Array, Array]]) -> None:
        """Run some images; `found` has ONNX Runtime's value of a tensor, and the one before it
        was rounded."""
        self.found, self.seen = found, set[str]()
        with torch.no_grad():
            self.run(images)

    def first(self) -> str | None:
        """The first tensor that differs, over all images so far."""
        for target, (wrong, total, most) in self.tally.items():
            if target in self.shapes:
                return f"{target} (shape {self.shapes[target]})"
            if wrong / total > 1e-3 or most > 1:
                return f"{target} ({wrong / total:.2%} of its values, by up to {most} steps)"
        return None

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        target = self.steps.get(n.name)
        if target is None or target not in self.found or target in self.seen:
            return made
        self.seen.add(target)
        theirs, unrounded = (torch.from_numpy(array) for array in self.found[target])
        wrong, total, most = self.tally.get(target, (0, 0, 0))
        if theirs.shape != made.shape:
            self.shapes[target] = tuple(theirs.shape)
            self.tally[target] = wrong, total, most
            return made
        module: Any = self.module.get_submodule(target)
        scale = float(torch.as_tensor(module.scale))
        if hasattr(module, "in_its_unit"):
            unrounded = module.in_its_unit(unrounded)
        off = ((made - theirs).abs() / scale).round()
        tie = (made - unrounded).abs() / scale <= 0.5 + TIE
        wrong += int(((off > 0) & ~tie).sum())
        self.tally[target] = wrong, total + off.numel(), max(most, int(off.max()))
        return theirs
