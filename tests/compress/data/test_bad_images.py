"""Images that are odd or damaged: read right, refused by name, or skipped, counted and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import Dataset, batches
from vcompress.bench.errors import UserError
from vcompress.bench.tasks import open_dataset
from vcompress.compress.data.loader import Data
from vcompress.compress.training.config import Context, TrainConfig
from vcompress.compress.training.loop import fit

PREPROCESS = Preprocess((8, 8), mean=(0.0,) * 3, std=(1.0,) * 3)


def damaged(folder: Path, split: str, count: int) -> tuple[Data, list[int]]:
    """`count` JPEGs of the split cut short, and what skips them."""
    for png in folder.rglob("*.png"):
        Image.open(png).save(png.with_suffix(".jpg"), quality=95)
        png.unlink()
    paths = sorted(folder.rglob("*.jpg"))
    chosen = [int(i) for i in open_dataset(str(folder)).splits[split][:count]]
    for number in chosen:
        paths[number].write_bytes(paths[number].read_bytes()[:-40])
    data = Data(open_dataset(str(folder), on_bad_image="skip"), PREPROCESS, augment="affine")
    return data, chosen


def test_a_damaged_jpeg_in_an_epoch_fails_by_name(image_folder: Callable[..., Path]) -> None:
    data, chosen = damaged(image_folder(red=10, green=10), "train", 1)
    strict = replace(data, dataset=replace(data.dataset, on_bad_image="fail"))
    with pytest.raises(UserError, match=rf"{chosen[0] % 10:03}.jpg: cannot be read as an image"):
        list(strict.loader("train", 4, train=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_skipped_image_is_replaced_in_training_and_the_epoch_stays_the_same(
    image_folder: Callable[..., Path], workers: int
) -> None:
    data, chosen = damaged(image_folder(red=10, green=10), "train", 3)
    first = list(data.loader("train", 4, train=True, epoch=1))
    assert [len(labels) for _, labels in first] == [4, 4, 4]  # 14 images
    data.dataset.bad_images.clear()
    again = list(data.loader("train", 4, train=True, epoch=1, workers=workers, samples=True))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    indices = torch.cat([samples.indices for *_, samples in again]).tolist()
    assert set(indices) <= set(data.dataset.splits["train"].tolist()) - set(chosen)
    labels = torch.cat([batch[1] for batch in again])
    assert labels.tolist() == data.dataset.targets[indices].tolist()
    assert set(data.dataset.bad_images) <= set(chosen) and data.dataset.bad_images


def test_a_skipped_image_leaves_its_batch_shorter_in_evaluation(
    image_folder: Callable[..., Path],
) -> None:
    data, chosen = damaged(image_folder(red=20, green=20), "test", 3)
    assert [len(labels) for _, labels in data.loader("test", 3)] == [3, 2]  # all of the first gone
    assert sorted(data.dataset.bad_images) == chosen
    assert data.images("test", 8).shape == (5, 3, 8, 8)
    assert sum(len(labels) for _, labels in batches(data.dataset, "test", PREPROCESS, 3)) == 5


def test_a_set_with_nothing_to_read_ends_with_the_reason(image_folder: Callable[..., Path]) -> None:
    data, _ = damaged(image_folder(red=10, green=10), "train", 99)
    with pytest.raises(UserError, match=r"14 images in a row cannot be read, the last one: .*jpg"):
        list(data.loader("train", 4, train=True))
    with pytest.raises(UserError, match="None of the training images can be read"):
        _ = data.example


def test_a_resumed_run_with_skipped_images_ends_as_an_undisturbed_one(
    image_folder: Callable[..., Path], tiny_nets: object, tmp_path: Path
) -> None:
    data, chosen = damaged(image_folder(red=10, green=10), "train", 2)
    config = TrainConfig(epochs=3, batch_size=4, lr=0.02)
    ends = []
    for name, stop in (("whole", None), ("cut", 2)):
        for resume in (False,) if stop is None else (False, True):
            torch.manual_seed(0)
            net = tiny_nets.batch(2)  # type: ignore[attr-defined]

            def stopping(epoch: int, _: object, stop: int | None = stop) -> None:
                if epoch == stop:
                    raise KeyboardInterrupt

            context = Context(data, tmp_path / name, 1, resume)
            if resume or stop is None:
                fit(net, config, context, name="t")
            else:
                with pytest.raises(KeyboardInterrupt):
                    fit(net, config, context, name="t", on_epoch=stopping)
        ends.append(net.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert sorted(data.dataset.bad_images) == chosen


def test_odd_images_become_the_colours_that_they_show(tmp_path: Path) -> None:
    """Grey, CMYK, 16 bits and a turned photograph through training and measuring alike."""
    folder = tmp_path / "odd"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    upright = Image.fromarray(np.stack([grey, grey.T, 255 - grey], -1))
    turn = Image.Exif()
    turn[0x0112] = 6  # shown after a quarter turn clockwise
    images = {
        "grey.png": (Image.fromarray(grey), np.stack([grey] * 3, -1)),
        "sixteen.png": (Image.fromarray(grey.astype(np.uint16) * 257), np.stack([grey] * 3, -1)),
        "cmyk.tif": (upright.convert("CMYK"), np.asarray(upright)),
        "turned.png": (upright.rotate(90, expand=True), np.asarray(upright)),
    }
    expected: dict[str, np.ndarray] = {}
    for name, (image, shown) in images.items():
        image.save(folder / "a" / name, **({"exif": turn} if name == "turned.png" else {}))
        expected[name] = shown / 255
    for number in range(4):
        upright.rotate(number * 7).save(folder / "b" / f"{number}.png")
    dataset = open_dataset(str(folder))
    preprocess = Preprocess((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    data = Data(replace(dataset, splits={n: np.arange(8) for n in dataset.splits}), preprocess)
    names = [p.name for p in sorted((folder / "a").iterdir())]
    measured = next(iter(batches(data.dataset, "test", preprocess, 8)))[0]
    trained = next(iter(data.loader("val", 8)))[0].numpy()
    assert np.array_equal(measured, trained)
    for name, values in zip(names, measured, strict=False):
        assert np.abs(values.transpose(1, 2, 0) - expected[name]).max() < 0.01, name


def test_training_reads_no_test_image(
    tiny_data: Callable[..., Data], tiny_nets: object, tmp_path: Path
) -> None:
    """The best epoch is chosen by the validation images alone."""
    data = tiny_data(augment="affine")
    read: set[int] = set()

    def image(index: int, inner: Callable[[int], Image.Image] = data.dataset.image) -> Image.Image:
        read.add(index)
        return inner(index)

    spied: Dataset = replace(data.dataset, image=image)
    config = TrainConfig(epochs=3, batch_size=8, lr=0.02, patience=1, ema_decay=0.5)
    fit(tiny_nets.batch(), config, Context(replace(data, dataset=spied), tmp_path / "w"), name="t")  # type: ignore[attr-defined]
    splits = {name: set(indices.tolist()) for name, indices in data.dataset.splits.items()}
    assert not read & splits["test"]
    assert splits["val"] <= read
    assert read <= splits["train"] | splits["val"]


def test_skipped_images_are_counted_and_named_at_the_end_of_a_command(
    work: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from vcompress.bench.bundle import Bundle
    from vcompress.compress.cli import main

    splits = open_dataset("images").splits
    paths = sorted(Path("images").rglob("*.png"))
    bad = sorted(paths[int(splits[name][3])] for name in ("train", "test"))
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    args = ["finetune", "--model", "tiny_nets:batch", "--data", "images", "--image-size", "16"]
    args += ["--epochs", "1", "--batch-size", "4", "--out", "runs/skipped"]
    assert main(args) == 2
    assert "cannot be read as an image" in capsys.readouterr().err
    with caplog.at_level("WARNING", "vcompress"):
        assert main([*args, "--on-bad-image", "skip"]) == 0
    entry = Bundle.open("runs/skipped").history[-1]
    assert entry.bad_images["count"] == 2
    assert all(path.name in " ".join(entry.bad_images["named"]) for path in bad)
    assert "2 images could not be read and were left out" in caplog.text
    assert entry.metrics.test.n == len(splits["test"]) - 1
    # What is measured later leaves them out too.
    assert main(["export", "runs/skipped", "--trust", "tiny_nets:batch"]) == 0
