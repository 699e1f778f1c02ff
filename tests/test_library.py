"""The public names: lazy, stable, documented; the README's snippet and the examples run."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vcompress import bench, compress, export

ROOT = Path(__file__).parents[1]
DOORS = {"bench": bench, "compress": compress, "export": export}
SIGNATURES = json.loads((Path(__file__).parent / "signatures.json").read_text(encoding="utf-8"))


def public() -> dict[str, Any]:
    return {f"{door}.{name}": getattr(m, name) for door, m in DOORS.items() for name in m.__all__}


def signature(value: Any) -> str:
    """As in the source, whatever the version of Python resolves it to."""
    if isinstance(value, bench.Preprocess):
        return repr(value)
    if isinstance(value, type) and issubclass(value, Exception):
        return "an exception"
    if value in (compress.Distiller, compress.Quantized, bench.Model, bench.Bundle):
        # They are handed out, and made by nobody else.
        own = [n for n in (*vars(value), *value.__annotations__) if not n.startswith("_")]
        return ", ".join(sorted(set(own)))
    return str(inspect.signature(value)).replace("'", "")


def test_signatures_are_as_they_were_published() -> None:
    """Changed on purpose? Then say so in the changelog, and write signatures.json anew."""
    assert {name: signature(value) for name, value in public().items()} == SIGNATURES


def test_the_guide_names_everything_that_is_public_and_nothing_else() -> None:
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:bench|compress|export)\.[A-Za-z_]+", text))
    assert set(SIGNATURES) <= named
    modules = {"compress.pruning", "compress.distillation"}
    assert named - modules <= set(SIGNATURES)


def test_every_public_name_is_described() -> None:
    for name, value in public().items():
        if inspect.isfunction(value):
            text = inspect.getdoc(value) or ""
            assert len(text) > 60, name
            arguments = inspect.signature(value).parameters
            long = len(arguments) > 2
            missing = [a for a in arguments if long and not re.search(rf"\b{a}\b", text)]
            assert missing in ([], ["model"], ["path"], ["net"], ["a", "b"]) or name == (
                "bench.compare"
            ), (name, missing)
            assert "Raises:" in text or name == "compress.freeze_norms", name


@pytest.mark.parametrize("door", list(DOORS))
def test_a_door_loads_nothing_before_a_name_is_used(door: str) -> None:
    code = (
        f"import json, sys; from vcompress import {door}; dir({door}); "
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    heavy = {"torch", "torchvision", "numpy", "onnx", "onnxruntime", "scipy", "PIL", "accelerate"}
    assert not set(json.loads(done.stdout)) & heavy


def test_bench_measures_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from vcompress import bench; bench.measure; bench.compare; bench.load; "
        "bench.Preprocess(size=(8, 8)); import vcompress.bench.run.job; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("door", list(DOORS))
def test_an_unknown_name_is_an_attribute_error(door: str) -> None:
    with pytest.raises(AttributeError, match=rf"'vcompress\.{door}' has no attribute 'prun'"):
        _ = DOORS[door].prun
    assert set(dir(DOORS[door])) == set(DOORS[door].__all__)


def test_modules_below_a_door_do_not_hide_its_names() -> None:
    """Importing a submodule sets it as an attribute of its package: no function may be so named."""
    for door, module in DOORS.items():
        folder = Path(str(module.__file__)).parent
        below = {p.stem for p in folder.glob("*.py")} | {
            p.name for p in folder.iterdir() if p.is_dir()
        }
        assert not below & set(module.__all__), door


def snippet(file: Path) -> str:
    section = file.read_text(encoding="utf-8").partition("## As a library")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found
    return found.group(1)


def test_the_readmes_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vcompress.compress.pipeline import measure

    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    loader = [(torch.randn(16, 3, 16, 16), torch.randint(0, 2, (16,))) for _ in range(4)]

    def fit(model: nn.Module) -> None:
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        model.train()
        for images, labels in loader:
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save("cat.jpg")
    text = snippet(ROOT / "README.md")
    code = text.replace("bench.compare(", "bench.compare(seconds=0.2, a=", 1).replace(
        '"float.onnx", bundle)', '"float.onnx", b=bundle)', 1
    )
    assert code != text
    space = {
        "net": net, "loader": loader, "fit": fit, "example": loader[0][0][:1],
        "names": ("cat", "dog"), "pre": bench.Preprocess(size=(16, 16)),
        "held_out": [(x[0], int(y[0])) for x, y in loader],
    }  # fmt: skip
    exec(compile(code, "README.md", "exec"), space)
    shown = capsys.readouterr().out
    assert re.search(r"FASTER|SLOWER|SAME|INCONCLUSIVE|EQUIVALENT", shown)
    assert "Prediction(label=" in shown
    assert space["report"].achieved["macs"] < 0.6  # type: ignore[attr-defined]


def test_the_readmes_section_is_short() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## As a library")[2]
    prose = re.sub(r"```python\n.*?```", "", section.partition("\n## ")[0], flags=re.DOTALL)
    assert len([line for line in prose.splitlines() if line.strip()]) <= 12


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], bench.Bundle]:
    from vcompress.compress.pipeline import measure

    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.2)

    def run(name: str) -> bench.Bundle:
        found: bench.Bundle = example(name).main(True, tmp_path / name)
        found.verify()
        return found

    return run


def test_plain_torch_in_at_most_25_lines(
    ran: Callable[[str], bench.Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = ran("plain_torch")
    last = bundle.history[-1].metrics
    assert last is not None and last.test is not None
    assert last.test.value > 0.85
    assert last.test.n == 397
    assert "MACs 50" in capsys.readouterr().out
    source = (ROOT / "examples" / "plain_torch.py").read_text(encoding="utf-8")
    job = source.partition("# The job: 25 lines at most.\n")[2].partition("    # Done.\n")[0]
    lines = [line for line in job.splitlines() if line.strip()]
    assert 10 < len(lines) <= 25
    for step in ("compress.prune(", "compress.quantize(", "compress.save(", "fit(q"):
        assert step in job


def test_a_lightning_module(ran: Callable[[str], bench.Bundle]) -> None:
    pytest.importorskip("lightning")
    bundle = ran("lightning_module")
    last = bundle.history[-1].metrics
    assert last is not None and last.test is not None
    assert last.test.value > 0.25  # two passes over 256 images; chance is a tenth
    net = compress.load(bundle.path)  # it has a factory
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    report = bundle.history[-1].details["quantize"]
    assert report["quantised_layers"] == 21


def test_a_classifier_of_transformers(ran: Callable[[str], bench.Bundle]) -> None:
    pytest.importorskip("transformers")
    bundle = ran("huggingface")
    last = bundle.history[-1].metrics
    assert last is not None and last.test is not None
    assert last.test.value > 0.6
    assert bundle.preprocess == bench.Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert bundle.history[-1].details["quantize"]["kept_float"] == []


def test_examples_use_public_names_alone() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert len(files) == 3
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vcompress"):
                assert node.module == "vcompress"
                assert {a.name for a in node.names} <= set(DOORS)
            named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if named and node.value.id in DOORS:
                assert f"{node.value.id}.{node.attr}" in SIGNATURES, (file.name, node.attr)
