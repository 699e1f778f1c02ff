"""`vcompress export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ._show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Export a bundle's network again, check it, measure it, and build engines from it."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """The bundle; its model.onnx and metrics are replaced, or its engines."""
    to: tuple[Literal["onnx", "tensorrt", "tensorrt-rtx", "triton"], ...] = ("onnx",)
    """Formats. tensorrt builds for the GPU of this machine, tensorrt-rtx for those in --sm; triton
    writes a model repository to --out."""
    opset: int | None = None
    """ONNX operator set; default: the exporter's."""
    out: Path | None = None
    """Write the ONNX file here instead and leave the bundle as it is."""
    embed_preprocess: Literal["normalise", "resize"] | None = None
    """With --out: take uint8 pixels, NHWC; of the network's size, or of any size."""
    softmax: bool = False
    """With --out: answer with probabilities (classification)."""
    sigmoid: bool = False
    """With --out: answer with the probability of each label (multilabel)."""
    top_k: int | None = None
    """With --out: answer with the k best scores and their class numbers."""
    static_batch: int | None = None
    """With --out: a fixed number of images in a call; default: free."""
    slim: bool = False
    """With --out: clean the graph with onnxslim, kept only if quantisers and numbers stay."""
    infer_shapes: bool = False
    """With --out: write the shape of every tensor into the file."""
    serve_name: str | None = None
    """With --to triton: the model's name in requests; default: the bundle's."""
    max_batch: int = 8
    """With --to triton: requests are gathered up to so many images."""
    instances: int = 1
    """With --to triton: copies of the model on each device."""
    engine: str | None = None
    """With --to triton: the bundle's engine to serve, such as tensorrt-fp16-sm86."""
    precision: Literal["fp32", "fp16", "bf16", "int8", "int8+fp16", "fp8"] | None = None
    """Of the engine; default: what the bundle holds. int8 and fp8 need a quantised bundle.
    fp8 puts E4M3 in the place of int8, with fp16 around it."""
    sm: str = ""
    """Compute capabilities for tensorrt-rtx, such as 75,86,89,120."""
    batch: str = "1:1:8"
    """Least, usual and largest batch of an engine; it is tuned for the usual one."""
    hw: str | None = None
    """Height x width of an engine; default: the bundle's."""
    workspace_mib: int | None = None
    """Most scratch memory of the GPU for an engine."""
    timing_cache: Path | None = None
    """File with what earlier builds have measured; read and written."""
    optimisation_level: int | None = None
    """0 builds fast, 5 searches longest; default: TensorRT's own, 3."""
    build_timeout: float = 900.0
    """Seconds after which a build is given up."""
    require_int8: str | None = None
    """Fail when less became int8: `all` that the file quantises, or a number of layers."""
    trust: str | None = None
    """Your own module:factory that the bundle may run."""

    def run(self) -> None:
        from vcompress.bench.engine.settings import (
            Flavour,
            Settings,
            parse_batch,
            parse_hw,
            parse_sm,
        )
        from vcompress.bench.errors import UserError
        from vcompress.export.onnx_options import OnnxOptions

        from ..bundles.engine_records import read_engines
        from ..delivery.engines import build_into, parse_required
        from ..delivery.reexport import export_bundle, export_file
        from ..reporting.terminal import print_engines

        # Every option is read before anything is written.
        settings = Settings(
            sm=parse_sm(self.sm),
            batch=parse_batch(self.batch),
            hw=None if self.hw is None else parse_hw(self.hw),
            workspace_mib=self.workspace_mib,
            optimisation_level=self.optimisation_level,
            timeout_s=self.build_timeout,
        )
        required = parse_required(self.require_int8)
        options = OnnxOptions(
            embed_preprocess=self.embed_preprocess, softmax=self.softmax, sigmoid=self.sigmoid,
            top_k=self.top_k, static_batch=self.static_batch, slim=self.slim,
            infer_shapes=self.infer_shapes,
        )  # fmt: skip
        if "triton" in self.to:
            from vcompress.export.triton import Serving

            from ..delivery.triton import default_name, export_triton

            if self.out is None or len(self.to) > 1:
                raise UserError(
                    "--to triton writes a model repository: give --out FOLDER, and no other format."
                )
            serving = Serving(
                name=self.serve_name or default_name(self.run_dir), max_batch=self.max_batch,
                instances=self.instances,
            )  # fmt: skip
            print(
                export_triton(
                    self.run_dir, self.out, serving, engine=self.engine, opset=self.opset,
                    options=options, trusted_factory=self.trust,
                )
            )  # fmt: skip
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
        flavours: tuple[Flavour, ...] = tuple(
            kind
            for kind in self.to
            if kind == "tensorrt" or kind == "tensorrt-rtx"  # noqa: PLR1714 - mypy narrows this
        )
        if flavours:
            built = build_into(
                self.run_dir, flavours, settings, precision=self.precision, required=required,
                timing_cache=self.timing_cache, trusted_factory=self.trust,
            )  # fmt: skip
            print_engines(read_engines(built))
