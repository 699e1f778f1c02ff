"""What many tests share: one thread, tiny networks, tiny images."""

from __future__ import annotations

import os

# Before torch is loaded: results must not depend on the machine's cores, and tests run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY_NETS = '''
from torch import nn


def group(num_classes: int = 3) -> nn.Module:
    """GroupNorm, so a batch may be divided without changing the result."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes),
    )


def batch(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, num_classes),
    )
'''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands in `tests/bench/timing` measures real time."""
    for item in items:
        if item.path.parent.name == "timing":
            item.add_marker(pytest.mark.timing)


@pytest.fixture(scope="session", autouse=True)
def no_places_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests name as data is remembered in a folder of their own."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `tiny_nets` of a user, in the working directory; `tiny_nets:group` names a net."""
    (tmp_path / "tiny_nets.py").write_text(TINY_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    yield importlib.import_module("tiny_nets")
    sys.modules.pop("tiny_nets", None)


def pattern(kind: int, number: int, size: int = 16) -> Image.Image:
    """A noisy image of one of three colours: easy to learn, and no two are alike."""
    rng = np.random.default_rng(1000 * kind + number)
    pixels = rng.integers(0, 120, (size, size, 3))
    pixels[..., kind % 3] += 100
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes class folders: `image_folder(red=12, green=12)` gives their parent."""

    def write(into: str = "images", size: int = 16, **counts: int) -> Path:
        top = tmp_path / into
        first = {"val": 300, "test": 600}.get(top.name, 0)  # no image is in two splits
        for kind, (name, count) in enumerate(counts.items()):
            (top / name).mkdir(parents=True)
            for number in range(count):
                pattern(kind, first + number, size).save(top / name / f"{number:03}.png")
        return top

    return write


@pytest.fixture
def tiny_data() -> Callable[..., Any]:
    """Makes training data held in memory: three classes, 16 px."""

    def make(per_class: int = 20, seed: int = 0, augment: str = "none") -> Any:
        from vcompress.bench.bundle import Preprocess
        from vcompress.bench.data.dataset import Dataset
        from vcompress.bench.data.splits import split_by_seed
        from vcompress.compress.data.loader import Data

        labels = np.repeat(np.arange(3), per_class)
        images = [pattern(int(k), n) for n, k in enumerate(labels)]
        classes = ("red", "green", "blue")
        keys = [str(n) for n in range(len(labels))]
        dataset = Dataset(
            "memory", classes, labels, split_by_seed(keys, labels, classes, seed), f"{seed}",
            images.__getitem__, Preprocess((16, 16), mean=(0.3,) * 3, std=(0.2,) * 3), seed=seed,
        )  # fmt: skip
        return Data(dataset, dataset.default_preprocess, augment, seed)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the user's `tiny_nets.py`, `images/` and the bundle `runs/net`, made
    once by `vcompress finetune`. Do not write into the bundle: copy it."""
    from vcompress.compress.cli import main
    from vcompress.compress.pipeline import measure

    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny_nets.py").write_text(TINY_NETS)
    for kind, name in enumerate(("red", "green", "blue")):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            pattern(kind, number).save(folder / "images" / name / f"{number:03}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setattr(measure, "LATENCY_SECONDS", 0.2)
        assert main(["finetune", *MADE_WITH, "--out", "runs/net"]) == 0
        sys.modules.pop("tiny_nets", None)
    yield folder


MADE_WITH = [
    "--model", "tiny_nets:batch", "--data", "images", "--image-size", "16", "--epochs", "3",
    "--batch-size", "8", "--lr", "0.02",
]  # fmt: skip


@pytest.fixture
def made_with() -> list[str]:
    """The options of the bundle in `made`."""
    return list(MADE_WITH)


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder of its own with a copy of what `made` holds; latency is measured briefly."""
    import shutil

    from vcompress.compress.pipeline import measure

    folder = tmp_path / "work"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.2)
    sys.modules.pop("tiny_nets", None)
    yield folder
    sys.modules.pop("tiny_nets", None)
