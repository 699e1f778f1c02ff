"""`vcompress predict`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from PIL.Image import Image

    from vcompress.bench.tasks.task import Predictions


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
    out: Path | None = None
    """File (.png or .jpg) for the image under the colours of its classes; for several images a
    folder (networks that find a class for each pixel)."""
    mask: Path | None = None
    """File (.png) for the number of the class of each pixel, with a palette of colours; for several
    images a folder (networks that find a class for each pixel)."""
    runtime: str | None = None
    """Runtime: onnxruntime or openvino. Default: ONNX Runtime."""
    device: str | None = None
    """Device of the runtime, such as cpu or cuda; no other one stands in for it."""
    threads: int | None = None
    """Number of threads, 1 or more. Default: the runtime's choice."""

    def run(self) -> None:
        from vcompress.bench import load
        from vcompress.bench.bundle.output import check_outputs
        from vcompress.bench.data.preprocess import read_image
        from vcompress.bench.errors import UserError
        from vcompress.bench.text import printable

        if not self.images:
            raise UserError("no image given. Expected: vcompress predict BUNDLE IMAGE...")
        over, masks = (
            _files(self.out, "--out", self.images),
            _files(self.mask, "--mask", self.images),
        )
        check_outputs([*over, *masks], [*self.images, self.bundle])
        rows = []
        with load(
            self.bundle, runtime=self.runtime, device=self.device, threads=self.threads
        ) as model:
            names = model.bundle.labels
            if not over and not masks:
                found = model.predict(self.images, self.top, self.threshold)
                rows = [_row(*pair) for pair in zip(self.images, found, strict=True)]
            for n, image in enumerate(self.images if over or masks else ()):
                picture = read_image(image)
                one = model.predict(picture, self.top, self.threshold)  # one mask in memory
                if one.mask is None:
                    raise UserError(
                        f"{self.bundle}: its network says something of the whole image, and "
                        f"nothing of its pixels. Leave --out and --mask out."
                    )
                if over:
                    _save(_over(picture, one, names), over[n])
                if masks:
                    _save(_mask(one, names), masks[n])
                rows.append(_row(image, one))
        if self.json:
            print(json.dumps(rows, indent=2))
            return
        for row in rows:
            print(printable(row["image"]))
            for found in row["predictions"]:
                print(f"  {found['score']:8.4f}  {printable(found['label'])}")
            if not row["predictions"]:
                print(f"  nothing above {self.threshold:g}")


def _files(given: Path | None, option: str, images: tuple[Path, ...]) -> list[Path]:
    """The file of each image: the one that was given, or one in that folder."""
    from vcompress.bench.errors import UserError

    if given is None:
        return []
    known = (".png",) if option == "--mask" else (".png", ".jpg", ".jpeg")
    if len(images) == 1 and not given.is_dir():
        if given.suffix.lower() not in known:
            raise UserError(f"{option} {given}: expected a file that ends in {' or '.join(known)}.")
        return [given]
    if given.exists() and not given.is_dir():
        raise UserError(f"{option} {given}: a file; for several images give a folder.")
    given.mkdir(parents=True, exist_ok=True)
    return [given / f"{image.stem}.png" for image in images]


def _row(image: Path, found: Predictions) -> dict[str, Any]:
    """What JSON says of an image. `pixels` are those of its own size."""
    row: dict[str, Any] = {"image": str(image), "predictions": [asdict(p) for p in found]}
    if found.mask is not None:
        row["size"] = list(found.mask.shape)
        for one in row["predictions"]:
            one["pixels"] = int((found.mask == one["index"]).sum())
    return row


def _over(image: Image, found: Predictions, names: tuple[str, ...]) -> Image:
    from vcompress.bench.data.preprocess import to_mode
    from vcompress.bench.device.pictures import overlay

    assert found.mask is not None
    return overlay(to_mode(image, "RGB"), found.mask, names)


def _mask(found: Predictions, names: tuple[str, ...]) -> Image:
    from vcompress.bench.device.pictures import mask_picture

    assert found.mask is not None
    return mask_picture(found.mask, names)


def _save(picture: Image, path: Path) -> None:
    from vcompress.bench.bundle.output import written

    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    with written(path) as stream:
        picture.save(stream, kind, quality=92)
