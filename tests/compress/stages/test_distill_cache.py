"""Distillation from a cache of the teacher's outputs: as from the teacher, asked once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vcompress.bench.bundle import Preprocess
from vcompress.bench.errors import UserError
from vcompress.compress.distillation.teaching import Teacher
from vcompress.compress.training.config import Context


def test_a_cache_gives_the_losses_of_the_teacher_itself(
    taught: Context, run: Any, tiny_nets: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "cache")
    options = {"losses": ("kd=1", "fitnet=0.5"), "epochs": 3}
    live, details = run(taught, tiny_nets.batch, **options)
    cached, again = run(taught, tiny_nets.batch, cache_teacher=folder, cache_views=0, **options)
    assert again["loss"] == pytest.approx(details["loss"], abs=2e-4)  # features are float16
    assert again["cache"] == {"folder": folder, "views": 3}
    for key, value in live.state_dict().items():
        assert torch.allclose(value, cached.state_dict()[key], atol=5e-3), key


def test_the_teacher_is_asked_once_for_every_view_and_never_again(
    taught: Context, run: Any, same: Any, tiny_nets: Any, tmp_path: Path
) -> None:
    class Counting(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return self.net(x)  # type: ignore[no-any-return]

    asked: list[int] = []
    counting = replace(taught, teacher=Counting(taught.teacher))  # type: ignore[arg-type]
    options = {"cache_teacher": str(tmp_path / "cache"), "cache_views": 2, "epochs": 5}
    first, _ = run(counting, tiny_nets.batch, **options)
    images = len(taught.data.dataset.splits["train"])
    first_time = sum(asked)
    asked.clear()
    second, _ = run(counting, tiny_nets.batch, **options)
    assert first_time - sum(asked) == 2 * images
    assert sum(asked) < images  # its classes, and what the report shows
    assert same(first, second)


def test_a_cache_of_another_teacher_is_refused(
    taught: Context, run: Any, tiny_nets: Any, tmp_path: Path
) -> None:
    folder = str(tmp_path / "cache")
    run(taught, tiny_nets.batch, cache_teacher=folder, cache_views=1)
    with pytest.raises(UserError, match="made of another teacher"):
        run(replace(taught, teacher=tiny_nets.batch()), tiny_nets.batch, cache_teacher=folder)
    other = replace(taught, data=replace(taught.data, augment="crop-flip"))
    with pytest.raises(UserError, match="other preprocessing, augmentation or seed"):
        run(other, tiny_nets.batch, cache_teacher=folder)
    with pytest.raises(UserError, match="no teacher that could be cached"):
        run(replace(taught, teacher=None), tiny_nets.batch, method="self", cache_teacher=folder)


def test_a_larger_and_a_grey_teacher_are_learnt_from_with_features(
    taught: Context, run: Any, tiny_nets: Any, tmp_path: Path
) -> None:
    large = Preprocess((24, 24), mean=(0.3,) * 3, std=(0.2,) * 3)
    grey = Preprocess((16, 16), mean=(0.3,), std=(0.2,), channels="L")
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    teachers = Teacher(tiny_nets.batch(), large), Teacher(net, grey)
    context = replace(taught, teacher=None, teachers=teachers)
    options = {"losses": ("kd=1", "at=1", "fitnet=1"), "epochs": 1}
    _, details = run(context, tiny_nets.batch, **options)
    assert details["loss"][0] > 0 and len(details["features"]) >= 2
    _, again = run(
        context, tiny_nets.batch, cache_teacher=str(tmp_path / "c"), cache_views=0, **options
    )
    assert again["loss"] == pytest.approx(details["loss"], abs=1e-3)


def test_a_cache_shows_a_small_student_the_augmentation_of_its_large_teacher(
    taught: Context, run: Any, tiny_nets: Any, tmp_path: Path
) -> None:
    """`auto` crops and mirrors for 80 px and shifts and turns for 16: one of them for both."""
    large = Teacher(tiny_nets.batch(), Preprocess((80, 80), mean=(0.3,) * 3, std=(0.2,) * 3))
    data = replace(taught.data, augment="auto")
    context = replace(taught, data=data, teacher=None, teachers=(large,))
    live, details = run(context, tiny_nets.batch)
    cached, again = run(context, tiny_nets.batch, cache_teacher=str(tmp_path / "c"), cache_views=0)
    assert again["loss"] == pytest.approx(details["loss"], abs=1e-4)
    for key, value in live.state_dict().items():
        assert torch.allclose(value, cached.state_dict()[key], atol=1e-4), key


def test_the_record_says_how_many_views_there_are(
    taught: Context, run: Any, tiny_nets: Any, tmp_path: Path
) -> None:
    """Fewer epochs than --cache-views need no more views than epochs."""
    folder = tmp_path / "c"
    _, details = run(taught, tiny_nets.batch, cache_teacher=str(folder), cache_views=8)
    assert details["cache"]["views"] == 2 == len(list(folder.glob("view-*")))
