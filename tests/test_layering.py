"""compress -> export -> bench, and nothing against the arrow; bench stays light."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "bench": {"bench"},
    "export": {"export", "bench"},
    "compress": {"compress", "export", "bench"},
}
# What an edge device does not have; runtimes/torch.py needs torch to open a model in it.
TRAINING = {
    "torch", "torchvision", "timm", "accelerate", "torch_pruning", "onnxscript", "safetensors",
    "torchmetrics",
}  # fmt: skip
HEAVY = TRAINING | {
    "numpy", "scipy", "onnx", "onnxruntime", "sklearn", "tensorrt", "tensorrt_rtx", "PIL",
    "openvino", "cryptography", "cyclonedx",
}  # fmt: skip
# On the way of `--help`.
LIGHT = (
    "bench/__init__.py", "bench/errors.py", "bench/config.py", "bench/cli.py", "bench/apart.py",
    "bench/ranges.py", "bench/own_code.py", "bench/library.py", "bench/lazy.py",
    "bench/text.py",
    "bench/bundle/__init__.py", "bench/bundle/bundle.py", "bench/bundle/atomic.py",
    "bench/bundle/manifest.py", "bench/bundle/history.py", "bench/bundle/archive.py",
    "bench/bundle/signature.py", "bench/bundle/output.py", "bench/bundle/identity.py",
    "bench/verify/__init__.py", "bench/verify/check.py", "bench/verify/golden.py",
    "bench/gates/__init__.py", "bench/gates/limits.py", "bench/reports/__init__.py",
    "bench/reports/svg.py", "bench/tasks/__init__.py",
    "bench/tasks/metrics.py",
    "compress/__init__.py", "compress/cli.py", "compress/options.py",
    "compress/distillation/__init__.py", "compress/distillation/terms.py",
    "compress/training/__init__.py", "compress/training/config.py", "compress/training/progress.py",
    "compress/pipeline/__init__.py", "compress/pipeline/recipe.py",
    "compress/reporting/terminal.py", "compress/reporting/page.py",
    "export/__init__.py",
    *(
        p.relative_to(ROOT).as_posix()
        for folder in ("stages", "commands")
        for p in sorted((ROOT / "compress" / folder).glob("*.py"))
    ),
)  # fmt: skip


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(file: Path, top_level: bool = False, types: bool = True) -> Iterator[str]:
    """Absolute names of what the file imports; with `top_level` only what runs on import, without
    `types` not what a type checker alone imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = ["vcompress", *file.relative_to(ROOT).parent.parts]
    nodes = _on_import(tree) if top_level else ast.walk(tree)
    for node in nodes if types else _running(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield child
            yield from _running(child)


def _on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from _on_import(child)


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_a_package_imports_only_along_the_arrow(package: str) -> None:
    found = files(package)
    assert len(found) > 3
    for file in found:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "vcompress" and len(parts) > 1:
                assert parts[1] in MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("package", list(MAY_IMPORT))
def test_a_package_imports_itself_relatively_and_others_by_their_full_name(package: str) -> None:
    for file in files(package):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not (node.module or "").startswith(f"vcompress.{package}"), file
                assert (node.module or "").split(".")[0] not in MAY_IMPORT, file


# The rooms of a package, floor by floor: a room imports from lower floors alone, lazily too. What
# stands alone at the top of a package is a floor of its own.
FLOORS = {
    "bench": [
        {"errors", "lazy", "safe_path", "stats", "text", "working"},
        {"apart", "config", "onnx_file", "own_code", "ranges"},
        {"bundle"},
        {"data", "runtimes"}, {"engine", "tasks", "timing"}, {"device", "verify", "reports"},
        {"gates"}, {"run"}, {"cli", "library"},
    ],
    "compress": [
        {"allocator", "options", "data", "models", "reporting"},
        {"pruning", "quantization", "distillation"}, {"tasks"},
        {"bundles", "robustness", "training"}, {"stages"}, {"pipeline"},
        {"delivery", "library", "search"}, {"commands"}, {"cli"}, {"__main__"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("package", list(FLOORS))
def test_a_room_imports_from_lower_floors_alone(package: str) -> None:
    floor = {room: n for n, rooms in enumerate(FLOORS[package]) for room in rooms}
    for file in files(package):
        inside = file.relative_to(ROOT / package)
        if inside.name == "__init__.py" and len(inside.parts) == 1:
            continue  # the front door: its names are lazy
        room = inside.parts[0].removesuffix(".py")
        assert room in floor, f"{inside}: which floor is {room}?"
        for name in imports(file, types=False):
            parts = name.split(".")
            if parts[:2] == ["vcompress", package] and len(parts) > 2 and parts[2] in floor:
                assert parts[2] == room or floor[parts[2]] < floor[room], f"{inside}: {name}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions count; those of a type checker alone, and a package's lazy names, do
    not."""
    known = {
        ".".join(("vcompress", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): file
        for package in MAY_IMPORT
        for file in files(package)
    }
    graph = {
        name: {found for found in imports(file, types=False) if found in known and found != name}
        for name, file in known.items()
    }
    for name, file in known.items():
        if file.name != "__init__.py":
            # `from ..room import name` asks the room's front door, whatever stands behind it.
            graph[name] -= {door for door in graph[name] if known[door].name == "__init__.py"}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("package", list(FLOORS))
def test_contributing_has_a_line_for_every_room_floor_after_floor(package: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    part = text[text.index(f"\n`{package}`: ") :]
    table = part[: part.index("\n\n", part.index("| --- |"))]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    listed = [room.rstrip("/") for cell in cells for room in re.findall(r"`([^`]+)`", cell)]
    floors = {room: n for n, rooms in enumerate(FLOORS[package]) for room in rooms}
    floors.pop("__main__", None)
    assert sorted(listed) == sorted(floors)
    assert [floors[room] for room in listed] == sorted(floors.values())


def test_every_room_is_installed() -> None:
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    rooms = {
        ".".join(("vcompress", *file.parent.relative_to(ROOT).parts))
        for package in MAY_IMPORT
        for file in (ROOT / package).rglob("__init__.py")
    }
    assert rooms <= listed


def test_bench_needs_nothing_of_the_training_side() -> None:
    for file in files("bench"):
        light = {name.split(".")[0] for name in imports(file, top_level=True)}
        assert not light & (TRAINING | {"sklearn"}), file
        anywhere = {name.split(".")[0] for name in imports(file)} & TRAINING
        if file.name == "torch.py" and file.parent.name == "runtimes":
            continue
        assert anywhere <= ({"torchvision"} if file.name == "sources.py" else set()), file


@pytest.mark.parametrize("name", LIGHT)
def test_what_help_needs_imports_nothing_heavy(name: str) -> None:
    file = ROOT / name
    assert not {n.split(".")[0] for n in imports(file, top_level=True)} & HEAVY


def test_nothing_unpickles_or_runs_data() -> None:
    for package in MAY_IMPORT:
        for file in files(package):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                where = f"{file.relative_to(ROOT)}:{node.lineno}"
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), where
                if called == "torch.load":
                    assert keywords.get("weights_only") == "True", where
                if called in ("np.load", "numpy.load"):
                    assert keywords.get("allow_pickle") == "False", where
                assert "shell" not in keywords or keywords["shell"] == "False", where


def test_only_the_commands_and_what_they_show_print() -> None:
    speakers = {
        "bench/cli.py", "bench/run/apart.py", "bench/reports/terminal.py", "bench/verify/check.py",
        "compress/cli.py", "compress/reporting/terminal.py",
        "export/edge/__main__.py",
        *(p.relative_to(ROOT).as_posix() for p in (ROOT / "compress" / "commands").glob("*.py")),
    }  # fmt: skip
    for package in MAY_IMPORT:
        for file in files(package):
            calls = [
                n for n in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(n, ast.Call) and ast.unparse(n.func) == "print"
            ]  # fmt: skip
            assert not calls or file.relative_to(ROOT).as_posix() in speakers, file


def test_what_is_one_tasks_own_stands_in_its_two_files() -> None:
    """No other code knows these tasks by their name: a new one is a file in each half."""
    own = {"multilabel", "regression", "segmentation"}
    homes = {"bench/tasks/__init__.py"}
    homes |= {"bench/data/coco.py", "bench/data/mask_folders.py"}  # a key, and a folder's name
    for package in MAY_IMPORT:
        for file in files(package):
            name = file.relative_to(ROOT).as_posix()
            if name.endswith(tuple(f"tasks/{task}.py" for task in own)) or name in homes:
                continue
            tree = ast.parse(file.read_text(encoding="utf-8"))
            words = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
            assert not words & own, name


def test_a_simple_task_is_under_150_lines_in_each_half() -> None:
    for half in ("bench", "compress"):
        lines = (ROOT / half / "tasks" / "regression.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) < 150, half
