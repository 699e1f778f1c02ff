"""`export.to_onnx`: from a network in torch to an ONNX file that was proved against it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.bundle.output import check_output, written
from vcompress.bench.errors import UserError
from vcompress.bench.onnx_file import is_onnx
from vcompress.bench.tasks import CLASSIFICATION

from . import parity
from .modes import evaluating
from .onnx_export import ExportError, ExportReport, export, output_names
from .parity import Parity

PARITY_IMAGES = 16
"""An example of fewer images is made up to so many with noise of its mean and spread."""


@dataclass(frozen=True)
class Exported:
    """An ONNX file, and the proof that it computes what the network computes."""

    path: Path
    report: ExportReport
    parity: Parity
    """The proof; where there are several outputs, that of the one that agrees least."""
    outputs: Mapping[str, Parity]
    """Name -> proof, of every output in the file."""


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    output: str | None = None,
    every_output: bool = False,
    task: str = CLASSIFICATION,
    opset: int | None = None,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] = MappingProxyType({}),
) -> Exported:
    """Write `model` to `path`, and hold the file against it in ONNX Runtime.

    A network from `compress.quantize` is stored in int8, with its batch norms folded. The file is
    written whole or not at all; its input is `input`, its output `logits`. The network stays as it
    is.

    Args:
        example: `[N, ...]` of floats: inputs that give the shape and, with noise like them, serve
            the proof. Real, preprocessed images prove most.
        output: name of the output that is written, of a network that gives a dictionary; by default
            `out`, else the first tensor.
        every_output: all tensors are written and proved: those of a dictionary or a named tuple by
            their names, others as `output_0`, `output_1`, ...
        task: what the outputs decide, for the proof: `classification`, `multilabel` (whether a
            logit is above nought), `regression` (nothing).
        opset: of the ONNX standard, 7 to 25; default 20. The file is in it, or it is refused.
        dynamic_batch: the number of inputs in one call is free; else it is one.
        metadata: texts that the file shall hold.

    Raises:
        UserError: an example that the network does not take, a network that cannot be exported, or
            a file that computes something else.
    """
    out = Path(path)
    if output is not None and every_output:
        raise UserError("output and every_output: give one of them.")
    if not is_onnx(out):
        raise UserError(f"{out}: expected a file name that ends in .onnx.")
    answer(model, example[:1] if isinstance(example, Tensor) else example, output)
    check_output(out)
    with evaluating(model), temporary_folder() as folder:
        ready, file = lowered(model), folder / out.name
        report = export(
            ready, file, ("input", tuple(example.shape[1:])), metadata=metadata, opset=opset,
            dynamic_batch=dynamic_batch, output=output, every_output=every_output,
        )  # fmt: skip
        names = output_names(file) if every_output else [output]
        proofs = {
            name or "logits": parity.check(ready, file, _images(example), task=task, output=name)
            for name in names
        }
        for name, proof in proofs.items():
            if not proof.ok:
                which = f" of {name}" if len(proofs) > 1 else ""
                raise ExportError(
                    f"the exported file fails its parity check{which}: {proof.message}"
                )
        with file.open("rb") as source, written(out) as stream:
            shutil.copyfileobj(source, stream)
    least = min(proofs.values(), key=lambda proof: proof.optimised.sqnr_db)
    return Exported(out, replace(report, path=out), least, proofs)


def answer(model: nn.Module, example: Tensor, output: str | None = None) -> Tensor:
    """What the network gives for `example` `[N, ...]` in evaluation: its one output that counts.

    Raises:
        UserError: the network does not take the example, or gives no tensor.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"got a {type(model).__name__}; expected a torch nn.Module. compress.load gives that "
            "of a bundle."
        )
    if not isinstance(example, Tensor) or not example.is_floating_point() or example.ndim < 2:
        got = (
            f"{list(example.shape)} {str(example.dtype).removeprefix('torch.')}"
            if isinstance(example, Tensor)
            else f"a {type(example).__name__}"
        )
        raise UserError(
            f"example: got {got}; expected one tensor of floats [N, ...], such as images "
            "[1, 3, 224, 224]. A network of several inputs is wrapped in a module that takes one."
        )
    try:
        return torch.from_numpy(parity.run_torch(model, example, output=output))
    except UserError:
        raise
    except Exception as error:  # whatever a forward pass may raise
        text = str(error).strip().splitlines()
        raise UserError(
            f"The network does not take the example {list(example.shape)}: {type(error).__name__}: "
            f"{text[0][:200] if text else ''}. Give one input as the network takes it, with the "
            "batch in front."
        ) from error


def lowered(model: nn.Module) -> nn.Module:
    """The form of a network that is exported: what its quantisers make of it, or itself.

    A module that wants this has a static method `lower_network`, from the whole network to that
    form.
    """
    for module in model.modules():
        lower: Any = getattr(type(module), "lower_network", None)
        if lower is not None:
            made: nn.Module = lower(model)
            return made
    return model


def _images(example: Tensor) -> Tensor:
    """The example and noise like it, `[N, ...]`."""
    images = example.detach().cpu()
    short = PARITY_IMAGES - len(images)
    if short <= 0:
        return images
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(short, *images.shape[1:], generator=generator).to(images.dtype)
    spread = images.std() if bool(images.std() > 0) else torch.ones(())
    return torch.cat([images, noise * spread + images.mean()])
