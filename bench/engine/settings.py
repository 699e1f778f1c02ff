"""Settings of a build. They go to the builder's process and into the bundle as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from ..errors import UserError
from ..ranges import above, at_least, between, check_ranges

Flavour = Literal["tensorrt", "tensorrt-rtx"]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The least, the usual and the largest shape of an input."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to build an engine. Its precision is that of the ONNX graph; there is no flag for it."""

    flavour: Flavour | None = None
    """None takes the classic TensorRT where it is installed, else TensorRT-RTX."""
    sm: tuple[int, ...] = ()
    """Compute capabilities of the GPUs, such as 86 and 89 (TensorRT-RTX). None given is the GPU of
    this machine."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """Least, usual and largest batch; the engine is tuned for the usual one."""
    hw: tuple[int, int] | None = None
    """Height and width, where the file leaves them open."""
    shapes: dict[str, Shapes] = field(default_factory=dict)
    """Least, usual and largest shape of inputs that are not images."""
    workspace_mib: Annotated[int | None, at_least(1)] = None
    """Most scratch memory of the GPU; None leaves it to TensorRT."""
    optimisation_level: Annotated[int | None, between(0, 5)] = None
    """0 builds fast, 5 searches longest; None is TensorRT's own, 3."""
    timeout_s: Annotated[float, above(0)] = 900.0
    """After so long the build is given up."""

    def __post_init__(self) -> None:
        check_ranges(self)
        low, usual, high = self.batch
        if not 1 <= low <= usual <= high:
            raise UserError(
                f"batch {low}:{usual}:{high}: expected the least, the usual and the largest batch "
                "in this order, each 1 or more, such as 1:8:32."
            )
        if self.hw is not None and min(self.hw) < 1:
            raise UserError(f"hw {self.hw}: height and width must be 1 or more.")
        for name, shapes in self.shapes.items():
            if len({len(s) for s in shapes}) != 1 or not all(
                1 <= a <= b <= c for a, b, c in zip(*shapes, strict=False)
            ):
                raise UserError(
                    f"shapes of {name}: {shapes}. Expected the least, the usual and the largest, "
                    "of one rank and in this order."
                )
        for number in self.sm:
            if not 10 <= number <= 999:
                raise UserError(
                    f"sm {number}: expected a compute capability without its dot, such as 89."
                )

    def to_json(self) -> dict[str, Any]:
        """JSON's own types. What changes the engine; the time limit does not."""
        found = asdict(self)
        del found["timeout_s"]
        found["sm"], found["batch"] = list(self.sm), list(self.batch)
        found["hw"] = None if self.hw is None else list(self.hw)
        found["shapes"] = {k: [list(s) for s in v] for k, v in self.shapes.items()}
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """What `to_json` gave, with the usual time limit.

        Raises:
            UserError: it is something else.
        """
        from ..config import from_mapping

        try:
            shapes = {
                name: tuple(tuple(shape) for shape in three)
                for name, three in data.get("shapes", {}).items()
            }
        except (AttributeError, TypeError):
            raise UserError(
                f"engine settings: shapes = {str(data['shapes'])[:80]}, expected three shapes for "
                "each input."
            ) from None
        return from_mapping(cls, {**data, "shapes": shapes}, "engine settings")


def parse_batch(text: str) -> tuple[int, int, int]:
    """`1:8:32`, the least, the usual and the largest batch; `8` is that one alone.

    Raises:
        UserError: something else.
    """
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise UserError(
            f"--batch {text}: expected the least, the usual and the largest batch in this order, "
            "such as 1:8:32, or one number."
        )
    return numbers[0], numbers[1], numbers[2]


def parse_hw(text: str) -> tuple[int, int]:
    """`224` or `320x256`, height and width.

    Raises:
        UserError: something else.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--hw {text}: expected a side such as 224, or height x width: 320x256.")
    return int(parts[0]), int(parts[-1])


def parse_sm(text: str) -> tuple[int, ...]:
    """`86,89`, compute capabilities; 8.6 is taken too.

    Raises:
        UserError: something else.
    """
    found = []
    for part in filter(None, (p.strip().lower().removeprefix("sm") for p in text.split(","))):
        number = part.replace(".", "")
        if not number.isdecimal() or not 10 <= int(number) <= 999:
            raise UserError(f"--sm {text}: expected compute capabilities such as 75,86,89,120.")
        found.append(int(number))
    return tuple(dict.fromkeys(found))
