"""Record the API of each TensorRT that the code is to work with, for the test that holds it.

    python tests/benchmarks/tensorrt_surface.py --out tests/bench/tensorrt_surface.json

The bindings of the classic TensorRT import against empty libraries made on the spot (gcc, nm), so
neither a GPU nor TensorRT itself is needed. TensorRT-RTX is read from where it is installed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

CLASSIC = ("10.13.3.9", "11.4.0.106")
CLASSES = (
    "Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "ITensor",
    "OnnxParser", "ParserError", "ITimingCache", "IHostMemory", "Runtime", "ICudaEngine",
    "IExecutionContext",
)  # fmt: skip
ENUMS = (
    "NetworkDefinitionCreationFlag", "ProfilingVerbosity", "MemoryPoolType", "TensorIOMode",
    "DataType",
)  # fmt: skip
DUMP = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
public = lambda owner: sorted(n for n in dir(owner) if not n.startswith("_"))
found = {"module": [n for n in public(trt) if n[0].isupper()]}
found |= {n: public(getattr(trt, n)) for n in sys.argv[2].split(",")}
found |= {n: list(getattr(trt, n).__members__) for n in sys.argv[3].split(",")}
print(json.dumps([trt.__version__, found]))
"""
STUB = re.compile(
    r"\b(create\w+_INTERNAL|get(?:Builder)?PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins)$"
)


def surface(module: str, path: Path | None = None) -> tuple[str, dict[str, list[str]]]:
    """Version, and the public names of a module and of its classes."""
    call = [sys.executable, "-c", DUMP, module, ",".join(CLASSES), ",".join(ENUMS)]
    done = subprocess.run(
        call, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(path)} if path else None,
    )  # fmt: skip
    version, found = json.loads(done.stdout.splitlines()[-1])
    return version, found


def classic(version: str, folder: Path) -> dict[str, list[str]]:
    """The surface of the bindings of one classic TensorRT, without its libraries."""
    package = f"tensorrt-cu12-bindings=={version}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*pip, package], check=True)
    bindings = folder / "tensorrt_bindings"
    undefined = subprocess.run(
        ["nm", "-D", "-u", str(bindings / "tensorrt.so")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    names = sorted({m[1] for line in undefined.splitlines() if (m := STUB.search(line))})
    source = folder / "empty.c"
    source.write_text("".join(f"int {name}(){{return 0;}}\n" for name in names))
    major = version.partition(".")[0]
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        target = bindings / f"lib{library}.so.{major}"
        subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    return surface("tensorrt_bindings", folder)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    found = {}
    for version in CLASSIC:
        with TemporaryDirectory() as folder:
            found[".".join(version.split(".")[:3])] = classic(version, Path(folder))
    version, names = surface("tensorrt_rtx")
    found[f"rtx {'.'.join(version.split('.')[:3])}"] = names
    lines = [
        f'"{version}": {{\n'
        + ",\n".join(f'"{owner}": {json.dumps(names)}' for owner, names in owners.items())
        + "\n}"
        for version, owners in found.items()
    ]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{out}: {', '.join(found)}")


if __name__ == "__main__":
    main()
