"""`vcompress predict`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Predict what images show, with a bundle in the runtime that ships; needs no torch."""

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Folder of a bundle."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Files of the images, one or more."""
    top: int = 5
    """Number of classes to name for each image, the likeliest first (classification)."""
    threshold: float = 0.5
    """Probability, from 0 to 1, above which a label is named (multilabel)."""
    json: bool = False
    """Print the predictions as JSON."""
    runtime: str | None = None
    """Runtime: onnxruntime or openvino. Default: ONNX Runtime."""
    device: str | None = None
    """Device of the runtime, such as cpu or cuda; no other one stands in for it."""
    threads: int | None = None
    """Number of threads, 1 or more. Default: the runtime's choice."""

    def run(self) -> None:
        from vcompress.bench import load
        from vcompress.bench.errors import UserError
        from vcompress.bench.text import printable

        if not self.images:
            raise UserError("no image given. Expected: vcompress predict BUNDLE IMAGE...")
        with load(
            self.bundle, runtime=self.runtime, device=self.device, threads=self.threads
        ) as model:
            found = model.predict(self.images, self.top, self.threshold)
        if self.json:
            rows = [
                {"image": str(image), "predictions": [asdict(p) for p in best]}
                for image, best in zip(self.images, found, strict=True)
            ]
            print(json.dumps(rows, indent=2))
            return
        for image, best in zip(self.images, found, strict=True):
            print(printable(str(image)))
            for prediction in best:
                print(f"  {prediction.score:8.4f}  {printable(prediction.label)}")
            if not best:
                print(f"  nothing above {self.threshold:g}")
