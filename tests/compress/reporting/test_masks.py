"""Pictures of the classes of pixels in a report: the images that changed most, and bars."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from vcompress.bench.bundle import Preprocess
from vcompress.bench.data.dataset import Dataset
from vcompress.bench.data.scenes import segmentation_scenes
from vcompress.bench.tasks import open_dataset
from vcompress.bench.tasks.scoring import evaluated
from vcompress.bench.tasks.segmentation import TASK
from vcompress.bench.tasks.task import Score
from vcompress.compress.reporting.masks import masks_section
from vcompress.compress.reporting.section import read_section

SIZE = Preprocess(size=(64, 64))
COUNT = 12


@pytest.fixture(scope="module")
def data() -> Dataset:
    whole = segmentation_scenes(0)
    test = whole.splits["test"][:COUNT]
    return replace(whole, splits={**whole.splits, "test": test}, task="segmentation")


def truth(data: Dataset) -> NDArray[np.uint8]:
    found = [data.both(int(i), SIZE) for i in data.splits["test"]]
    return np.stack([pair[1] for pair in found if pair is not None])


def scored(said: NDArray[np.uint8], masks: NDArray[np.uint8], data: Dataset) -> Score:
    return evaluated(TASK, said, masks, data.classes).compute()


def pictures(html: str) -> list[NDArray[np.uint8]]:
    held = re.findall(r"data:image/jpeg;base64,([^\"]+)", html)
    return [np.asarray(Image.open(BytesIO(base64.b64decode(x)))) for x in held]


def test_the_images_that_changed_most_are_shown_with_where(data: Dataset) -> None:
    masks = truth(data)
    after = masks.copy()
    after[3, :32] = 1 - (after[3, :32] == 1)  # half of this one is another class
    after[7, :8] = 2 - (after[7, :8] == 2)
    before = scored(masks, masks, data)
    html = masks_section(data, SIZE, scored(after, masks, data), before)
    assert "Where the classes changed most" in html
    assert f"The 2 of {COUNT} test images with most pixels of another class than in float" in html
    assert html.count("<figcaption>float: 100.0% right") == 2
    assert re.findall(r"<figcaption>quantised: (\d+)", html) == ["50", "87"]
    assert re.findall(r"<figcaption>another class than in float: (\d+)", html) == ["50", "12"]
    legend = len(data.classes) if html.count('width="24"') else 0
    rows = [p for p in pictures(html) if p.shape[1] > 24]
    assert len(rows) == 10
    differ = rows[4].astype(int)
    reds = (differ[..., 0] > 180) & (differ[..., 1] < 90)
    assert reds[:80].mean() > 0.98
    assert reds[100:].mean() < 0.02
    assert legend
    # The bars: what lost most stands first, and all that a report takes over is taken over.
    names = re.findall(r'<td class="left">([^<]+)</td>', html)
    assert set(names) == set(data.classes)
    assert names[0] in ("background", "0", "1", "2")
    assert html.count("<meter") == 2 * len(data.classes)
    assert "IoU by class" in html
    assert read_section(html) == html
    assert len(html) < 400_000


def test_without_a_float_network_the_worst_images_are_shown(data: Dataset) -> None:
    masks = truth(data)
    said = np.roll(masks, 2, 2)
    html = masks_section(data, SIZE, scored(said, masks, data))
    assert "Where most pixels are wrong" in html
    assert "The 6 of 12 test images with most pixels of a wrong class" in html
    wrong = [float(x) for x in re.findall(r"<figcaption>a wrong class: ([\d.]+)%", html)]
    assert wrong == sorted(wrong, reverse=True)
    each = sorted(((said != masks).mean((1, 2)) * 100).tolist(), reverse=True)[:6]
    assert wrong == pytest.approx(each, abs=0.06)
    assert len([p for p in pictures(html) if p.shape[1] > 24]) == 6 * 4


def test_a_network_that_is_right_everywhere_is_said_to_be(data: Dataset) -> None:
    masks = truth(data)
    html = masks_section(data, SIZE, scored(masks, masks, data))
    assert "None of 12 test images has a pixel of a wrong class" in html


def test_other_tasks_have_no_such_pictures() -> None:
    digits = open_dataset("digits")
    labels = digits.targets[digits.splits["test"]]
    from vcompress.bench.tasks.classification import TASK as CLASSES

    score = evaluated(CLASSES, np.eye(10, dtype=np.float32)[labels], labels).compute()
    assert masks_section(digits, SIZE, score) == ""
