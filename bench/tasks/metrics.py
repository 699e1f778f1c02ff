"""The metrics of the tasks: what they are called, their unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One number that says how well a model does its task."""

    name: str
    """As records hold it."""
    title: str
    """As tables and axes show it."""
    unit: Literal["%", ""]
    """A share from 0 to 1 is shown in per cent, any other number as it is."""
    higher_is_better: bool

    def text(self, value: float) -> str:
        """The value with its unit, such as `97.50 %`."""
        return f"{100 * value:.2f} %" if self.unit == "%" else f"{value:.4g}"

    def span(self, low: float, high: float) -> str:
        """An interval with its unit, such as `95.5 to 98.5 %`."""
        if self.unit == "%":
            return f"{100 * low:.1f} to {100 * high:.1f} %"
        return f"{low:.3g} to {high:.3g}"

    def change(self, difference: float) -> str:
        """A difference with its sign, such as `-1.50 points`."""
        return f"{100 * difference:+.2f} points" if self.unit == "%" else f"{difference:+.3g}"


_KNOWN = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1", "%", True),
        Metric("top5", "top-5", "%", True),
        Metric("mAP", "mAP", "%", True),
        Metric("f1", "F1", "%", True),
        Metric("mae", "MAE", "", False),
        Metric("r2", "R²", "", True),
        Metric("miou", "mIoU", "%", True),
        Metric("pixel_accuracy", "pixel accuracy", "%", True),
        Metric("ap", "AP", "%", True),
    )
}


def metric(name: str) -> Metric:
    """The metric of that name; one that is not known here keeps its name and has no unit."""
    return _KNOWN.get(name) or Metric(name, name, "", True)
