"""The C++ masks are those of numpy, in every pixel, whatever the compiler may fuse."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.preprocess import geometry
from vcompress.bench.tasks.pixels import at_size_of_image
from vcompress.export import edge

PROGRAM = """
#include <cstdint>
#include <cstdio>
#include <exception>
#include <vector>
#include "vcompress/mask.hpp"
int main(int, char **argv) {
  std::FILE *file = std::fopen(argv[1], "rb");
  std::int32_t head[9];
  while (std::fread(head, sizeof head, 1, file) == 1) {
    const auto [whole, classes, rows, columns, width, height, resize, tall, wide] = head;
    vcompress_model model{};
    model.resize = resize;
    model.height = tall;
    model.width = wide;
    std::vector<float> values(static_cast<std::size_t>(classes) * rows * columns);
    if (std::fread(values.data(), sizeof(float), values.size(), file) != values.size()) return 1;
    try {
      const float *map = values.data();
      const auto mask =
          whole ? vcompress::mask_of_classes(model, map, rows, columns, width, height)
                : vcompress::mask_of_logits(model, map, classes, rows, columns, width, height);
      std::fwrite(mask.classes.data(), 1, mask.classes.size(), stdout);
    } catch (const std::exception &error) {
      std::fprintf(stderr, "%s\\n", error.what());
    }
  }
}
"""


def case(
    values: NDArray[np.float32], preprocess: Preprocess, size: tuple[int, int], whole: bool
) -> bytes:
    classes, rows, columns = values.shape
    height, width = size
    head = struct.pack(
        "9i", whole, classes, rows, columns, width, height, preprocess.resize or 0,
        *preprocess.size,
    )  # fmt: skip
    return head + values.astype(np.float32).tobytes()


@pytest.mark.parametrize("options", [("-O2",), ("-O3", "-march=native", "-ffp-contract=fast")])
def test_masks_equal_numpys_in_every_pixel(
    tmp_path: Path, compile_and_link: Callable[..., Path], options: tuple[str, ...]
) -> None:
    source = tmp_path / "program.cpp"
    source.write_text(PROGRAM)
    include = f"-I{edge.HERE / 'include'}"
    program = compile_and_link(source, "-std=c++17", "-pedantic", *options, include)
    rng, asked, wanted = np.random.default_rng(0), [], []
    for n in range(200):
        classes = int(rng.integers(2, 22)) if n % 10 else 1
        high, wide = (int(x) for x in rng.integers(8, 40, 2))
        stride = int(rng.choice([1, 2, 4, 8]))
        resize = max(high, wide) + int(rng.integers(0, 9)) if n % 3 == 0 else None
        preprocess = Preprocess(size=(high, wide), resize=resize)
        size = int(rng.integers(5, 120)), int(rng.integers(5, 120))
        shape = -(-high // stride), -(-wide // stride)
        values = rng.normal(size=(classes, *shape)).astype(np.float32)
        values = np.round(values) if n % 4 == 0 else values  # with ties
        whole = n % 5 == 0 and classes > 1
        if whole:
            values = values.argmax(0)[None].astype(np.float32)
        asked.append(case(values, preprocess, size, whole))
        output = values[0].astype(np.int64) if whole else values
        if classes == 1:
            output = np.concatenate([np.zeros_like(values), values])
        wanted.append(at_size_of_image(output, geometry(preprocess, size), classes))
    (tmp_path / "cases").write_bytes(b"".join(asked))
    done = subprocess.run(
        [program, tmp_path / "cases"], capture_output=True, timeout=60, check=True
    )
    assert not done.stderr
    found, at = np.frombuffer(done.stdout, np.uint8), 0
    for n, want in enumerate(wanted):
        got = found[at : at + want.size].reshape(want.shape)
        at += want.size
        assert (got == want).all(), n
    assert at == len(found)
    assert sum((want == 255).any() for want in wanted) > 20


def test_what_gives_no_mask_is_said(tmp_path: Path, compile_and_link: Callable[..., Path]) -> None:
    source = tmp_path / "program.cpp"
    source.write_text(PROGRAM)
    program = compile_and_link(source, "-std=c++17", f"-I{edge.HERE / 'include'}")
    plain = Preprocess(size=(8, 8))
    values = np.ones((3, 4, 4), np.float32)
    odd = values.copy()
    odd[1, 2, 3] = np.nan
    thin = Preprocess(size=(8, 8), resize=16000)
    for given, preprocess, size, said in (
        (odd, plain, (9, 9), "NaN or infinity"),
        (values, plain, (0, 9), "an image has pixels"),
        (np.ones((255, 1, 1), np.float32), plain, (9, 9), "1 to 254 classes"),
        (values, thin, (1, 60000), "too long and thin"),
    ):
        (tmp_path / "cases").write_bytes(case(given, preprocess, size, False))
        done = subprocess.run([program, tmp_path / "cases"], capture_output=True, check=True)
        assert said in done.stderr.decode()
        assert not done.stdout
