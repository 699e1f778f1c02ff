"""`Session`: an opened model, the same for every runtime; it says which provider really runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output. A dimension is a number, or a name where it is free."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    """NumPy's name: float32, float16, int64, uint8, bool; str; or bfloat16, int4, ..., which NumPy
    does not have and `timing.inputs` says how to hold."""
    ranked: bool = True
    """False where the model does not say how many dimensions there are; `shape` is empty then."""
    sequence: bool = False
    """A list of arrays. One array stands for it, whose first axis numbers the elements."""

    @property
    def free(self) -> tuple[str, ...]:
        return tuple(str(size) for size in self.shape if not isinstance(size, int))

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.shape)) if self.ranked else "any shape"
        return f"{self.name} [{sizes}] {'sequence of ' if self.sequence else ''}{self.dtype}"

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether an array of this shape can be given."""
        return not self.ranked or (
            len(shape) == len(self.shape)
            and all(
                w == g or not isinstance(w, int) for w, g in zip(self.shape, shape, strict=True)
            )
        )

    def images_in_call(self, batch: int) -> int:
        """Images in one call: what the model fixes, else `batch`."""
        first = self.shape[0] if self.shape else batch
        return first if isinstance(first, int) else batch

    @property
    def channels_last(self) -> bool:
        """Whether it takes images `[B, H, W, C]`, as TensorFlow's networks do."""
        colours = (1, 3)
        return len(self.shape) == 4 and self.shape[3] in colours and self.shape[1] not in colours

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images it takes; None where they are free."""
        sides = self.shape[1:3] if self.channels_last else self.shape[2:4]
        match sides:
            case (int(height), int(width)) if len(self.shape) == 4:
                return height, width
        return None

    def of_images(self, images: NDArray[Any]) -> NDArray[Any]:
        """Images `[B, C, H, W] float32` as this input takes them: in its layout and its type."""
        import numpy as np

        values = images.transpose(0, 2, 3, 1) if self.channels_last else images
        if self.dtype == "uint8":
            values = np.rint(values).clip(0, 255)
        return np.ascontiguousarray(values, dtype=self.dtype)


@dataclass(frozen=True)
class Node:
    """One layer of a profile: the time it took in one run of the model, on average."""

    name: str
    operator: str
    provider: str
    time_us: float
    share: float


@dataclass(frozen=True)
class Facts:
    """What runs, read back from the runtime and not from what was asked."""

    runtime: str
    version: str
    device: str
    """Asked for: cpu, cuda, tensorrt."""
    provider: str
    """Really in use, such as CPUExecutionProvider."""
    options: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    fallback: tuple[str, ...] = ()
    """Nodes that another provider than the asked one takes; empty where none does."""
    includes: str = "host arrays in, host arrays out"
    """What one timed call covers."""


class Session(ABC):
    """An opened model. A context manager."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    facts: Facts
    thread_safe: bool = True
    """Whether several threads may run it at once."""
    load_ms: float = 0.0
    """From the path to a model ready to run."""

    @property
    def provider(self) -> str:
        """What really runs the model."""
        return self.facts.provider

    @abstractmethod
    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """A call that runs the model once on these arrays and returns when it is done.

        The arrays are checked here, so that the timed call does nothing but run.
        """

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name. Raises `UserError` for a shape or type that does not fit."""

    def device_times_ns(self) -> NDArray[np.int64] | None:
        """Device time of each timed call since the last one, or None without device events."""
        return None

    def profile(self, inputs: Mapping[str, NDArray[Any]], runs: int = 20) -> tuple[Node, ...]:
        """Time by node, the costliest first."""
        from ..errors import EnvironmentLacks

        raise EnvironmentLacks(f"{self.facts.runtime} gives no time by node here.")

    def close(self) -> None:
        """Free the model."""
        return None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
