"""Options and results from one process to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcompress.bench import stats
from vcompress.bench.run.options import Options
from vcompress.bench.run.wire import pack, unpack


@pytest.mark.parametrize("value", [
    None, True, 3, 0.1 + 0.2, float("inf"), "é\x1b[0m\ud800", Path("a/b.onnx"), (1, (2.5, ())),
    [[]], {"a": ("b", None), "tuple": 1}, stats.Interval(1.0, 0.5, float("inf"), "exact"),
    Options(models=(Path("m.onnx"),), shape={"x": (1, 3)}, seconds=0.5, batch=(1, 8)),
])  # fmt: skip
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    found = unpack(pack(value))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("kind", ["int64", "float32", "bool", "<U3"])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_arrays_keep_type_shape_and_values(kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    found = unpack(pack({"samples": array}))["samples"]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert (found == array).all()
    found[...] = found  # it can be written to


def test_an_array_of_objects_is_refused_for_it_holds_addresses() -> None:
    with pytest.raises(TypeError, match="no part of a result"):
        pack(np.array([b"a", None], object))


def test_only_parts_of_a_result_are_made() -> None:
    with pytest.raises(KeyError):
        unpack(json.dumps({"Popen": {"args": "ls"}}))
    with pytest.raises(ValueError, match="OBJECT"):
        unpack(json.dumps({"array": ["O", [1], "AAAAAAAAAAA="]}))
    with pytest.raises(TypeError, match="no part of a result"):
        pack(object())
