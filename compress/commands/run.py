"""`vcompress run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ._show import show


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run the stages of a recipe file, then measure the first against the last."""

    recipe: Annotated[Path, tyro.conf.Positional]
    """File of the recipe, TOML."""
    out: Path | None = None
    """Folder of the bundles. Default: what the recipe says, else runs/NAME."""
    resume: bool = False
    """Go on where a run of the same recipe stopped."""
    overwrite: bool = False
    """Replace the bundles of an earlier run."""
    trust: str | None = None
    """Names of your own module:factory, with commas between several, that the recipe and its
    bundles may run."""

    def run(self) -> None:
        from ..pipeline.recipe import read_recipe, run_recipe

        recipe = read_recipe(self.recipe, self.trust)
        show(*run_recipe(recipe, self.out, resume=self.resume, overwrite=self.overwrite))
