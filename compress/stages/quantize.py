"""Quantise to int8: calibrated only (ptq), or trained with the rounding of the target (qat)."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vcompress.bench.errors import UserError
from vcompress.bench.ranges import above, at_least, between, share

from ..options import TargetName
from ..training.config import Context, TaughtConfig
from .contract import Kind, Outcome, Role, Stage

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


HELD_OUT = 128
"""Validation images on which a repair must help."""


@dataclass(frozen=True, kw_only=True)
class Config(TaughtConfig):
    """Options of `vcompress quantize`."""

    method: Literal["ptq", "qat"] = "qat"
    """Method of quantisation. ptq: ranges from a few images, no training. qat: training with
    learned steps after that."""
    target: TargetName = "onnxruntime"
    """Runtime where the network will run: it decides where the quantisers sit."""
    observer: Literal["mse", "minmax", "percentile", "entropy"] = "mse"
    """Rule by which calibration chooses a range."""
    calibration_images: Annotated[int, at_least(1)] = 256
    """Number of images that set the ranges, 1 or more."""
    calibration: str = ""
    """Folder of images without labels, flat or nested, that set the ranges. Default: those of
    --images, else the training images of --data."""
    images: str = ""
    """Folder of images without labels, flat or nested, that are trained on in place of those of
    --data: what the float network decides about them stands for their labels."""
    keep_float: tuple[str, ...] = ()
    """Layers that stay in floating point: modules (all inside is meant), or patterns such as
    layer4.*; auto keeps the fewest of the most sensitive layers with which calibration alone loses
    at most max_drop."""
    max_drop: Annotated[float, at_least(0)] = 0.5
    """Largest loss of accuracy, points, that --keep-float auto (on validation images) and --verdict
    (on held-out ones) allow: 0.5 is from 90 % to 89.5 %."""
    verdict: bool = False
    """Measure the float file against the int8 one and say whether int8 is worth it here: at least
    1.1 times faster with 99 % confidence, and at most max_drop points lost."""
    weight_bits: Annotated[int, between(2, 8)] = 8
    """Bits of a weight, 2 to 8: 7 for x86 machines without VNNI, whose int8 products saturate; 4 to
    experiment."""
    equalize: Literal["auto", "on", "off"] = "auto"
    """Cross-layer equalisation (arXiv:1906.04721): even out the channels of a tensor before it is
    rounded. auto keeps it where it raises the SQNR on validation images."""
    correct_bias: Literal["auto", "on", "off"] = "auto"
    """Bias correction: the shift of each channel's mean that rounding makes is taken away. auto:
    for ptq, where it raises the SQNR on validation images."""
    adaround: Literal["auto", "on", "off"] = "auto"
    """AdaRound (arXiv:2004.10568): each weight is rounded up or down for the layer's output. auto:
    for ptq with at most 6 bits; it takes minutes for large networks."""
    min_sqnr_db: float = 10.0
    """SQNR that the outputs must reach after calibration, decibels: below it the command stops and
    names the first tensor that differs; -100 goes on. Not asked of weights of 5 bits and fewer."""
    temperature: Annotated[float, above(0)] = 2.0
    """Temperature of the softmax of the quantised network and its teacher, above 0."""
    alpha: Annotated[float, share()] = 0.9
    """Weight of the distillation loss against the label loss, from 0 to 1; 0 trains on the labels
    alone."""
    freeze_bn_epochs: Annotated[int, at_least(0)] = 3
    """Number of last epochs in which the batch statistics no longer move, 0 or more."""
    epochs: int = 8
    lr: float = 1e-4
    warmup_epochs: float = 0.5
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images and self.method == "ptq":
            raise UserError("images are for qat; for ptq give calibration = DIR.")
        if self.verdict:
            _check_measurable(self.target)


def _check_measurable(name: TargetName) -> None:
    """Refuse a verdict where this machine cannot measure what the target runs."""
    from ..quantization.targets import load_target, target_names

    if why := load_target(name).unmeasured:
        others = [other for other in target_names() if not load_target(other).unmeasured]
        raise UserError(
            f"verdict: it measures on this machine with {' or '.join(others)}, and the target is "
            f"{name}: {why}. Build engines of both networks where they will run and compare them: "
            "vbench float.engine int8.engine."
        )


def is_trained(config: Config) -> bool:
    """Whether the quantised network is trained."""
    return config.method == "qat" and config.epochs > 0


def trains(config: Config) -> bool:
    """Whether it is trained on the labelled images."""
    return is_trained(config) and not config.images


def inherits_teacher(config: Config) -> bool:
    """Whether the teacher of the bundle's history is wanted where none is named."""
    return is_trained(config) and config.alpha > 0


def unlabelled(config: Config) -> str:
    """The option whose images will do where nothing is labelled."""
    if config.images:
        return "images"
    return "calibration" if config.calibration and not trains(config) else ""


def apply(model: nn.Module, config: Config, context: Context) -> Outcome:
    """Quantise a float `model` for `config.target`; the float one stays as it was.

    Trained, it learns from `context.teacher` (the one that was named, else the one that the
    bundle's history records and that can still be found), or from `model` itself.
    """
    import copy
    from dataclasses import replace

    from vcompress.bench.bundle.history import to_json

    from ..data.calibration import calibration_images, in_parts
    from ..data.loader import split_of
    from ..distillation.judged import judged_by
    from ..quantization import check_float, count_quantised, freeze_norms, placement
    from ..quantization.ptq import Scheme
    from ..quantization.repairs import Choice, Repairs, repaired
    from ..quantization.sensitivity import choose_keep_float
    from ..quantization.targets import load_target
    from ..quantization.verdict import judge
    from ..tasks import training_task
    from ..training.loop import fit
    from ..training.recovery import from_teacher

    data = context.data
    images, held_out = calibration_images(
        data, config.calibration or config.images, config.calibration_images, HELD_OUT,
        flag="--calibration" if config.calibration else "--images",
    )  # fmt: skip
    check_float(model)
    if not data.dataset.labelled and ("auto" in config.keep_float or config.verdict):
        what = "verdict" if config.verdict else "keep_float = auto"
        raise UserError(f"{what} measures the accuracy; give labelled images: --data DIR.")
    if context.measure_first is not None:
        context.measure_first(config.target)
    calibration = in_parts(images)
    keep_float = tuple(name for name in config.keep_float if name != "auto")
    scheme = Scheme(config.target, config.observer, config.weight_bits, keep_float)
    chosen: dict[str, Any] = {}
    if "auto" in config.keep_float:
        judging = list(data.loader(split_of(data.dataset, "val"), 64))
        found = choose_keep_float(
            model, data.example, calibration, judging, scheme,
            max_drop=config.max_drop, task=data.dataset.task,
        )  # fmt: skip
        scheme = replace(scheme, keep_float=(*keep_float, *found.layers))
        chosen = {"keep_float_auto": asdict(found)}
    # Training does what these two do, and better.
    later: Choice = "off" if config.method == "qat" else "auto"
    repairs = Repairs(
        equalize=config.equalize,
        correct_bias=later if config.correct_bias == "auto" else config.correct_bias,
        adaround=later if config.adaround == "auto" else config.adaround,
    )
    quantised, repairing = repaired(
        model,
        data.example,
        calibration,
        held_out,
        scheme,
        repairs,
        min_sqnr_db=config.min_sqnr_db,
    )
    where = placement(quantised)
    layers, tensors = count_quantised(where)
    if not where.get("graph", True):
        log.info("quantize: in parts, since %s", where["float"][0]["reason"])
    details = {
        "target": config.target,
        "method": config.method,
        "calibration_images": len(images),
        "quantised_layers": layers,
        "quantised_tensors": tensors,
        "kept_float": where["float"],
        "calibration": repairing,
        **chosen,
    }

    def outcome(more: dict[str, Any]) -> Outcome:
        if config.verdict:
            more["verdict"] = to_json(
                judge(
                    model, quantised, data, context.workdir / "verdict",
                    target=load_target(config.target), max_drop=config.max_drop,
                    threads=context.threads,
                )
            )  # fmt: skip
        return Outcome(quantised, {**details, **more})

    if not is_trained(config):
        return outcome({})

    teacher = context.teacher if context.teacher is not None else copy.deepcopy(model)
    details["teacher"] = context.teacher_name or "the float network"
    log.info("quantize: learning from %s", details["teacher"])
    if config.images:
        context = replace(context, data=judged_by(teacher, data, config.images))
        details["images"] = len(context.data.dataset.splits["train"])
    loss = from_teacher(teacher, config, training_task(context.data.dataset))

    def on_epoch(epoch: int, trained: nn.Module) -> None:
        if epoch >= config.epochs - config.freeze_bn_epochs:
            freeze_norms(trained)

    trained = fit(quantised, config, context, loss, name="quantize", on_epoch=on_epoch)
    return outcome(trained)


STAGE = Stage(
    Config,
    apply,
    roles=(Role("teacher", Kind.OPTIONAL), Role("model", Kind.TRAINED, changed=True)),
    inherits_teacher=inherits_teacher,
    trains=trains,
    unlabelled=unlabelled,
)
