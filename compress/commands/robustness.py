"""`vcompress robustness`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Command:
    """Measure the accuracy of bundles under an attack and under common corruptions.

    The numbers are also written into each bundle and its report.
    """

    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE...")]
    """Folders of the bundles, such as a teacher and its student."""
    images: int = 256
    """Number of test images, spread over the split, 1 or more."""
    epsilon: float = 0.03
    """Largest change of a pixel by the attack, on a scale of 0 to 1; above 0, at most 1."""
    attack_steps: int = 10
    """Number of PGD steps, 1 or more."""
    json: Path | None = None
    """File for the numbers as JSON."""
    trust: str | None = None
    """Name of your own module:factory that a bundle may run when it is loaded."""

    def run(self) -> None:
        from vcompress.bench.bundle.history import to_json
        from vcompress.bench.bundle.output import check_outputs, write_text
        from vcompress.bench.errors import UserError

        from ..delivery.robustness import measure_bundles
        from ..reporting.terminal import print_robustness
        from ..robustness.measure import Attack

        if not self.bundles:
            raise UserError("no bundle given. Expected: vcompress robustness BUNDLE...")
        if self.images < 1 or self.attack_steps < 1 or not 0 < self.epsilon <= 1:
            raise UserError(
                f"images = {self.images}, attack_steps = {self.attack_steps}, epsilon = "
                f"{self.epsilon}: expected at least one image and step, and an epsilon above 0, "
                f"at most 1."
            )
        check_outputs([self.json], self.bundles)
        attack = Attack(self.epsilon, self.attack_steps)
        found = dict(measure_bundles(self.bundles, self.images, attack, self.trust))
        print_robustness(found)
        if self.json is not None:
            text = json.dumps({str(path): to_json(each) for path, each in found.items()}, indent=1)
            write_text(self.json, text + "\n", self.bundles)
