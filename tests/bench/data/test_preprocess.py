"""The device's preprocessing against torchvision's, and images of every kind."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.bundle import IMAGENET, Preprocess
from vcompress.bench.data.folders import SUFFIXES
from vcompress.bench.data.preprocess import apply, read_image, to_mode
from vcompress.bench.errors import UserError

PLAIN = Preprocess((4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    "shape", [(33, 47), (47, 33), (64, 64), (31, 200), (200, 31), (8, 9), (1, 5), (301, 299)]
)
@pytest.mark.parametrize(("size", "resize"), [((32, 32), 37), ((24, 33), 40), ((32, 32), None)])
def test_it_equals_torchvision(
    shape: tuple[int, int],
    interpolation: Literal["nearest", "bilinear", "bicubic"],
    size: tuple[int, int],
    resize: int | None,
) -> None:
    import torch
    from torchvision.transforms import v2

    ours = Preprocess(size, resize, interpolation=interpolation)
    mode = v2.InterpolationMode(interpolation)
    steps: list[object] = (
        [v2.Resize(list(size), interpolation=mode)]
        if resize is None
        else [v2.Resize(resize, interpolation=mode), v2.CenterCrop(list(size))]
    )
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    steps += [v2.Normalize(list(ours.mean), list(ours.std))]
    image = noise(*shape)
    expected = v2.Compose(steps)(image).numpy()
    found = apply(ours, image)
    assert found.shape == (3, *size)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6


def test_it_is_the_preprocessing_of_torchvisions_own_weights() -> None:
    from torchvision.models import ResNet18_Weights

    image = noise(317, 251)
    expected = ResNet18_Weights.IMAGENET1K_V1.transforms(antialias=True)(image).numpy()
    assert np.abs(apply(IMAGENET, image) - expected).max() < 1e-6


def test_a_known_pixel_gives_the_value_worked_out_by_hand() -> None:
    image = Image.new("RGB", (5, 7), (51, 102, 255))
    found = apply(Preprocess((2, 2), mean=(0.1, 0.4, 0.5), std=(0.5, 0.25, 2.0)), image)
    assert found[:, 0, 0] == pytest.approx([(0.2 - 0.1) / 0.5, 0.0, 0.25], abs=1e-6)


def test_grey_preprocessing_gives_one_channel() -> None:
    grey = Preprocess((4, 6), mean=(0.5,), std=(0.5,), channels="L")
    found = apply(grey, Image.new("RGB", (9, 9), (255, 255, 255)))
    assert found.shape == (1, 4, 6)
    assert np.all(found == 1.0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "1", "LAB"])
def test_an_image_of_any_mode_becomes_three_channels(mode: str) -> None:
    image = Image.new("RGB", (6, 6), (255, 255, 255))
    image = image.convert("L").convert(mode) if mode == "PA" else convert(image, mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = apply(PLAIN, image)
    assert found.shape == (3, 4, 4)
    assert found.min() > 0.98


def convert(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        assert converted is not None
        return converted
    return image.convert(mode)


def test_four_channels_are_those_of_pillow_and_torchvision() -> None:
    import torch
    from torchvision.transforms import v2

    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 50, 4), np.uint8))
    mean, std = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
    found = apply(Preprocess((24, 24), 32, mean, std, channels="RGBA"), image)
    steps = v2.Compose(
        [v2.Resize(32), v2.CenterCrop(24), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True),
         v2.Normalize(mean, std)]
    )  # fmt: skip
    np.testing.assert_allclose(found, steps(image).numpy(), atol=1e-6)
    with pytest.raises(UserError, match="RGBA has 4 channels, but mean has 3 values"):
        Preprocess((24, 24), channels="RGBA")


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "CMYK", "YCbCr", "HSV", "1", "LA", "LAB"])
def test_an_image_of_any_mode_becomes_four_channels(mode: str) -> None:
    image = to_mode(convert(Image.new("RGB", (4, 4), (200, 200, 200)), mode), "RGBA")
    assert image.mode == "RGBA"
    assert np.asarray(image)[..., 3].min() == 255


def test_sixteen_bit_greys_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16).repeat(4, axis=0)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        found = apply(PLAIN, read_image(tmp_path / f"a.{suffix}"))
        assert found[0, 0] * 255 == pytest.approx([0, 1, 128, 255], abs=1e-4)
        assert np.array_equal(found[0], found[2])
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    assert np.asarray(to_mode(wide, "L"))[0].tolist() == [0, 1, 128, 255]


def test_whole_numbers_of_32_bits_up_to_255_are_taken_as_8_bits(tmp_path: Path) -> None:
    values = np.array([[0, 1, 128, 255]], dtype=np.int32).repeat(4, axis=0)
    Image.fromarray(values).save(tmp_path / "a.tif")
    found = apply(PLAIN, read_image(tmp_path / "a.tif"))
    assert found[0, 0] * 255 == pytest.approx([0, 1, 128, 255], abs=1e-4)
    dark = Image.fromarray(values.astype(np.uint16))  # 16 bits have their range
    assert np.asarray(to_mode(dark, "L"))[0].tolist() == [0, 0, 0, 1]


def test_a_float_image_is_refused() -> None:
    with pytest.raises(UserError, match="no agreed range; save it with 8 or 16 bits"):
        apply(PLAIN, Image.fromarray(np.zeros((4, 4), np.float32)))


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 0))
    image.putpixel((7, 0), (255, 255, 255))  # top right
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png")
    assert found.size == (4, 8)
    assert found.getpixel((3, 7)) == (255, 255, 255)  # bottom right


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.png: no such image"):
        read_image(tmp_path / "nothing.png")
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(UserError, match=r"text\.jpg: cannot be read as an image"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(UserError, match=r"empty\.png: cannot be read as an image"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"folder\.png: cannot be read"):
        read_image(tmp_path / "folder.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tif", "bmp", "webp", "ppm"])
def test_a_file_cut_or_damaged_anywhere_is_read_or_named(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    noise(12, 9).save(whole)
    content = whole.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content))] if n % 2 else content)
        for _ in range(4):
            damaged[rng.integers(len(damaged))] ^= int(rng.integers(1, 256))
        file = tmp_path / f"{n}.{kind}"
        file.write_bytes(damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_image(file)
        except UserError as error:
            assert f"{n}.{kind}: cannot be read as an image" in str(error)
            refused += 1
    assert refused >= 5


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(40, 40).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(UserError, match=r"bomb\.png: .*decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_a_line_of_pixels_is_refused_and_not_resized_to_gigabytes() -> None:
    image = Image.new("RGB", (65_535, 1))
    with pytest.raises(UserError, match="65535x1 pixels would be resized to 16776960x256"):
        apply(Preprocess(size=(224, 224), resize=256), image)
    assert apply(Preprocess(size=(8, 8)), image).shape == (3, 8, 8)


def test_an_eps_with_the_name_of_a_jpeg_starts_no_ghostscript(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import EpsImagePlugin

    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append(a))
    (tmp_path / "cat.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(UserError, match="none of JPEG, PNG"):
        read_image(tmp_path / "cat.jpg")
    assert not started
    with Image.open(tmp_path / "cat.jpg") as image, contextlib.suppress(Exception):
        image.load()
    assert started  # what Pillow does by default


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_of_a_folder_of_images_is_read(suffix: str, tmp_path: Path) -> None:
    plain = Image.new("1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB", (5, 3), 1)
    plain.save(tmp_path / f"x{suffix}")
    assert read_image(tmp_path / f"x{suffix}").size == (5, 3)
