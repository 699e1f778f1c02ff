"""The C++ preprocessing gives what Pillow and numpy give, to the last bit."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.preprocess import apply
from vcompress.export import edge
from vcompress.export.edge.header import number

PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <exception>
#include "vcompress/preprocess.hpp"
#include "vcompress/sha256.hpp"
struct Case { int channels, height, width, resize, kind; const char *file; };
static const Case kCases[] = {CASES};
static const float kMean[] = {MEAN};
static const float kStd[] = {STD};
int main(int argc, char **argv) {
  if (argc == 4) {  // the message for an image of argv[1] x argv[2] that is resized to argv[3]
    vcompress_model model{};
    model.channels = 1;
    model.height = model.width = 64;
    model.resize = std::atoi(argv[3]);
    model.interpolation = VCOMPRESS_BILINEAR;
    model.mean = kMean;
    model.std = kStd;
    vcompress::Image image{std::atoi(argv[1]), std::atoi(argv[2]), 1, {}};
    image.pixels.resize(static_cast<std::size_t>(image.width) * image.height);
    try {
      std::printf("%zu values\\n", vcompress::preprocess(model, image).size());
    } catch (const std::exception &error) {
      std::puts(error.what());
    }
    return 0;
  }
  if (argc > 1) {  // the message for a file that is no image, or its SHA-256
    try {
      const auto image = vcompress::read_pnm(argv[1]);
      std::puts(vcompress::sha256(image.pixels.data(), image.pixels.size()).c_str());
    } catch (const std::exception &error) {
      std::puts(error.what());
    }
    return 0;
  }
  for (const Case &c : kCases) {
    vcompress_model model{};
    model.channels = c.channels;
    model.height = c.height;
    model.width = c.width;
    model.resize = c.resize;
    model.interpolation = static_cast<vcompress_interpolation>(c.kind);
    model.mean = kMean;
    model.std = kStd;
    const auto values = vcompress::preprocess(model, vcompress::read_pnm(c.file));
    std::fwrite(values.data(), sizeof(float), values.size(), stdout);
  }
}
"""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KINDS = ("nearest", "bilinear", "bicubic")
SIZES = ((93, 71), (71, 93), (64, 64), (40, 200), (200, 40), (9, 8), (1, 5), (7, 1), (301, 299))
SHAPES = (((24, 32), 40), ((33, 24), 37), ((32, 32), None), ((17, 90), None))


@pytest.fixture(scope="module")
def cases(
    tmp_path_factory: pytest.TempPathFactory, photo: Callable[..., Image.Image],
    compile_and_link: Callable[..., Path],
) -> tuple[Path, list[tuple[Preprocess, Image.Image]]]:  # fmt: skip
    folder, found, rows = tmp_path_factory.mktemp("cases"), [], []
    for seed, (width, height) in enumerate(SIZES):
        for mode, suffix in (("RGB", "ppm"), ("L", "pgm")):
            image = photo(width, height, seed, mode)
            file = folder / f"{width}x{height}.{suffix}"
            image.save(file)
            for size, resize in SHAPES:
                for number_, kind in enumerate(KINDS):
                    for channels in ("RGB", "L") if seed < 3 else ("RGB",):
                        count = len(channels) if channels == "RGB" else 1
                        prepared = Preprocess(
                            size,
                            resize,
                            MEAN[:count],
                            STD[:count],
                            channels,
                            kind,  # type: ignore[arg-type]
                        )
                        found.append((prepared, image))
                        rows.append(
                            f'{{{count}, {size[0]}, {size[1]}, {resize or 0}, {number_}, "{file}"}}'
                        )
    text = PROGRAM.replace("CASES", ",\n".join(rows))
    text = text.replace("MEAN", ", ".join(map(number, MEAN)))
    source = folder / "program.cpp"
    source.write_text(text.replace("STD", ", ".join(map(number, STD))))
    include = f"-I{edge.HERE / 'include'}"
    return compile_and_link(source, "-std=c++17", "-O2", "-pedantic", include), found


def test_it_equals_pillow_and_numpy_to_the_last_bit(cases: tuple[Path, list[Any]]) -> None:
    program, rows = cases
    said = subprocess.run([program], capture_output=True, check=True, timeout=60).stdout
    values, at = np.frombuffer(said, np.float32), 0
    assert len(rows) > 250
    for prepared, image in rows:
        want = apply(prepared, image)
        got = values[at : at + want.size].reshape(want.shape)
        at += want.size
        # Before version 13 Pillow resized rows first, also where an image is stretched.
        old = int(PIL.__version__.split(".")[0]) < 13 and prepared.resize is None
        most = 1.01 / 255 / min(prepared.std) if old else 0
        assert np.abs(got - want).max() <= most, (prepared, image.size)
    assert at == len(values)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "expected a binary PPM"),
        (b"P3 1 1 255 0 0 0", "expected a binary PPM"),
        (b"P6 2 2 255\n\0\0\0", "cut short"),
        (b"P6 60000 60000 255\n\0", "cut short"),
        (b"P6 99999999 1 255\n\0", "damaged header"),
        (b"P6 0 1 255\n", "not from 1 to 65535"),
        (b"P6 -1 1 255\n", "damaged header"),
        (b"P6 70000 1 255\n", "not from 1 to 65535"),
        (b"P6 1 1 65535\n\0\0\0\0\0\0", "8 bits a channel"),
        (b"P6", "damaged header"),
        (b"P6 # only a comment", "damaged header"),
    ],
)
def test_what_is_no_image_is_one_message(
    cases: tuple[Path, list[Any]], tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "bad.ppm").write_bytes(content)
    said = subprocess.run(
        [cases[0], tmp_path / "bad.ppm"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    assert says in said
    assert str(tmp_path / "bad.ppm") in said


@pytest.mark.parametrize(
    ("width", "height", "resize", "says"),
    [
        (65535, 1, 256, "the image is too long and thin"),
        (1, 65535, 256, "the image is too long and thin"),
        (80, 60, 32, "resize is smaller than the crop"),
        (80, 60, 64, "4096 values"),
        (4000, 1, 64, "4096 values"),
    ],
)
def test_an_image_that_takes_all_memory_and_a_crop_beyond_the_edge_are_refused(
    cases: tuple[Path, list[Any]], width: int, height: int, resize: int, says: str
) -> None:
    said = subprocess.run(
        [cases[0], str(width), str(height), str(resize)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert says in said.stdout


@pytest.mark.parametrize("size", [1, 54, 55, 56, 63, 64, 65, 119, 120, 1000])
def test_the_hash_is_sha256(cases: tuple[Path, list[Any]], tmp_path: Path, size: int) -> None:
    pixels = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    (tmp_path / "a.pgm").write_bytes(b"P5\n# a comment\n%d 1\n# two\n255\n" % size + pixels)
    said = subprocess.run(
        [cases[0], tmp_path / "a.pgm"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == hashlib.sha256(pixels).hexdigest()
