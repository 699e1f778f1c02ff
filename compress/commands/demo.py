"""`vcompress demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcompress.bench.errors import UserError, nearest
from vcompress.bench.tasks import CLASSIFICATION, TABLE

from ._show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run all stages on scikit-learn's digits: a network distilled, pruned, quantised, measured.

    A demo that was interrupted goes on where it stopped.
    """

    task: str = CLASSIFICATION
    """Task of the network. classification: R50 to R18 on single digits; segmentation: DeepLabV3 to
    LR-ASPP on scenes of several."""
    out: Path | None = None
    """Folder of the bundles and the report. Default: runs/demo, with the task's name behind it."""
    short: bool = False
    """Run a smaller demo of about a minute (classification)."""
    overwrite: bool = False
    """Start again instead of going on where the demo stopped."""

    def run(self) -> None:
        from ..pipeline.recipe import read_recipe, run_recipe

        kind = ("" if self.task == CLASSIFICATION else f"_{self.task}") + "_short" * self.short
        file = Path(__file__).parent.with_name(f"demo{kind}.toml")
        if not file.is_file():
            tasks = [task for task in TABLE if file.with_name(f"demo_{task}.toml").is_file()]
            raise UserError(
                f"--task {self.task}{' --short' * self.short}: there is no such demo."
                f"{nearest(self.task, tasks)} Expected {', '.join([CLASSIFICATION, *tasks])}; "
                f"{CLASSIFICATION} has a short one."
            )
        out = self.out or Path("runs") / file.stem.replace("_", "-")
        recipe = read_recipe(file)
        show(*run_recipe(recipe, out, resume=not self.overwrite, overwrite=self.overwrite))
