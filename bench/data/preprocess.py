"""Preprocessing on the device: Pillow and numpy. A test holds it equal to the training side."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..bundle import Preprocess
from ..errors import UserError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
FORMATS = (
    "JPEG", "PNG", "GIF", "BMP", "DIB", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF", "QOI", "TGA",
)  # fmt: skip
"""What a file is read as, whatever its name says. Pillow's other formats are no pictures of a
camera, and EPS would start Ghostscript. TGA is recognised by nothing, so it comes last."""
_MOST_PIXELS = 2**28
"""Most pixels of a resized image: those of the largest network input."""


def apply(preprocess: Preprocess, image: Image.Image) -> npt.NDArray[np.float32]:
    """`image` as the network's input, `[C, H, W] float32`."""
    image = crop(preprocess, to_mode(image, preprocess.channels))
    pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    # In place on a contiguous copy: a quarter of the time of new arrays at every step.
    values = pixels.astype(np.float32, order="C")
    values /= np.float32(255)
    values -= np.asarray(preprocess.mean, dtype=np.float32)[:, None, None]
    values /= np.asarray(preprocess.std, dtype=np.float32)[:, None, None]
    return values


def apply_to_mask(preprocess: Preprocess, mask: Image.Image) -> npt.NDArray[np.uint8]:
    """`mask` (mode `L`) at the places of the network's input, `[H, W] uint8`: resized and cropped
    as its image is, to the nearest pixel."""
    nearest = replace(preprocess, interpolation="nearest")
    return np.asarray(crop(nearest, mask), dtype=np.uint8)


@dataclass(frozen=True)
class Geometry:
    """How the network's input lies in its image. Pairs are of rows and of columns, in pixels."""

    image: tuple[int, int]
    """Height and width of the image."""
    scaled: tuple[int, int]
    """Those that it was resized to."""
    input: tuple[int, int]
    """Those of the network's input, which is cut out of the resized image."""
    start: tuple[int, int] = (0, 0)
    """Where in the resized image the input begins."""


def geometry(preprocess: Preprocess, size: tuple[int, int]) -> Geometry:
    """How the input lies in an image of `size`, height and width."""
    height, width = preprocess.size
    if preprocess.resize is None:
        return Geometry(size, preprocess.size, preprocess.size)
    # The longer side is cut, not rounded, and the offsets are rounded: torchvision's arithmetic.
    short = min(size)
    rows, columns = (
        preprocess.resize if side == short else int(preprocess.resize * side / short)
        for side in size
    )
    start = round((rows - height) / 2), round((columns - width) / 2)
    return Geometry(size, (rows, columns), preprocess.size, start)


def crop(preprocess: Preprocess, image: Image.Image) -> Image.Image:
    """Resize and centre-crop, still 8-bit.

    Raises:
        UserError: an image so much longer than wide that resizing it would take all memory.
    """
    height, width = preprocess.size
    resample = _FILTERS[preprocess.interpolation]
    if preprocess.resize is None:
        same = image.size == (width, height)
        return image if same else image.resize((width, height), resample)
    found = geometry(preprocess, (image.height, image.width))
    (rows, columns), (top, left) = found.scaled, found.start
    if rows * columns > _MOST_PIXELS:
        raise UserError(
            f"An image of {image.width}x{image.height} pixels would be resized to "
            f"{columns}x{rows} before the crop. Cut it to a usual shape, or remove it."
        )
    image = image.resize((columns, rows), resample)
    return image.crop((left, top, left + width, top + height))


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """8 bits a channel in `mode`; 16-bit greys are scaled, not clipped. Whole numbers of 32 bits
    have no range of their own: 0 to 255 are taken as 8 bits, more as 16."""
    if image.mode == "I" and np.asarray(image).max() <= 255:
        image = Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values.clip(0, 65535) / 257 + 0.5).astype(np.uint8))
    elif image.mode == "F":
        raise UserError("A float image has no agreed range; save it with 8 or 16 bits a channel.")
    if mode == "RGBA" and image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # Pillow has no direct way
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def read_image(path: Path) -> Image.Image:
    """Decode the file, turned as its EXIF says.

    Raises:
        UserError: the file is missing, is not an image, is cut short, or is a decompression bomb.
    """
    Image.preinit()  # the usual formats; a missing one would import Pillow's whole list
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # or an upright one would be copied
            return image
    except FileNotFoundError:
        raise UserError(f"{path}: no such image.") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: cannot be read as an image (it is none of {', '.join(FORMATS)}). Save it as "
            f"one of them, or remove the file."
        ) from None
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        raise UserError(
            f"{path}: cannot be read as an image ({error}). Repair or remove the file."
        ) from None


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image file, as its header says, turned as EXIF says.

    Raises:
        UserError: no file, or no image.
    """
    Image.preinit()
    try:
        with Image.open(path, formats=FORMATS) as image:
            # Pillow decodes a whole PNG to look for EXIF behind its pixels, where nobody puts it.
            bare = image.format == "PNG" and "exif" not in image.info
            turned = not bare and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        raise UserError(
            f"{path}: cannot be read as an image ({error}). Repair or remove the file."
        ) from None


def whole_preprocess(size: tuple[int, int]) -> Preprocess:
    """The whole image, none of it cut away, in about its own shape: the shorter side at most 256
    pixels, the longer one at most twice that, both whole multiples of 32.

    Args:
        size: width and height of an image.
    """
    short = min(256, *size)
    width, height = (max(32, 32 * round(short * min(side / min(size), 2) / 32)) for side in size)
    return Preprocess(size=(height, width))
