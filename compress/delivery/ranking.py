"""`vcompress sensitivity`: which layers of a bundle suffer most from int8."""

from __future__ import annotations

from pathlib import Path

from vcompress.bench.bundle import Bundle
from vcompress.bench.errors import UserError
from vcompress.bench.working import working

from .. import quantization
from ..bundles.recorded import open_recorded
from ..bundles.store import load_network
from ..data.calibration import calibration_images, in_parts
from ..data.loader import Data, split_of
from ..quantization.ptq import Scheme, quantised
from ..quantization.sensitivity import LayerSensitivity, sensitivity

CALIBRATION_IMAGES = 256


def rank_layers(
    path: Path, scheme: Scheme, trusted_factory: str | None = None, calibration: str = ""
) -> list[LayerSensitivity]:
    """Calibrate the bundle's network and rank its layers on the validation split, or on the test
    split where there is no training part.

    Args:
        calibration: folder of images without labels that set the ranges.

    Raises:
        UserError: a bundle that is quantised already or records no data.
    """
    bundle = Bundle.open(path)
    dataset = open_recorded(bundle, trusted_factory)
    if dataset is None:
        raise UserError(f"{path}: the bundle records no data to calibrate and score with.")
    model = load_network(bundle, trusted_factory).model
    if quantization.is_quantized(model):
        raise UserError(f"{path} is quantised already; give the float bundle it was made from.")
    data = Data(dataset, bundle.preprocess)
    images, _ = calibration_images(data, calibration, CALIBRATION_IMAGES)
    with working(f"calibrating on {len(images)} images"):
        made = quantised(model, data.example, in_parts(images), scheme)
    return sensitivity(made, list(data.loader(split_of(dataset, "val"), 64)), dataset.task)
