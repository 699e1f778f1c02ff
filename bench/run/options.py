"""The options of one call of vbench, free of heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command's flags; the same names without the dashes."""

    models: tuple[Path, ...]
    runtime: str | None = None
    device: str | None = None
    threads: int | None = None
    batch: tuple[int, ...] = ()
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
    split: str = "test"
    limit: int | None = None
    preprocess: str | None = None
    accuracy: bool = True
    seconds: float | None = None
    publish: int = 0
    concurrency: int = 0
    rate: float = 0.0
    profile: bool = False
    cold_start: bool = True
    load_timeout: float = 120.0
    seed: int = 0
    margin: float = 0.01
    baseline: Path | None = None
    gate: Path | None = None
    require: tuple[str, ...] = ()
    json: Path | None = None
    html: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    restate: str | None = None
    command: tuple[str, ...] = ()

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
