"""`vcompress sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..options import TargetName


@dataclass(frozen=True, kw_only=True)
class Command:
    """Measure what quantising each layer alone costs; the most sensitive comes first."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder of a float bundle that records its data."""
    target: TargetName = "onnxruntime"
    """Runtime that the network will run in."""
    observer: Literal["mse", "minmax", "percentile", "entropy"] = "mse"
    """Rule by which calibration chooses a range."""
    weight_bits: int = 8
    """Bits of a weight, 2 to 8."""
    calibration: str = ""
    """Folder of images without labels, flat or nested, that set the ranges. Default: the training
    images of the bundle's data."""
    out: Path | None = None
    """File for the ranking: a page (.html), a plot (.svg) or the numbers (.json)."""
    trust: str | None = None
    """Name of your own module:factory that the bundle may run when it is loaded."""

    def run(self) -> None:
        from vcompress.bench.bundle.output import check_output

        from ..delivery.ranking import rank_layers
        from ..quantization.ptq import Scheme
        from ..reporting import sensitivity
        from ..reporting.terminal import print_ranking

        if self.out is not None:
            sensitivity.check_suffix(self.out)
            check_output(self.out, [self.bundle])
        scheme = Scheme(self.target, self.observer, self.weight_bits)
        layers = rank_layers(self.bundle, scheme, self.trust, self.calibration)
        if self.out is not None:
            title = (
                f"What int{self.weight_bits} for {self.target} costs each layer of {self.bundle}"
            )
            sensitivity.write(self.out, layers, title)
        print_ranking(layers)
