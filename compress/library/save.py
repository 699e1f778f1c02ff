"""`compress.save` and `compress.load`: from a network to a bundle, and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Bundle, InputSpec, Preprocess, check_target, is_bundle
from vcompress.bench.config import plain
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import CLASSIFICATION
from vcompress.bench.tasks import load as load_task
from vcompress.export.library import answer
from vcompress.export.modes import evaluating

from .. import quantization
from ..bundles import licences
from ..bundles.entry import record_entry
from ..bundles.recorded import noise
from ..bundles.store import Network, load_network
from ..models import changes
from ..models.catalogue import ModelSpec, build, make_spec
from ..options import Options
from ..pipeline.finish import finish
from ..pipeline.measure import OwnMetric
from ..pruning.prune import PruneReport
from .held_out import Held, data_in_code, named_data
from .preprocess import preprocess_of
from .quantize import QuantizeReport

STAGE = "save"
"""What the history calls a network that came from a user's own code."""


def save(
    net: nn.Module,
    path: str | PathLike[str],
    *,
    preprocess: Preprocess | Any = None,
    example: Tensor | None = None,
    task: str = CLASSIFICATION,
    labels: Sequence[str] | None = None,
    data: Held | None = None,
    data_root: str | None = None,
    metric: OwnMetric | None = None,
    output: str | None = None,
    factory: str | None = None,
    reports: Sequence[PruneReport] = (),
    opset: int | None = None,
    seed: int = 0,
    data_licence: str | None = None,
    weights_licence: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write `net` as a bundle: its ONNX file, proved and measured, weights, labels, preprocessing.

    Whatever reads the ONNX file works on every bundle: `vbench`, `vcompress verify`, `predict`,
    `pack`, `inspect`, `lint`, `sbom`, `export --to tensorrt-rtx`. The commands that train go on
    from one with a `factory`.

    Args:
        net: float32, or from `quantize`. It stays as it is.
        path: a folder that is not there yet, or empty.
        preprocess: from an image to the input: `bench.Preprocess(size=(224, 224), ...)`, an image
            processor of transformers, or torchvision's `weights.transforms()`. Default: that of
            named `data`.
        example: one input `[1, C, H, W]`, to check the preprocessing against.
        task: `classification`, `multilabel` or `regression`.
        labels: names of the outputs, in their order; default: those of the data, else numbers.
        data: images to score on: what `--data` takes (its test split is scored, and the bundle
            remembers it), any `torch.utils.data.Dataset` or sequence of (image, target), or a
            loader. An image is a Pillow image, or a tensor `[C, H, W]` as the network takes it.
        data_root: where the files of `torchvision:NAME` are.
        metric: in place of the task's: `metric(outputs, targets) -> float`, higher is better, of
            all outputs `[N, K] float32` of the exported file and all targets. Its interval comes
            from 200 resamplings.
        output: of a network that returns a dictionary, the name of the output; default: `out`,
            else the first tensor.
        factory: what builds the network: `module:function`, a name of torchvision, or `timm:NAME`.
            What `prune` changed in it is found and recorded.
        reports: those of `prune`, for the record.
        opset: of the ONNX standard; default 20.
        seed: of the splits of named data.
        data_licence, weights_licence: SPDX identifiers, or words.
        overwrite: replace a bundle that is there.

    Returns:
        the bundle; `vcompress inspect` shows it.

    Raises:
        UserError: inputs, outputs, labels or targets that do not fit one another; a path that is
            taken; a file that does not compute what the network does.
    """
    target = Path(path)
    if is_bundle(target) and not overwrite:
        raise UserError(
            f"{target}: there is a bundle already. Give overwrite=True, or another path."
        )
    check_target(target)
    load_task(task)
    _check_float(net)
    named = named_data(data, task, data_root, seed)
    chosen = _preprocess(preprocess, named)
    image = _example(example, chosen)
    names = _labels(labels, named, answer(net, image, output), task, output)
    held: Dataset | None = named
    if data is not None and named is None:
        held = data_in_code(data, task, names, chosen)
    if metric is not None and held is None:
        raise UserError("metric: there is nothing to measure it on; give data too.")
    cpu = net if _on_cpu(net) else copy.deepcopy(net).cpu()
    network = _network(cpu, factory, names, chosen, output)
    options = Options(
        task=task, data=str(data) if isinstance(data, (str, PathLike)) else None,
        data_root=data_root, data_licence=data_licence, weights_licence=weights_licence, seed=seed,
        overwrite=overwrite,
    )  # fmt: skip
    entry = replace(
        record_entry(STAGE, network.spec, {}, options),
        details=plain(_details(net, reports)),
        licences=licences.record(options, held),
    )
    with evaluating(cpu):
        return finish(
            network, target, entry, (), labels=names, preprocess=chosen, dataset=held, task=task,
            opset=opset, own=metric,
        )  # fmt: skip


def load(path: str | PathLike[str], *, trust: str | None = None) -> nn.Module:
    """The network of a bundle, bit for bit, in evaluation: to prune, quantise or train on.

    Args:
        trust: the bundle's own `module:function`, which loading runs.

    Raises:
        UserError: no bundle, a changed file, or a bundle without a factory that builds its network.
    """
    return load_network(Bundle.open(Path(path)), trust).model


def _check_float(net: nn.Module) -> None:
    if not isinstance(net, nn.Module):
        raise UserError(f"got a {type(net).__name__}; expected a torch nn.Module.")
    for name, parameter in net.named_parameters():
        if parameter.is_floating_point() and parameter.dtype is not torch.float32:
            raise UserError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')}; expected float32. Call "
                "net.float() first; vcompress export --precision fp16 casts the bundle's file."
            )


def _preprocess(given: Any, named: Dataset | None) -> Preprocess:
    if given is not None:
        return preprocess_of(given)
    if named is not None:
        return named.default_preprocess
    raise UserError(
        "preprocess: got none; a bundle holds how an image becomes the network's input. Give "
        "bench.Preprocess(size=(height, width), mean=..., std=...), or an image processor."
    )


def _example(example: Tensor | None, preprocess: Preprocess) -> Tensor:
    """One input; of the preprocessing's shape where none is given."""
    shape = InputSpec.of(preprocess).shape
    if example is None:
        return torch.zeros(1, *shape)
    if not isinstance(example, Tensor) or tuple(example.shape[1:]) != shape:
        got = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise UserError(
            f"example: got {got}, and the preprocessing gives images [1, "
            f"{', '.join(map(str, shape))}]. Give the size and the channels that the network takes."
        )
    return example[:1].float()


def _labels(
    labels: Sequence[str] | None, named: Dataset | None, out: Tensor, task: str, output: str | None
) -> tuple[str, ...]:
    """Names for the outputs.

    Raises:
        UserError: outputs of another shape than the task's, or another number of names.
    """
    if out.ndim != 2:
        raise UserError(
            f"The network gives {list(out.shape)} for one image"
            f"{f' in {output!r}' if output else ''}; {task} expects [1, K], a number for each name."
            " Name another output with output=, or write the file alone with export.to_onnx."
        )
    given = labels if labels is not None else named.classes if named is not None else None
    if given is None:
        return tuple(map(str, range(out.shape[1])))
    names = tuple(map(str, given))
    if len(names) != out.shape[1]:
        raise UserError(
            f"labels: got {len(names)} names, and the network has {out.shape[1]} outputs. Give a "
            "name for each, in their order."
        )
    return names


def _on_cpu(net: nn.Module) -> bool:
    return all(t.device.type == "cpu" for t in (*net.parameters(), *net.buffers()))


def _network(
    net: nn.Module, factory: str | None, names: Sequence[str], preprocess: Preprocess,
    output: str | None,
) -> Network:  # fmt: skip
    if factory is None:
        spec = ModelSpec(_class_name(net), len(names))
        return Network(net, spec, has_factory=False, output=output)
    if output is not None:
        raise UserError(
            "factory and output: the commands train networks with one output. Let the factory "
            "return the network wrapped so that it gives that alone."
        )
    report = getattr(net, "report", None)
    plain = report.unchanged if isinstance(report, QuantizeReport) else net
    spec = make_spec(
        factory, len(names), preprocess.size, in_chans=len(preprocess.mean),
        weights="its own" if getattr(plain, "transform_input", False) else None,
    )  # fmt: skip
    if not quantization.is_quantized(net):
        noted = changes.describe(net, build(spec))
        made = changes.reshape(build(spec), noted)
    else:
        if not isinstance(report, QuantizeReport):
            raise UserError(
                "factory: this quantised network has lost its report, which tells what pruning had "
                "changed before. Give the network that quantize returned, not a copy."
            )
        noted = changes.describe(report.unchanged, build(spec))
        float_one = changes.reshape(build(spec), noted)
        made = quantization.restore(float_one, quantization.placement(net))
    changes.load(made, net.state_dict())  # what could not be loaded again is not written
    images = noise(2, preprocess)
    ours, theirs = answer(net, images), answer(made, images)
    if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(ours.abs().max())):
        raise UserError(
            f"factory: what {factory} builds computes something else with these weights, so a "
            "setting differs that is no weight: a flag, a function. Let the factory set it."
        )
    return Network(net, spec, noted)


def _class_name(net: nn.Module) -> str:
    """The class of the network; a graph has the class of what it was traced from."""
    report = getattr(net, "report", None)
    return type(report.unchanged if isinstance(report, QuantizeReport) else net).__name__


def _details(net: nn.Module, reports: Sequence[PruneReport]) -> dict[str, Any]:
    """What the reports say, for the history."""
    found: dict[str, Any] = {}
    if reports:
        found["prune"] = [
            {
                "asked": {report.asked.name: report.asked.value},
                "achieved": report.achieved,
                "macs": report.macs,
                "params": report.params,
                "layers": [[layer.name, layer.before, layer.after] for layer in report.layers],
            }
            for report in reports
        ]
    report = getattr(net, "report", None)
    if isinstance(report, QuantizeReport):
        found["quantize"] = {
            "target": report.target, "quantised_layers": report.layers,
            "quantised_tensors": report.tensors, "kept_float": report.kept_float,
            "sqnr_db": report.sqnr_db, "sqnr_db_before": report.sqnr_db_before,
            "repairs": report.repairs, "calibration_images": report.images,
        }  # fmt: skip
    return found
