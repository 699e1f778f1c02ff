"""Options of an exported ONNX file: preprocessing inside, softmax, top-k, fixed batch, clean-up.

The plain file was proved against torch before. Every step here is proved against the plain file in
ONNX Runtime. A step that fails is left out, and the log says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.preprocess import apply, crop, to_mode
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.ranges import at_least, check_ranges
from vcompress.bench.tasks import load

from . import onnx_maps
from .graph import opset_of, save
from .onnx_export import ExportError
from .onnx_preprocess import IMAGE, Embedding, prepend, preprocess_model
from .parity import compare

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], list[Array]]

FLOAT_SQNR_DB, QUANTISED_SQNR_DB = 60.0, 40.0
"""Least signal to error against the plain file; in int8 a last bit may turn a tie into a step."""
LEAST_SAME = 0.999
"""Least share of the pixels with the same class."""
MOST_LEVELS = 1
"""Most levels of 255 between the embedded resize, rounded in float32, and Pillow's."""


ONLY_ONNX_RUNTIME = (
    "the embedded resize is for ONNX Runtime: OpenVINO leaves its antialiasing out without a word, "
    "TensorRT does not take it; give them --embed-preprocess normalise"
)


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """Asked for with `vcompress export --to onnx --out FILE`."""

    static_batch: Annotated[int | None, at_least(1)] = None
    """Images in one call, fixed; default: free."""
    embed_preprocess: Embedding | None = None
    """Take uint8 pixels [batch, height, width, channels]: `normalise` those of the network's size,
    `resize` those of any size."""
    softmax: bool = False
    """Answer with probabilities in place of logits."""
    sigmoid: bool = False
    """Answer with the probability of each label in place of logits."""
    top_k: Annotated[int | None, at_least(1)] = None
    """Answer with the k best scores and their class numbers."""
    resize_in_graph: bool = False
    """Answer with logits at the size of the image in place of the network's stride."""
    argmax: bool = False
    """Answer with the number of each pixel's class, uint8, in place of logits."""
    slim: bool = False
    """Clean the graph with onnxslim; kept only if every quantiser and the numbers stay."""
    infer_shapes: bool = False
    """Write the shape of every tensor into the file."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sigmoid and (self.softmax or self.top_k is not None):
            raise UserError("--sigmoid is for labels, --softmax and --top-k for classes; give one.")

    def check_task(self, task: str) -> None:
        """Raise a UserError for an answer that makes no sense of the task's outputs."""
        answers = load(task).answers
        given = {
            "softmax": self.softmax, "sigmoid": self.sigmoid, "top_k": self.top_k is not None,
            "resize_in_graph": self.resize_in_graph, "argmax": self.argmax,
        }  # fmt: skip
        odd = next((name for name, asked in given.items() if asked and name not in answers), None)
        if odd is not None:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in answers)
            raise UserError(
                f"--{odd.replace('_', '-')}: the task is {task}, which has "
                f"{flags or 'no such answer'}. Leave it out."
            )

    @property
    def any(self) -> bool:
        return self != OnnxOptions()


@dataclass(frozen=True)
class Refined:
    """What was done to the file, and how it was proved."""

    notes: tuple[str, ...]


def refine(
    file: Path, options: OnnxOptions, preprocess: Preprocess, images: Sequence[Image.Image]
) -> Refined:
    """Rewrite `file`, which takes preprocessed images and gives logits, as the options ask.

    Args:
        images: to prove it on; of any size.

    Raises:
        ExportError: the result does not compute what the plain file does; it stays as it was.
        UserError: an option that this network or its operator set does not take.
        EnvironmentLacks: onnxslim is missing.
    """
    proto = onnx.load(str(file))
    before = None
    if options.embed_preprocess is not None:
        before = preprocess_model(
            preprocess, options.embed_preprocess, opset=opset_of(proto),
            ir_version=proto.ir_version, batch=options.static_batch or "batch",
        )  # fmt: skip
    proof = _Proof(proto, before, preprocess, options, images)
    if options.static_batch is not None:
        fix_batch(proto, options.static_batch)
    if options.resize_in_graph or options.argmax:
        onnx_maps.add_answer(proto, options.resize_in_graph, options.argmax)
    elif options.softmax or options.sigmoid or options.top_k is not None:
        add_answer(proto, options)
    if before is not None:
        prepend(proto, before)
    notes = proof.check(proto, file.name)
    if options.slim:
        slimmed, note = slim(proto, lambda candidate: proof.check(candidate, file.name))
        proto, notes = slimmed, [*notes, note]
    if options.infer_shapes:
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        notes.append(f"the shapes of {len(proto.graph.value_info)} tensors are written in")
    if options.any:
        asked = {k: v for k, v in asdict(options).items() if v not in (None, False)}
        add_properties(proto, {"vcompress.options": json.dumps(asked)})
    onnx.checker.check_model(proto, full_check=True)
    if options.infer_shapes:
        proof.check(proto, file.name)
    save(proto, file)
    return Refined(tuple(notes))


def drawn_images(count: int) -> list[Image.Image]:
    """Smooth colours with noise on them, of many sizes; the same every time."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        size = (int(rng.integers(200, 700)), int(rng.integers(200, 700)))
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + rng.integers(-20, 20, pixels.shape)).clip(0, 255)
        found.append(Image.fromarray(noisy.astype(np.uint8)))
    return found


def add_properties(proto: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Set metadata of the file; a key that is there already is replaced."""
    kept = [(p.key, p.value) for p in proto.metadata_props if p.key not in properties]
    del proto.metadata_props[:]
    for key, value in (*kept, *properties.items()):
        proto.metadata_props.add(key=key, value=value)


def fix_batch(proto: onnx.ModelProto, batch: int) -> None:
    """Make the free first axis of input and outputs `batch`.

    Raises:
        UserError: the batch is fixed already, at another number.
    """
    for value in (*proto.graph.input, *proto.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.HasField("dim_value") and first.dim_value != batch:
            raise UserError(
                f"--static-batch {batch}: the batch of {value.name} is fixed at {first.dim_value}."
            )
        first.Clear()
        first.dim_value = batch
    del proto.graph.value_info[:]  # it names the free batch


def add_answer(proto: onnx.ModelProto, options: OnnxOptions) -> None:
    """Probabilities in place of logits, or the best scores `scores` and class numbers `classes`.

    Raises:
        UserError: more classes are asked for than the network has, or it gives a map of them.
    """
    graph = proto.graph
    output = graph.output[0]
    kind = output.type.tensor_type.elem_type
    dims = output.type.tensor_type.shape.dim
    if len(dims) != 2:
        raise UserError(
            f"--softmax, --sigmoid and --top-k are for [batch, classes]; {output.name} has "
            f"{len(dims)} axes. Leave them."
        )
    batch, classes = dims
    first: int | str = batch.dim_value or batch.dim_param
    last = output.name
    if options.softmax or options.sigmoid:
        node = (
            helper.make_node("Softmax", [last], ["probabilities"], "vcompress/softmax", axis=1)
            if options.softmax
            else helper.make_node("Sigmoid", [last], ["probabilities"], "vcompress/sigmoid")
        )
        graph.node.append(node)
        last = "probabilities"
        shape = [first, classes.dim_value]
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(last, kind, shape))
    top_k = options.top_k
    if top_k is not None:
        if top_k > classes.dim_value:
            raise UserError(f"--top-k {top_k}: the network has {classes.dim_value} classes.")
        count = "vcompress/k"
        graph.initializer.append(numpy_helper.from_array(np.array([top_k], np.int64), count))
        graph.node.append(
            helper.make_node(
                "TopK", [last, count], ["scores", "classes"], "vcompress/top_k", axis=1
            )
        )
        del graph.output[:]
        graph.output.extend(
            helper.make_tensor_value_info(name, which, [first, top_k])
            for name, which in (("scores", kind), ("classes", TensorProto.INT64))
        )


def slim(
    proto: onnx.ModelProto, check: Callable[[onnx.ModelProto], object]
) -> tuple[onnx.ModelProto, str]:
    """The graph after onnxslim, or `proto` itself where something was lost; with a word on it.

    Args:
        check: raises where a graph computes something else.

    Raises:
        EnvironmentLacks: onnxslim is missing.
    """
    try:
        import onnxslim
    except ImportError:
        raise EnvironmentLacks("--slim needs onnxslim: pip install onnxslim.") from None
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    try:
        found = onnxslim.slim(copy)
        add_properties(found, {p.key: p.value for p in proto.metadata_props})
        onnx.checker.check_model(found, full_check=True)
        lost = quantisers(proto) - quantisers(found)
        changed = [(v.name, v.type) for v in (*proto.graph.input, *proto.graph.output)] != [
            (v.name, v.type) for v in (*found.graph.input, *found.graph.output)
        ]
        if lost:
            reason = f"it removed {sum(lost.values())} of {quantisers(proto).total()} quantisers"
        elif changed:
            reason = "it changed the inputs or outputs"
        else:
            check(found)
            return found, (
                f"onnxslim: {len(proto.graph.node)} nodes became {len(found.graph.node)}, all "
                f"{quantisers(proto).total()} quantisers and the numbers stayed"
            )
    except ExportError as error:
        reason = f"the numbers changed: {error}"
    except Exception as error:  # a bug in onnxslim must not cost the export
        reason = f"it failed ({type(error).__name__}: {str(error)[:200]})"
    return proto, f"onnxslim's graph was not taken, the file is as it was: {reason}"


def quantisers(proto: onnx.ModelProto) -> Counter[tuple[str, str]]:
    """How often each QuantizeLinear and DequantizeLinear stands there, by its scale and kind.

    A DequantizeLinear of stored int8 values counts apart from one of a computed tensor: folding it
    into float32 weights is what is looked for.
    """
    constants = {t.name: t for t in proto.graph.initializer}
    found: Counter[tuple[str, str]] = Counter()
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants.get(node.input[1])
        stored = "stored" if node.input[0] in constants else "computed"
        value = numpy_helper.to_array(scale).tobytes().hex() if scale is not None else "computed"
        found[f"{node.op_type} of a {stored} tensor", value] += 1
    return found


class _Proof:
    """The plain file's answers on some images, and what another file is held against."""

    def __init__(
        self, plain: onnx.ModelProto, before: onnx.ModelProto | None, preprocess: Preprocess,
        options: OnnxOptions, images: Sequence[Image.Image],
    ) -> None:  # fmt: skip
        self.options, self.quantised = options, bool(quantisers(plain))
        network = session(plain.SerializeToString())
        self.notes: list[str] = []
        self.fed: list[Array] = []
        rows: list[Array] = []
        ours = session(before.SerializeToString()) if before is not None else None
        batch = options.static_batch or 1
        name = plain.graph.input[0].name
        levels, differing, end_to_end = 0.0, [], []
        for image in images:
            wanted = apply(preprocess, image)[None]
            given = wanted
            if ours is not None:
                pixels = _pixels(image, preprocess, options.embed_preprocess == "normalise")
                self.fed.append(np.repeat(pixels, batch, axis=0))
                given = ours({IMAGE: self.fed[-1]})[0][:1]
                std = np.asarray(preprocess.std, np.float32)[None, :, None, None]
                apart = np.abs(given - wanted) * std * 255
                levels = max(levels, float(apart.max()))
                differing.append(float((apart > 0.5).mean()))
            else:
                self.fed.append(np.repeat(wanted, batch, axis=0))
            rows.append(network({name: given})[0].astype(np.float64))
            if ours is not None:
                same = network({name: wanted})[0].argmax(1) == rows[-1].argmax(1)
                end_to_end.append(float(same.mean()))
        self.logits = np.concatenate(rows)
        if ours is not None:
            most = MOST_LEVELS if options.embed_preprocess == "resize" else 0
            if levels > most + 0.01:
                raise ExportError(
                    f"The embedded preprocessing differs from Pillow's by {levels:.1f} of 255 "
                    f"levels; at most {most} was expected. Export without --embed-preprocess."
                )
            self.notes.append(
                f"embedded preprocessing: {np.mean(differing):.2%} of the values of {len(images)} "
                f"images are {levels:.0f} of 255 levels from Pillow's, the best class is the same "
                f"for {np.mean(end_to_end):.1%}"
            )
        if options.embed_preprocess == "resize" and preprocess.interpolation != "nearest":
            self.notes.append(ONLY_ONNX_RUNTIME)

    def check(self, proto: onnx.ModelProto, name: str) -> list[str]:
        """Raises `ExportError` where the file does not answer as the plain one does."""
        run = session(proto.SerializeToString())
        entry = proto.graph.input[0].name
        answers = [[a[:1] for a in run({entry: fed})] for fed in self.fed]
        got = [np.concatenate(column).astype(np.float64) for column in zip(*answers, strict=True)]
        if self.options.argmax:
            return [*self.notes, self._same_classes(got[0], proto, name)]
        want = _probabilities(self.logits, self.options)
        if self.options.resize_in_graph:
            want = onnx_maps.resized(want, onnx_maps.input_size(proto))
        if self.options.top_k is not None:
            scores, classes = got[0], got[1].astype(np.int64)
            best = -np.sort(-want, axis=1)[:, : self.options.top_k]
            # The classes are those whose scores they are; ties may stand in any order.
            want = np.concatenate([best, np.take_along_axis(want, classes, axis=1)], axis=1)
            got = [np.concatenate([scores, scores], axis=1)]
        sqnr = compare(want, got[0]).sqnr_db
        least = QUANTISED_SQNR_DB if self.quantised else FLOAT_SQNR_DB
        if not sqnr >= least:
            raise ExportError(
                f"{name} does not answer as the plain file does: SQNR {sqnr:.1f} dB on "
                f"{len(self.fed)} images, expected {least:g} dB."
            )
        return [
            *self.notes,
            f"against the plain file: SQNR {sqnr:.1f} dB on {len(self.fed)} images",
        ]

    def _same_classes(self, got: Array, proto: onnx.ModelProto, name: str) -> str:
        logits = self.logits
        if self.options.resize_in_graph:
            logits = onnx_maps.resized(logits, onnx_maps.input_size(proto))
        share = float((logits.argmax(1) == got).mean())
        if share < LEAST_SAME:
            raise ExportError(
                f"{name} does not answer as the plain file does: the class of {share:.3%} of the "
                f"pixels is the same on {len(self.fed)} images, expected {LEAST_SAME:.1%}."
            )
        return f"against the plain file: {share:.3%} of the pixels on {len(self.fed)} images"


def session(model: bytes) -> Run:
    """Runs a model in ONNX Runtime, operator by operator as the file says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        opened = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime does not run the file, so it cannot be proved: {str(error)[:300]}"
        ) from None
    return lambda feeds: list(opened.run(None, dict(feeds)))


def _pixels(image: Image.Image, preprocess: Preprocess, cropped: bool) -> Array:
    image = to_mode(image, preprocess.channels)
    pixels = np.asarray(crop(preprocess, image) if cropped else image)
    return (pixels[..., None] if pixels.ndim == 2 else pixels)[None]


def _probabilities(logits: Array, options: OnnxOptions) -> Array:
    """What the asked answer makes of logits `[B, K]`; those themselves where none was asked."""
    if options.sigmoid:
        shares: Array = 1 / (1 + np.exp(-logits))
        return shares
    return _softmax(logits) if options.softmax else logits


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Array = powers / powers.sum(axis=1, keepdims=True)
    return result
