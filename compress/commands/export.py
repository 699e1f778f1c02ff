"""`vcompress export`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ._show import show

if TYPE_CHECKING:
    from vcompress.bench.engine.settings import Flavour, Settings
    from vcompress.export.onnx_options import OnnxOptions

    from ..delivery.engines import Required


@dataclass(frozen=True, kw_only=True)
class FileFlags:
    """An ONNX file of its own: with --out, or with --to triton."""

    embed_preprocess: Literal["normalise", "resize"] | None = None
    """Preprocessing inside the file, which then takes uint8 pixels, NHWC. normalise: images of the
    network's size; resize: images of any size."""
    softmax: bool = False
    """Give probabilities (classification)."""
    sigmoid: bool = False
    """Give the probability of each label (multilabel)."""
    top_k: int | None = None
    """Number of best scores, with their class numbers, that the file gives (classification), 1 or
    more."""
    resize_in_graph: bool = False
    """Give logits at the size of the image and not at the network's stride (segmentation)."""
    argmax: bool = False
    """Give the number of each pixel's class, uint8, and no logits (segmentation)."""
    static_batch: int | None = None
    """Fixed number of images in a call, 1 or more. Default: free."""
    slim: bool = False
    """Clean the graph with onnxslim; kept only if quantisers and numbers stay."""
    infer_shapes: bool = False
    """Write the shape of every tensor into the file."""

    def options(self) -> OnnxOptions:
        from vcompress.export.onnx_options import OnnxOptions

        return OnnxOptions(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class TritonFlags:
    """A Triton model repository: with --to triton."""

    serve_name: str | None = None
    """Name of the model in requests. Default: the bundle's."""
    max_batch: int = 8
    """Largest batch that requests are gathered into, images, 1 or more."""
    instances: int = 1
    """Number of copies of the model on each device, 1 or more."""
    engine: str | None = None
    """Engine of the bundle that is served, such as tensorrt-fp16-sm86. Default: the ONNX file."""


@dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """Engines: with --to tensorrt or tensorrt-rtx."""

    precision: Literal["fp32", "fp16", "bf16", "int8", "int8+fp16", "fp8"] | None = None
    """Precision of an engine. int8, int8+fp16 and fp8 (E4M3 in the place of int8, fp16 around it)
    need a quantised bundle. Default: the bundle's."""
    sm: str = ""
    """Compute capabilities that tensorrt-rtx builds for, such as 75,86,89,120."""
    batch: str = "1:1:8"
    """Least, usual and largest batch, images; an engine is tuned for the usual one."""
    hw: str | None = None
    """Height x width of the input, pixels, such as 224x224. Default: the bundle's."""
    workspace_mib: int | None = None
    """Most scratch memory on the GPU, MiB."""
    timing_cache: Path | None = None
    """File that keeps the builder's timings for later builds; read and written."""
    optimisation_level: int | None = None
    """Effort of the builder, from 0 (fast) to 5 (longest search). Default: TensorRT's own, 3."""
    build_timeout: float = 900.0
    """Time after which a build is given up, seconds, above 0."""
    require_int8: str | None = None
    """Layers that must run in int8: all that the file quantises, or a number. With fewer the exit
    status is 1."""

    def settings(self) -> Settings:
        from vcompress.bench.engine.settings import Settings, parse_batch, parse_hw, parse_sm

        return Settings(
            sm=parse_sm(self.sm), batch=parse_batch(self.batch),
            hw=None if self.hw is None else parse_hw(self.hw), workspace_mib=self.workspace_mib,
            optimisation_level=self.optimisation_level, timeout_s=self.build_timeout,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Command:
    """Export a bundle's network again, check it, measure it, and build engines from it."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle whose model.onnx and metrics, or engines, are replaced."""
    to: tuple[Literal["onnx", "tensorrt", "tensorrt-rtx", "triton"], ...] = ("onnx",)
    """Formats to make, one or more. tensorrt builds for the GPU of this machine, tensorrt-rtx for
    those in --sm; triton writes a model repository to --out."""
    opset: int | None = None
    """Number of the ONNX operator set, 7 to 25. The file is in it and proved there, or the message
    says which operator sets hold the network. Default: 20."""
    out: Path | None = None
    """File, or with --to triton folder, that is written instead; the bundle stays as it is."""
    trust: str | None = None
    """Names of your own module:factory, with commas between several, that the bundle may run."""
    file: tyro.conf.OmitArgPrefixes[FileFlags]
    triton: tyro.conf.OmitArgPrefixes[TritonFlags]
    engines: tyro.conf.OmitArgPrefixes[EngineFlags]

    def run(self) -> None:
        from vcompress.bench.bundle.output import check_output
        from vcompress.bench.errors import UserError

        from ..delivery.engines import parse_required
        from ..delivery.reexport import export_bundle, export_file

        # Every option is read before anything is written.
        settings, options = self.engines.settings(), self.file.options()
        if self.engines.timing_cache is not None:
            check_output(self.engines.timing_cache, [self.run_dir])
        required = parse_required(self.engines.require_int8)
        if "triton" in self.to:
            self._write_repository(options)
            return
        if options.any and (self.out is None or "onnx" not in self.to):
            raise UserError(
                "--embed-preprocess, --softmax, --sigmoid, --top-k, --static-batch, --slim and "
                "--infer-shapes make an ONNX file of its own: give --out FILE.onnx. The bundle's "
                "model.onnx keeps the input and output that its golden values are for."
            )
        if "onnx" in self.to:
            if self.out is not None:
                print(export_file(self.run_dir, self.out, self.opset, self.trust, options))
            else:
                show(export_bundle(self.run_dir, self.opset, self.trust))
        self._build(settings, required)

    def _write_repository(self, options: OnnxOptions) -> None:
        from vcompress.bench.errors import UserError
        from vcompress.export.triton import Serving

        from ..delivery.triton import default_name, export_triton

        if self.out is None or len(self.to) > 1:
            raise UserError(
                "--to triton writes a model repository: give --out FOLDER, and no other format."
            )
        serving = Serving(
            name=self.triton.serve_name or default_name(self.run_dir),
            max_batch=self.triton.max_batch, instances=self.triton.instances,
        )  # fmt: skip
        text = export_triton(
            self.run_dir, self.out, serving, engine=self.triton.engine, opset=self.opset,
            options=options, trusted_factory=self.trust,
        )  # fmt: skip
        print(text)

    def _build(self, settings: Settings, required: Required) -> None:
        from ..bundles.engine_records import read_engines
        from ..delivery.engines import build_into
        from ..reporting.terminal import print_engines

        flavours: tuple[Flavour, ...] = tuple(
            kind
            for kind in self.to
            if kind == "tensorrt" or kind == "tensorrt-rtx"  # noqa: PLR1714 - mypy narrows this
        )
        if not flavours:
            return
        built = build_into(
            self.run_dir, flavours, settings, precision=self.engines.precision, required=required,
            timing_cache=self.engines.timing_cache, trusted_factory=self.trust,
        )  # fmt: skip
        print_engines(read_engines(built))
