"""The generated header compiles as C99 and C++17 and says what the bundle says, whatever it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vcompress.bench.bundle import Bundle, Preprocess
from vcompress.bench.errors import UserError
from vcompress.export import edge
from vcompress.export.edge.header import literal, number
from vcompress.export.edge.prepare import prepare

INCLUDE = edge.HERE / "include"
HOSTILE = (
    'a "quoted" one', "back\\slash", "line\nbreak\r", "end */ of /* comment", "??/ ??= ??'",
    "digits after \x07" + "7", "%s %n", "Gr\u00fc\u00dfe \U0001f600", '");system("true',
    "\\", "??/", "", "tab\t", "'", "//", "#define X", "\u2028", "\x7f",
)  # fmt: skip

PROGRAM = """
#include <stdio.h>
#include <string.h>
#include "vcompress_net.h"
int main(void) {
  const vcompress_model *m = &vcompress_net;
  size_t i;
  printf("%s %s %s %lu %s %d %d %d %d %d %lu\\n", m->name, m->file, m->sha256,
         (unsigned long)m->bytes, m->input, m->channels, m->height, m->width, m->resize,
         (int)m->interpolation, (unsigned long)m->label_count);
  for (i = 0; i < 3; ++i) printf("%.9g %.9g\\n", m->mean[i], m->std[i]);
  for (i = 0; i < m->label_count; ++i)
    fwrite(m->labels[i], 1, strlen(m->labels[i]) + 1, stdout);
  return m->data == NULL ? 0 : 3;
}
"""


@pytest.mark.parametrize(
    ("suffix", "options"),
    [(".c", ["-std=c99", "-pedantic", "-trigraphs"]), (".cpp", ["-std=c++11", "-trigraphs"])],
)
def test_every_label_comes_back_byte_for_byte(
    write_bundle: Callable[..., Path], compile_and_link: Callable[..., Path], tmp_path: Path,
    suffix: str, options: list[str],
) -> None:  # fmt: skip
    mean, std = (0.1, 1 / 3, 0.0), (1e-3, 0.229, 7.0)
    prepared = Preprocess((24, 32), None, mean, std, interpolation="bicubic")
    path = write_bundle(tmp_path / "net", labels=HOSTILE, preprocess=prepared)
    sources = prepare(path, "net", tmp_path / "out", embed=False)
    assert {s.name for s in sources} >= {"manifest.json", "model.onnx"}
    source = tmp_path / f"program{suffix}"
    source.write_text(PROGRAM)
    program = compile_and_link(source, *options, f"-I{INCLUDE}", f"-I{tmp_path / 'out'}")
    said = subprocess.run([program], capture_output=True, check=True).stdout
    first, *numbers = said.split(b"\n", 4)[:4]
    entry = Bundle.open(path).files["model.onnx"]
    assert first.decode() == (
        f"net net.onnx {entry.sha256} {entry.bytes} input 3 24 32 0 2 {len(HOSTILE)}"
    )
    found = np.array([line.split() for line in numbers], dtype=np.float32)
    assert (found == np.array([mean, std], np.float32).T).all()
    labels = said.split(b"\n", 4)[4].split(b"\0")[:-1]
    assert [label.decode() for label in labels] == list(HOSTILE)
    again = (tmp_path / "out" / "vcompress_net.h").stat().st_mtime_ns
    prepare(path, "net", tmp_path / "out", embed=False)
    assert (tmp_path / "out" / "vcompress_net.h").stat().st_mtime_ns == again


def test_an_embedded_model_is_the_file_byte_for_byte(
    write_bundle: Callable[..., Path], compile_and_link: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = write_bundle(tmp_path / "net"), tmp_path / "out"
    prepare(path, "net", out, embed=True)
    for suffix in (".c", ".cpp"):
        source = tmp_path / f"program{suffix}"
        source.write_text(
            '#include <stdio.h>\n#include "vcompress_net.h"\n'
            "int main(void) { return fwrite(vcompress_net.data, 1, vcompress_net.bytes, stdout) "
            "== VCOMPRESS_NET_BYTES ? 0 : 1; }\n"
        )
        data = out / "net_data.c"
        as_is = ["-x", "c++" if suffix == ".cpp" else "c"]
        program = compile_and_link(
            source, f"-I{INCLUDE}", f"-I{out}", f"-Wa,-I{out}", *as_is, str(data)
        )
        said = subprocess.run([program], capture_output=True, check=True).stdout
        assert said == (path / "model.onnx").read_bytes()


def test_what_c_cannot_hold_is_refused(write_bundle: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NUL"):
        literal("a\0b", "label")
    with pytest.raises(UserError, match="not valid Unicode"):
        literal("\ud800", "label")
    path = write_bundle(tmp_path / "net")
    for name in ("", "1st", "a-b", "a b", "../up", "x" * 64, "\u00e9", "a\n"):
        with pytest.raises(UserError, match="letters, digits and underscores"):
            prepare(path, name, tmp_path / "out", embed=False)
    with pytest.raises(UserError, match="'detection'"):
        prepare(write_bundle(tmp_path / "d", task="detection"), "net", tmp_path, embed=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "scores"),
    [("classification", "SOFTMAX"), ("multilabel", "SIGMOID"), ("regression", "VALUES")],
)
def test_the_header_says_what_the_outputs_come_to(
    write_bundle: Callable[..., Path], tmp_path: Path, task: str, scores: str
) -> None:
    prepare(write_bundle(tmp_path / "net", task=task), "net", tmp_path / "out", embed=False)
    assert f"  VCOMPRESS_{scores}\n}};" in (tmp_path / "out" / "vcompress_net.h").read_text()


@pytest.mark.parametrize("maps", ["logits", "classes"])
def test_maps_are_taken(write_bundle: Callable[..., Path], tmp_path: Path, maps: str) -> None:
    path = write_bundle(tmp_path / "net", maps=maps, task="segmentation")
    prepare(path, "net", tmp_path / "out", embed=False)
    assert "  VCOMPRESS_MAPS\n};" in (tmp_path / "out" / "vcompress_net.h").read_text()


def test_outputs_that_are_no_number_for_each_label_are_refused(
    write_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_bundle(tmp_path / "two", 7, labels=("a", "b"))
    with pytest.raises(UserError, match=r"gives \['batch', 7\]; .* one output \[batch, 2\]"):
        prepare(path, "net", tmp_path / "out", embed=False)
    assert not list((tmp_path / "out").glob("*"))
    maps = write_bundle(tmp_path / "m", task="segmentation")
    with pytest.raises(UserError, match=r"takes one output \[batch, 7, height, width\], or the cl"):
        prepare(maps, "net", tmp_path / "out", embed=False)


def test_a_changed_bundle_is_refused_and_named(
    write_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_bundle(tmp_path / "net")
    data = bytearray((path / "model.onnx").read_bytes())
    data[100] ^= 1
    (path / "model.onnx").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.onnx: changed"):
        prepare(path, "net", tmp_path / "out", embed=False)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 0.1, 1 / 3, 1e-30, 123456.7, 1e30])
def test_a_number_reads_back_to_the_same_bits(value: float) -> None:
    text = number(value)
    assert text.endswith("f")
    assert "." in text
    assert np.float32(text[:-1]) == np.float32(value)
