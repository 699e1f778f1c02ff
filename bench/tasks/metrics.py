"""Metrics: their names, their units, and how they are written.

Nothing heavy is imported: a table or a page that shows a metric needs no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number that a task's score holds."""

    name: str
    """As in JSON, gates and records: top1, mAP, mae."""
    title: str
    """As people read it: top-1, MAE."""
    unit: Literal["%", ""] = "%"
    """`%`: a share from 0 to 1 that is shown times 100; empty: in the unit of the targets."""
    higher_is_better: bool = True
    of_one: str = ""
    """What the number of one class or label is called, where that is something else."""
    parts: Literal["class", "name"] = "name"
    """What stands beside the number of one part."""

    def text(self, value: float) -> str:
        """`98.61 %`, or `0.4127` for a metric without a unit."""
        return f"{100 * value:.2f} %" if self.unit else f"{value:.4g}"

    def span(self, low: float, high: float) -> str:
        """`96.8 to 99.4 %`, or `0.401 to 0.423`."""
        if self.unit:
            return f"{100 * low:.1f} to {100 * high:.1f} %"
        return f"{low:.3g} to {high:.3g}"

    def change(self, difference: float) -> str:
        """`+0.28 points`, or `-0.0123`."""
        return f"{self.points(difference):+.2f} points" if self.unit else f"{difference:+.3g}"

    def loss(self, before: float, after: float) -> float:
        """How much worse `after` is; below 0 where it is better."""
        return before - after if self.higher_is_better else after - before

    def points(self, difference: float) -> float:
        """A difference in points (0 to 100) of a share, else as it is."""
        return 100 * difference if self.unit else difference


_KNOWN = (
    Metric("top1", "top-1", parts="class"),
    Metric("top5", "top-5"),
    Metric("mAP", "mAP", of_one="average precision"),
    Metric("f1_micro", "F1, micro"),
    Metric("f1_macro", "F1, macro"),
    Metric("exact_match", "exact match"),
    Metric("mIoU", "mIoU", of_one="IoU", parts="class"),
    Metric("pixel_accuracy", "pixel accuracy"),
    Metric("boundary_f1", "boundary F1"),
    Metric("mae", "MAE", "", higher_is_better=False),
    Metric("rmse", "RMSE", "", higher_is_better=False),
    Metric("r2", "R²", ""),
)
TABLE = {metric.name: metric for metric in _KNOWN}
"""Every metric by its name."""


def metric(name: str) -> Metric:
    """The metric of this name; one that is not known here is shown by its name, without a unit."""
    return TABLE.get(name) or Metric(name, name, "")
