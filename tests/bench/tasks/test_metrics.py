"""The metrics of the tasks: how their numbers are written."""

from __future__ import annotations

import pytest

from vcompress.bench.tasks.metrics import metric


@pytest.mark.parametrize(
    ("name", "title", "text", "span", "change"),
    [
        ("top1", "top-1", "97.53 %", "95.5 to 98.6 %", "-1.50 points"),
        ("mAP", "mAP", "97.53 %", "95.5 to 98.6 %", "-1.50 points"),
        ("mae", "MAE", "0.9753", "0.955 to 0.986", "-0.015"),
        ("r2", "R²", "0.9753", "0.955 to 0.986", "-0.015"),
    ],
)
def test_a_share_is_in_per_cent_and_another_number_as_it_is(
    name: str, title: str, text: str, span: str, change: str
) -> None:
    found = metric(name)
    assert (found.name, found.title) == (name, title)
    assert found.text(0.97531) == text
    assert found.span(0.955, 0.986) == span
    assert found.change(-0.015) == change


def test_only_of_an_error_less_is_better() -> None:
    names = ["top1", "top5", "mAP", "f1", "mae", "r2", "miou", "pixel_accuracy", "ap"]
    assert [name for name in names if not metric(name).higher_is_better] == ["mae"]


def test_a_metric_of_a_newer_version_keeps_its_name() -> None:
    found = metric("panoptic")
    assert (found.title, found.unit, found.text(0.5)) == ("panoptic", "", "0.5")


def test_a_difference_of_shares_is_in_points() -> None:
    top1, mae = metric("top1"), metric("mae")
    assert top1.points(top1.loss(0.9, 0.85)) == pytest.approx(5.0)
    assert mae.points(mae.loss(0.9, 0.85)) == pytest.approx(-0.05)
