"""What `vcompress lint` says of a graph, and whether TensorRT-RTX builds it.

    python tests/benchmarks/lint_against_builds.py                    # the labelled set
    python tests/benchmarks/lint_against_builds.py --conformance      # ONNX's own graphs
    python tests/benchmarks/lint_against_builds.py --files DIR ...    # any files

No GPU is needed: TensorRT-RTX builds for SM 89 on the CPU. Many graphs share one process, which is
started again where a graph kills it. A graph that is called likely and does not build, or the
other way round, is printed; the first kind ends the script with status 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

VERDICTS = ("blocked", "unverified", "likely")


@dataclass(frozen=True)
class Row:
    """One graph."""

    name: str
    verdict: str
    rules: tuple[str, ...]
    built: bool
    said: str
    """Why it did not build."""


def labelled(folder: Path) -> list[Path]:
    """The set of the tests."""
    import onnx
    from lint_graphs import CASES

    paths = []
    for case in CASES:
        paths.append(folder / f"{case.name}.onnx")
        onnx.save(case.make(), paths[-1])
    return paths


def conformance(folder: Path) -> list[Path]:
    """The graphs with which ONNX tests its own operators, from the installed package."""
    import onnx
    from onnx.backend.test.case.node import collect_testcases

    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)  # type: ignore[arg-type]
    for found in cases:
        if found.model is not None:
            paths.append(folder / f"{found.name}.onnx")
            onnx.save(found.model, paths[-1])
    return paths


def build_all(paths: Sequence[Path]) -> dict[Path, str]:
    """Path -> why it did not build, empty where it did."""
    left, found = list(paths), dict[Path, str]()
    while left:
        worker = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert worker.stdin is not None and worker.stdout is not None
        while left:
            try:
                worker.stdin.write(f"{left[0]}\n")
                worker.stdin.flush()
            except BrokenPipeError:
                line = ""
            else:
                line = next((x for x in worker.stdout if x.startswith("built ")), "")
            if line:
                found[left.pop(0)] = json.loads(line.removeprefix("built "))
            else:
                found[left.pop(0)] = "the builder crashed"
                break
        worker.stdin.close()
        worker.wait()
    return found


def shapes_of(path: Path) -> Callable[[], Iterator[tuple[str, list[list[int]]]]]:
    """Least, usual and largest shape of the inputs that leave one open."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph

    def every() -> Iterator[tuple[str, list[list[int]]]]:
        stored = {t.name for t in graph.initializer}
        for entry in graph.input:
            dims = [
                d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None
                for d in entry.type.tensor_type.shape.dim
            ]
            if entry.name not in stored and None in dims:
                yield (
                    entry.name,
                    [
                        [size if d is None else d for d, size in zip(dims, sizes, strict=False)]
                        for sizes in ((1, *[32] * 9), (2, *[64] * 9), (4, *[128] * 9))
                    ],
                )

    return every


def work() -> None:
    """Build what the standard input names, one line each."""
    from importlib import import_module

    trt: Any = import_module("tensorrt_rtx")
    said: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR") and "Cuda" not in text:
                said.append(" ".join(text.split()))

    for line in sys.stdin:
        said.clear()
        ok = build(trt, Logger(), Path(line.strip()), said)
        print("built", json.dumps("" if ok else "; ".join(said)[:300] or "refused"), flush=True)


def build(trt: Any, logger: Any, path: Path, said: list[str]) -> bool:
    """Whether a file becomes an engine for SM 89."""
    builder = trt.Builder(logger)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flag)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        said[:] = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        return False
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    shapes = dict(shapes_of(path)())
    if shapes:
        profile = builder.create_optimization_profile()
        for name, three in shapes.items():
            try:
                profile.set_shape(name, *three)
            except ValueError as error:
                said.append(str(error))
        config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


def rows(paths: Sequence[Path]) -> list[Row]:
    """Lint and build each."""
    from vcompress.export.lint import lint

    built, found = build_all(paths), []
    for path in paths:
        report = lint(path, "tensorrt-rtx", apart=False)
        rules = tuple(dict.fromkeys(f.rule for f in report.findings if f.severity != "note"))
        found.append(Row(path.stem, report.verdict, rules, not built[path], built[path]))
    return found


def table(found: Sequence[Row]) -> str:
    """Verdict by whether it builds, in Markdown."""
    count = Counter((row.verdict, row.built) for row in found)
    lines = ["| verdict | builds | does not |", "| --- | ---: | ---: |"]
    lines += [f"| {v} | {count[v, True]} | {count[v, False]} |" for v in VERDICTS]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--conformance", action="store_true")
    parser.add_argument("--files", nargs="*", type=Path)
    parser.add_argument("--list", action="store_true", help="a row for every graph as well")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work()
        return 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        if args.files:
            paths = [p for f in args.files for p in (sorted(f.rglob("*.onnx")) or [f])]
        else:
            paths = conformance(folder) if args.conformance else labelled(folder)
        found = rows(paths)
    if args.list:
        print("| graph | verdict | builds | rules |\n| --- | --- | --- | --- |")
        for row in found:
            yes = "yes" if row.built else "no"
            print(f"| {row.name} | {row.verdict} | {yes} | {', '.join(row.rules)} |")
        print()
    print(f"{len(found)} graphs\n\n{table(found)}")
    wrong = [r for r in found if r.verdict == "likely" and not r.built]
    for row in wrong:
        print(f"\nlikely, and does not build: {row.name}: {row.said}")
    for row in found:
        if row.verdict == "blocked" and row.built:
            print(f"\nblocked, and builds: {row.name} ({', '.join(row.rules)})")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
