"""Grad-CAM: the map of a network that can be worked out, and the part of the report."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from vcompress.compress.cli import main
from vcompress.compress.data.loader import Data
from vcompress.compress.distillation import disagreement
from vcompress.compress.distillation.disagreement import (
    Viewer,
    disagreements_section,
    grad_cam,
    last_convolution,
)
from vcompress.compress.tasks.classification import Classification


class Spot(nn.Module):
    """One convolution that passes the red channel on; the logit of class 1 is its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:2, :, None, None])
            self.head.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
        return out


def test_the_map_is_where_the_class_was_seen() -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0, 2:4, 5:7] = 1.0  # red: class 1
    images[0, 1, 6, 1] = 1.0  # green: class 0
    found = grad_cam(Spot(), "conv", images.repeat(1, 1, 1, 1), torch.tensor([1, 1]))
    assert found.shape == (2, 8, 8)
    assert torch.equal(found[0], images[0, 0])
    assert float(found[1].abs().max()) == 0.0
    other = grad_cam(Spot(), "conv", images[:1], torch.tensor([0]))[0]
    assert torch.equal(other, images[0, 1])


def test_the_last_convolution_is_the_one_that_is_passed_last_with_a_map_left(
    tiny_nets: Any,
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Conv2d(4, 3, 1)
            self.second = nn.Conv2d(4, 4, 3)
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = self.second(self.first(x)).mean((2, 3), keepdim=True)
            out: torch.Tensor = self.classifier(pooled).flatten(1)
            return out

    example = torch.zeros(1, 3, 16, 16)
    assert last_convolution(Net(), example) == "second"
    assert last_convolution(tiny_nets.batch(), example) == "3"
    assert last_convolution(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), example) is None


def pictures(section: str) -> list[Image.Image]:
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', section)
    return [Image.open(BytesIO(base64.b64decode(d))) for d in data]


def test_images_of_disagreement_are_shown_with_what_each_said(
    tiny_data: Callable[..., Data], tiny_nets: Any
) -> None:
    data = tiny_data()
    torch.manual_seed(0)
    one, two = tiny_nets.group(), tiny_nets.batch()
    with torch.no_grad():
        one[5].bias.copy_(torch.tensor([9.0, 0, 0]))
        two[9].bias.copy_(torch.tensor([0, 0, 9.0]))
    section = disagreements_section(
        Classification(),
        Viewer("teacher", one, data.preprocess),
        Viewer("<i>", two, data.preprocess),
        data,
    )
    found = pictures(section)
    assert len(found) == 18  # six images, three pictures each
    assert all(image.size == (160, 160) and image.mode == "RGB" for image in found)
    assert "On 6 of 6 validation images teacher and" in section
    assert section.count("teacher: red, ") == 12 and "&lt;i&gt;: blue" in section
    assert "<i>" not in section
    assert "http" not in section


def test_of_many_validation_images_some_are_asked_about(
    tiny_data: Callable[..., Data], tiny_nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disagreement, "_MOST_ASKED", 4)
    data = tiny_data()
    viewer = Viewer("one", tiny_nets.group(), data.preprocess)
    section = disagreements_section(Classification(), viewer, viewer, data)
    assert "On all 4 validation images, spread over 6, one and one agree" in section


def test_a_teacher_with_another_order_of_classes_is_asked_for_its_own(
    tiny_data: Callable[..., Data], tiny_nets: Any
) -> None:
    data = tiny_data()
    torch.manual_seed(0)
    one, two = tiny_nets.group(), tiny_nets.group()
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        two[5].weight.copy_(one[5].weight.flip(0))
        two[5].bias.copy_(one[5].bias.flip(0))
    viewers = Viewer("a", one, data.preprocess), Viewer("b", two, data.preprocess, (2, 1, 0))
    assert "On all 6 validation images a and b agree" in disagreements_section(
        Classification(), *viewers, data
    )


def test_the_report_of_a_distillation_says_where_both_look(
    work: Path, made_with: list[str]
) -> None:
    args = ["--trust", "tiny_nets:batch", "--data", "images", "--image-size", "16", "--epochs", "1"]
    status = main(
        ["distill", "--teacher", "runs/net", "--student", "tiny_nets:group", *args, "--lr", "1e-5",
         "--out", "runs/student", "--robustness", "4"]
    )  # fmt: skip
    assert status == 0
    page = Path("runs/student/report.html").read_text()
    assert "<h2>Where they disagree</h2>" in page and "data:image/png;base64," in page
    assert page.count("<h2>Robustness</h2>") == 1
    part = Path("runs/student/section.html").read_text()
    assert part in page
    assert part.startswith("<h2>Where they disagree</h2>") and part.endswith("</div>")
    trust = ["--trust", "tiny_nets:group"]
    # The same network with new numbers: the part stays.
    for command in (["robustness", "--images", "4", "--attack-steps", "1"], ["export"]):
        assert main([*command, "runs/student", *trust]) == 0
        assert Path("runs/student/report.html").read_text().count(part) == 1, command
        assert Path("runs/student/section.html").read_text() == part, command
    assert main(["finetune", *made_with, "--epochs", "0", "--out", "runs/again"]) == 0
    assert "Where they disagree" not in Path("runs/again/report.html").read_text()
    assert not Path("runs/again/section.html").exists()
