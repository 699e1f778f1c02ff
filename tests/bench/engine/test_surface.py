"""Our calls against the recorded API of TensorRT 10.13, 11.4 and TensorRT-RTX.

`tests/benchmarks/tensorrt_surface.py` records it, without a GPU and without TensorRT's libraries.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from vcompress.bench import engine
from vcompress.bench.runtimes import tensorrt

RECORDED: dict[str, dict[str, list[str]]] = json.loads(
    Path(__file__).parents[1].joinpath("tensorrt_surface.json").read_text()
)
BUILDER = Path(engine.__file__).with_name("worker.py")
SESSION = Path(tensorrt.__file__)
OWNERS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "config": "IBuilderConfig", "profile": "IOptimizationProfile", "tensor": "ITensor",
    "context": "IExecutionContext", "_context": "IExecutionContext", "engine": "ICudaEngine",
    "_engine": "ICudaEngine", "runtime": "Runtime",
}  # fmt: skip
"""What a variable of ours of this name holds."""
RESULTS = {"get_timing_cache": "ITimingCache", "get_error": "ParserError"}
WITHIN = {("_parser_errors", "error"): "ParserError"}
RTX_ALONE = {
    ("module", "ComputeCapability"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
}
"""Used behind `is_rtx`: only TensorRT-RTX builds for a GPU that is not here."""


def used(path: Path) -> set[tuple[str, str]]:
    """(owner, attribute) of everything of TensorRT that a file of ours touches."""
    found: set[tuple[str, str]] = set()
    for part in ast.walk(ast.parse(path.read_text())):
        if not isinstance(part, ast.FunctionDef):
            continue
        for node in ast.walk(part):
            if not isinstance(node, ast.Attribute) or node.attr.startswith("_"):
                continue
            owner = owner_of(node.value, part.name)
            if owner is not None:
                found.add((owner, node.attr))
    return found


def owner_of(base: ast.expr, function: str) -> str | None:
    if isinstance(base, ast.Call) and isinstance(base.func, ast.Attribute):
        return RESULTS.get(base.func.attr)
    if isinstance(base, ast.Attribute) and owner_of(base.value, function) == "module":
        return base.attr  # a member of an enumeration, such as trt.MemoryPoolType.WORKSPACE
    name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
    if name in ("trt", "_trt"):
        return "module"
    return WITHIN.get((function, name)) or OWNERS.get(name)


@pytest.mark.parametrize("path", [BUILDER, SESSION], ids=lambda p: p.name)
@pytest.mark.parametrize("version", RECORDED)
def test_the_code_uses_nothing_outside_the_recorded_api(version: str, path: Path) -> None:
    surface = RECORDED[version]
    calls = used(path) if version.startswith("rtx") else used(path) - RTX_ALONE
    lacking = [(o, a) for o, a in sorted(calls) if o in surface and a not in surface[o]]
    assert lacking == []
    # An enumeration that is not recorded would pass unseen.
    unknown = {o for o, _ in calls if o not in surface} - {"ComputeCapability"}
    assert unknown == set()


def test_the_walk_sees_the_calls_of_the_builder_and_of_the_session() -> None:
    built, run = used(BUILDER), used(SESSION)
    assert len(built) >= 25
    for call in (
        ("Builder", "build_serialized_network"), ("OnnxParser", "parse_from_file"),
        ("IOptimizationProfile", "set_shape"), ("MemoryPoolType", "WORKSPACE"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("ITimingCache", "serialize"),
        ("ParserError", "node_name"), ("INetworkDefinition", "num_inputs"), ("ITensor", "shape"),
    ):  # fmt: skip
        assert call in built
    assert ("IExecutionContext", "execute_async_v3") in run
    assert ("Runtime", "deserialize_cuda_engine") in run


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("ICudaEngine", "device_memory_size"), ("IBuilderConfig", "int8_calibrator"),
        ("OnnxParser", "supports_model"),
    ],
)  # fmt: skip
def test_what_tensorrt_11_has_dropped_is_recorded_of_10_alone(owner: str, name: str) -> None:
    assert [v for v in RECORDED if name in RECORDED[v][owner]] == ["10.13.3"]


def test_every_file_that_touches_tensorrt_is_walked() -> None:
    folder = BUILDER.parents[1]
    naming = {p for p in folder.rglob("*.py") if "trt." in p.read_text()}
    # These read a package's name and version alone.
    assert naming - {folder / "runtimes/tensorrt_library.py", folder / "engine/rebuild.py"} == {
        BUILDER,
        SESSION,
    }
