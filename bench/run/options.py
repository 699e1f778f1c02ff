"""The options of one call of vbench, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ..ranges import Range, at_least, between, check_ranges

_DAY = 86_400.0
_SECONDS = Range(0, _DAY, open_below=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command's flags; the same names without the dashes."""

    models: tuple[Path, ...]
    runtime: str | None = None
    device: str | None = None
    threads: Annotated[int | None, between(1, 4096)] = None
    batch: Annotated[tuple[int, ...], between(1, 2**20)] = ()
    """Empty: the batch that the model or the shapes fix, else 1."""
    shape: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Path | None = None
    io_binding: bool = False
    cuda_graph: bool = False
    rebuild: bool = False
    compile: bool = False
    optimize: bool = True
    data: str | None = None
    data_root: str | None = None
    trust: str | None = None
    task: str | None = None
    classes: Path | None = None
    split: str | None = None
    """None: test; all images where nobody has divided them."""
    limit: Annotated[int | None, at_least(1)] = None
    preprocess: str | None = None
    accuracy: bool = True
    seconds: Annotated[float | None, _SECONDS] = None
    publish: Annotated[int, between(0, 1000)] = 0
    concurrency: Annotated[int, between(0, 4096)] = 0
    rate: Annotated[float, between(0, 1e6)] = 0.0
    profile: bool = False
    cold_start: bool = True
    load_timeout: Annotated[float, _SECONDS] = 120.0
    seed: Annotated[int, between(0, 2**63 - 1)] = 0
    margin: Annotated[float, between(0, 1)] = 0.01
    baseline: Path | None = None
    gate: Path | None = None
    require: tuple[str, ...] = ()
    json: Path | None = None
    html: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    restate: str | None = None
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def batches(self) -> tuple[int, ...]:
        """The batch sizes to measure, one at least."""
        return self.batch or (1,)

    def session_options(self, runtime: str) -> dict[str, object]:
        """The options of this runtime; one that another runtime has raises `UserError`."""
        from ..errors import UserError

        asked: dict[str, dict[str, object]] = {
            "onnxruntime": {"io_binding": self.io_binding, "optimize": self.optimize},
            "tensorrt": {"cuda_graph": self.cuda_graph},
            "torch": {"compile": self.compile},
        }
        defaults = {"io_binding": False, "optimize": True, "cuda_graph": False, "compile": False}
        for owner, flags in asked.items():
            for name, value in flags.items():
                if value != defaults[name] and owner != runtime:
                    flag = "no-optimize" if name == "optimize" else name.replace("_", "-")
                    raise UserError(f"--{flag} belongs to {owner}; this model runs in {runtime}.")
        found = dict(asked.get(runtime, {}))
        # The data may be of own code too, so it is no option of torch alone.
        return found | {"trust": self.trust} if runtime == "torch" else found
