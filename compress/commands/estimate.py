"""`vcompress estimate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vcompress.bench.ranges import at_least, check_ranges, share

from ..options import TargetName


@dataclass(frozen=True, kw_only=True)
class Command:
    """Tell what a network would cost, before anything is trained.

    It is built with random weights, pruned and quantised untrained, and timed on this machine.
    """

    student: str
    """Network: an alias, a torchvision name, timm:NAME, hf:NAME or module:factory."""
    macs: Annotated[float, share(zero=False)] = 1.0
    """Share of the multiply-accumulates that pruning leaves, above 0, at most 1."""
    precision: Literal["fp32", "int8"] = "fp32"
    """Number format of the file."""
    target: TargetName = "onnxruntime"
    """Runtime that it ships in; its latency is measured there."""
    task: str | None = None
    """Task of the network. Default: classification."""
    classes: Annotated[int, at_least(1)] = 1000
    """Number of outputs, 1 or more."""
    image_size: Annotated[int, at_least(1)] = 224
    """Side of the square input, pixels."""
    channels: Annotated[int, at_least(1)] = 3
    """Number of channels of the input."""
    budget: tuple[str, ...] = ()
    """Limits of the cost, such as latency_ms<=4, size_mb<=3, macs<=2e6. The exit status is 1 where
    one is not kept."""
    threads: Annotated[int, at_least(1)] = 1
    """Number of threads that the latency is measured with."""
    cache: Path | None = None
    """File of the costs that were measured. Default: costs.sqlite in the user's cache folder."""
    json: Path | None = None
    """File of the result as JSON."""

    def run(self) -> None:
        check_ranges(self)
        import json
        from dataclasses import asdict

        from vcompress.bench.bundle.output import check_output, write_text
        from vcompress.bench.gates.limits import parse
        from vcompress.bench.tasks import CLASSIFICATION, load

        from ..reporting.terminal import print_cost
        from ..search.candidate import Candidate
        from ..search.cost import BeyondBudget, default_store, estimate

        if self.json is not None:
            check_output(self.json)
        candidate = Candidate(
            model=self.student, classes=self.classes, size=(self.image_size, self.image_size),
            channels=self.channels, macs=self.macs, precision=self.precision, target=self.target,
            maps=load(self.task or CLASSIFICATION).maps,
        )  # fmt: skip
        budgets = [parse(text) for text in self.budget]
        found, verdicts = estimate(candidate, budgets, self.threads, self.cache or default_store())
        print_cost(candidate.model, found, verdicts)
        if self.json is not None:
            result = {"candidate": asdict(candidate), "cost": asdict(found), "budgets": verdicts}
            write_text(self.json, json.dumps(result, indent=1))
        kept = all(said == "keeps" for said in verdicts.values())
        if not kept:
            missed = [f"{text}: {said}" for text, said in verdicts.items() if said != "keeps"]
            raise BeyondBudget(f"{candidate.model}: not within the budget: {'; '.join(missed)}.")
