"""`vcompress demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ._show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run all stages on scikit-learn's digits: R50, distilled, pruned, quantised, measured.

    A demo that was interrupted goes on where it stopped.
    """

    out: Path = Path("runs/demo")
    """Folder of the bundles and the report."""
    short: bool = False
    """Run a smaller demo of about a minute."""
    overwrite: bool = False
    """Start again instead of going on where the demo stopped."""

    def run(self) -> None:
        from ..pipeline.recipe import read_recipe, run_recipe

        name = "demo_short.toml" if self.short else "demo.toml"
        recipe = read_recipe(Path(__file__).parent.with_name(name))
        out = self.out.with_name(self.out.name + "-short") if self.short else self.out
        show(*run_recipe(recipe, out, resume=not self.overwrite, overwrite=self.overwrite))
