"""Data sets of torchvision: read from small files, and downloads that were interrupted."""

from __future__ import annotations

import hashlib
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vcompress.bench.data.dataset import batches
from vcompress.bench.data.splits import SPLITS
from vcompress.bench.errors import EnvironmentLacks, UserError
from vcompress.bench.tasks import open_dataset, open_recorded


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request
    from urllib.error import URLError

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN", "GTSRB"])
def test_a_download_that_fails_says_where_the_files_were_looked_for(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentLacks) as caught:
        open_dataset(f"torchvision:{name}", str(tmp_path / "root"))
    assert caught.value.status == 4
    for part in (
        name,
        str(tmp_path / "root"),
        "could not be downloaded",
        "Put the files there whole",
    ):
        assert part in str(caught.value)


def write_mnist(root: Path) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">4I", 2051, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">2I", 2049, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return raw


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("left_bytes", [0, 3, 10, 1000])
def test_an_interrupted_download_is_named_and_not_opened(tmp_path: Path, left_bytes: int) -> None:
    raw = write_mnist(tmp_path)
    file = raw / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:left_bytes])
    with pytest.raises(EnvironmentLacks, match=r"missing or incomplete in .*interrupted download"):
        open_dataset("torchvision:MNIST", str(tmp_path))


def test_an_image_of_torchvision_that_is_damaged_is_named_when_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that was unpacked in part: the list is whole, a file is not."""
    from torchvision import datasets

    class Files:
        classes = ("a", "b")

        def __init__(self, root: str, split: str, download: bool) -> None:
            self.labels = [n % 2 for n in range(20)]

        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            if index == 7:
                raise FileNotFoundError("image_00007.jpg")
            return Image.new("RGB", (4, 4)), self.labels[index]

    monkeypatch.setattr(datasets, "Flowers102", Files)
    data = open_dataset("torchvision:Flowers102", str(tmp_path))
    with pytest.raises(UserError, match=r"image 7 of test cannot be read \(image_00007.jpg\)"):
        data.image(27)


def test_a_torchvision_name_that_is_wrong_or_has_no_parts_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no data set 'MNST'. Did you mean 'E?MNIST'"):
        open_dataset("torchvision:MNST", str(tmp_path))
    with pytest.raises(UserError, match="say with --data-root where the files are"):
        open_dataset("torchvision:MNIST")
    for name in ("FakeData", "ImageFolder", "VisionDataset"):
        with pytest.raises(UserError, match="no train and test parts that vcompress knows"):
            open_dataset(f"torchvision:{name}", str(tmp_path))


def test_mnist_is_read_from_its_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = open_dataset("torchvision:MNIST", str(tmp_path))
    assert [len(data.splits[name]) for name in SPLITS] == [50, 10, 20]
    assert len(data.classes) == 10
    assert data.default_preprocess.size == (32, 32)
    assert data.image(0).size == (28, 28)
    assert data.splits["test"].tolist() == list(range(60, 80))
    assert data.root == str(tmp_path)
    images, labels = next(iter(batches(data, "test", data.default_preprocess, 4)))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2, 3]


def test_cifar10_is_read_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    rng = np.random.default_rng(0)

    def save(name: str, content: object) -> str:
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    def part(name: str) -> list[str]:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        return [name, save(name, {"data": pixels, "labels": [n % 10 for n in range(20)]})]

    monkeypatch.setattr(CIFAR10, "train_list", [part("data_batch_1"), part("data_batch_2")])
    monkeypatch.setattr(CIFAR10, "test_list", [part("test_batch")])
    names = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"filename": "batches.meta", "key": "label_names"}
    meta["md5"] = save("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", meta)
    with tarfile.open(tmp_path / CIFAR10.filename, "w:gz"):
        pass
    data = open_dataset("torchvision:CIFAR10", str(tmp_path))
    assert data.classes == tuple(names)
    assert [len(data.splits[name]) for name in SPLITS] == [30, 10, 20]
    assert data.targets[40:43].tolist() == [0, 1, 2]
    assert data.image(59).mode == "RGB"


@pytest.mark.usefixtures("offline")
def test_a_data_set_without_class_labels_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    class Boxes:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.root = root

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, list[dict[str, int]]]:
            return Image.new("RGB", (4, 4)), [{"left": index}]

    monkeypatch.setattr(datasets, "Kitti", Boxes)
    with pytest.raises(UserError, match=r"torchvision:Kitti: .*one class"):
        open_dataset("torchvision:Kitti", str(tmp_path))


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "SVHN", "GTSRB", "Flowers102"])
def test_the_record_of_a_bundle_starts_no_download_and_makes_no_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    asked: list[Any] = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *given, **_: asked.append(given))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "chosen" / "by the bundle"
    record = {"source": f"torchvision:{name}", "root": str(root), "seed": 0}
    with pytest.raises(EnvironmentLacks, match=r"a record starts no download\. Give --data"):
        open_recorded(record, "classification", None, "runs/net")
    assert not asked
    assert not list(tmp_path.iterdir())


def test_files_that_are_there_are_opened_from_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    monkeypatch.chdir(tmp_path)
    record = {"source": "torchvision:MNIST", "root": str(tmp_path), "seed": 3}
    found = open_recorded(record, "classification", None, "runs/net")
    assert (len(found.targets), len(found.splits["test"])) == (80, 20)
