"""Options and results as text, from one process to another: exact, and nothing that could run.

Arrays keep their type and shape, floats every bit. A dataclass is written under its name, and only
those of `kinds` are made again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any


@cache
def kinds() -> Mapping[str, type[Any]]:
    """The dataclasses that options and results are made of, by name. Imports much."""
    from ..onnx_file import External, OnnxFacts
    from ..reports.result import Against, Artefact, Check, ModelResult, Result
    from ..runtimes.session import Facts, Node
    from ..stats import Interval
    from ..tasks.task import Part, Score, ScoreChange
    from ..timing.compare import Block, Blocks, Comparison
    from ..timing.environment import Disturbance, Environment, Gpu
    from ..timing.fresh import ColdStart
    from ..timing.measure import Measurement, Warmup
    from ..timing.selftest import SelfTest
    from ..timing.traffic import OpenLoop, Throughput
    from .options import Options

    found = (
        Against, Artefact, Block, Blocks, Check, ColdStart, Comparison, Disturbance, Environment,
        External, Facts, Gpu, Interval, Measurement, ModelResult, Node, OnnxFacts, OpenLoop,
        Options, Part, Result, Score, ScoreChange, SelfTest, Throughput, Warmup,
    )  # fmt: skip
    return {kind.__name__: kind for kind in found}


def pack(value: Any) -> str:
    """`value` as JSON: plain values, paths, arrays, tuples, mappings and dataclasses."""
    return json.dumps(_packed(value), separators=(",", ":"))


def unpack(text: str) -> Any:
    """What `pack` was given."""
    return _unpacked(json.loads(text))


def _packed(value: Any) -> Any:
    """What JSON has not by itself is an object of one key, which says what it is."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind = type(value)
    if kind.__module__ == "numpy":  # which is not imported for options
        if kind.__name__ != "ndarray":
            return value.item()
        if value.dtype.hasobject:
            raise TypeError("an array of objects holds addresses: it is no part of a result")
        held = base64.b64encode(value.tobytes()).decode()
        return {"array": [value.dtype.str, value.shape, held]}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, (tuple, list)):
        return {kind.__name__: [_packed(inner) for inner in value]}
    if isinstance(value, Mapping):
        return {"mapping": {key: _packed(inner) for key, inner in value.items()}}
    if not is_dataclass(value):
        raise TypeError(f"{kind} is no part of a result")
    return {kind.__name__: {f.name: _packed(getattr(value, f.name)) for f in fields(value)}}


def _unpacked(held: Any) -> Any:
    if not isinstance(held, dict):
        return held
    ((kind, inner),) = held.items()
    if kind == "array":
        import numpy as np

        dtype, shape, content = inner
        return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape).copy()
    if kind == "path":
        return Path(inner)
    if kind in ("tuple", "list"):
        found = [_unpacked(item) for item in inner]
        return tuple(found) if kind == "tuple" else found
    made = {key: _unpacked(item) for key, item in inner.items()}
    return made if kind == "mapping" else kinds()[kind](**made)
