"""The contract of a task's numpy half, which goes to the device.

A task is one file here and one in `compress/tasks/`. Everything between the images of a data set
and the number that a gate looks at goes through it: images and targets are opened and prepared, the
network's outputs are read, scored and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import stats
from ..bundle.history import MetricValue, TestScore
from ..errors import UserError
from ..stats import Interval
from .metrics import Metric, metric

if TYPE_CHECKING:
    from PIL import Image

    from ..bundle import Preprocess
    from ..data.dataset import Dataset
    from ..data.own_targets import Raw
    from ..data.preprocess import Geometry

Array: TypeAlias = NDArray[Any]
Outputs: TypeAlias = Mapping[str, NDArray[Any]]
"""What a network gives for a batch, by the name of the output."""
Maps: TypeAlias = Sequence[tuple[NDArray[np.uint8], NDArray[np.bool_]]]
"""For each image the class of each pixel, `[H * W]`, `IGNORED` where the target has none, and
whether it is the right one."""


@dataclass(frozen=True)
class Part:
    """One class, label or output on its own."""

    name: str
    n: int
    """Images that tell something about it."""
    value: float
    """Value of the task's first metric, or of the like for one part; NaN where `n` is 0."""
    low: float
    high: float
    """95 % interval; NaN where there is none."""
    note: str = ""
    """`17 of 20`."""


@dataclass(frozen=True)
class Score:
    """What a network reached on a set of images."""

    task: str
    n: int
    """Images."""
    values: Mapping[str, Interval]
    """Values by metric, with 95 % intervals; the first one judges the task."""
    parts: tuple[Part, ...]
    evidence: Mapping[str, Array]
    """What a paired comparison needs, a row for each image: `predictions` and `labels`."""
    nonfinite: int = 0
    """Images whose outputs held a NaN or an infinity."""
    source: str = ""
    """Where the images came from."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else stands in the JSON, in the task's own words."""
    images_sha256: str = ""
    """Hash over the pixels of the images, in their order; empty where they were not at hand."""

    @property
    def metric(self) -> Metric:
        """What the task is judged by."""
        return metric(next(iter(self.values)))

    @property
    def value(self) -> float:
        """The value of `metric`."""
        return self.values[self.metric.name].value

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of `metric`."""
        found = self.values[self.metric.name]
        return found.low, found.high

    @property
    def says_one_thing(self) -> bool:
        """Whether every image got the same prediction: the score then says little."""
        said = self.evidence["predictions"]
        return bool((said == said[:1]).all())

    def record(self, runtime: str = "onnxruntime") -> TestScore:
        """What a bundle's history keeps: the first metric with its interval, the others by name."""
        first, *others = self.values
        further = {name: self.values[name] for name in others}
        return TestScore(
            first, self.value, self.interval, self.n,
            {name: MetricValue(x.value, x.low, x.high) for name, x in further.items()},
            self.facts.get("correct"), runtime,
        )  # fmt: skip


@dataclass(frozen=True)
class ScoreChange:
    """From A, the baseline, to B, on the same images."""

    n: int
    metric: str
    difference: float
    """B's metric minus A's."""
    difference_interval: tuple[float, float]
    """95 %, paired."""
    p_value: float | None = None
    """That both are right equally often; None where the task has no such test."""
    only_a: int | None = None
    only_b: int | None = None
    """Images that one of the two alone has right; None where an image is not right or wrong."""
    negative_flips: float | None = None
    """Share of the images, or of the pixels, that A had right and B has wrong."""
    negative_flips_interval: tuple[float, float] | None = None
    agreement: float | None = None
    """Share of the decisions that both take alike, right or wrong."""
    lost: tuple[tuple[str, int, float, float], ...] = ()
    """The parts that lost most: name, images, and in A and in B how many were right (whole
    numbers) or the metric's value."""


@dataclass(frozen=True)
class Agreement:
    """Two sets of outputs of one network on the same images."""

    share: float
    """Share of the decisions that are the same, 0 to 1."""
    beyond: int
    """Decisions that differ though they were clear: noise cannot have turned them."""
    what: str
    """`best class`: what was decided."""


@dataclass(frozen=True)
class Prediction:
    """One name of one image."""

    label: str
    score: float
    """Probability from 0 to 1, or the value of a regression."""
    index: int
    """Number of the network's output, from 0."""


class Predictions(tuple[Prediction, ...]):
    """What one image shows, the likeliest or largest first."""

    mask: NDArray[np.uint8] | None
    """`[H, W]` of the image's own size, the class of each pixel; `IGNORED` where the network did
    not look. None where no pixel has a class of its own."""

    def __new__(
        cls, found: Iterable[Prediction] = (), mask: NDArray[np.uint8] | None = None
    ) -> Predictions:
        made = super().__new__(cls, found)
        made.mask = mask
        return made


@dataclass(frozen=True)
class Prepared:
    """An image as a network takes it, with what the task needs of it later."""

    values: NDArray[np.float32]
    """`[C, H, W] float32`."""
    target: Any = None
    """As the evaluator takes it; None where there is none."""
    geometry: Geometry | None = None
    """How the input lies in the image; None where nothing is located."""


class Evaluator(Protocol):
    """Takes a set of images batch by batch and gives its score; keeps no outputs of whole sets."""

    def update(self, outputs: Outputs, targets: Array) -> None:
        """Add a batch: outputs `[B, ...]` by name, targets `[B, ...]`.

        Raises:
            UserError: outputs or targets that do not fit the task.
        """

    def value(self) -> float:
        """The task's first metric of all batches so far; costs no bootstrap, as `compute` may.

        Raises:
            UserError: there were none.
        """

    def compute(self, source: str = "") -> Score:
        """The score of all batches so far, with intervals.

        Raises:
            UserError: there were none.
        """


class Task(Protocol):
    """The numpy half of a task."""

    @property
    def name(self) -> str:
        """The name of its file, also in a bundle's manifest."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The first one decides: best epoch, gates, verdicts."""

    @property
    def decides(self) -> str:
        """What an output decides, as a sentence names it: best class, labels; empty for nothing."""

    @property
    def maps(self) -> bool:
        """Whether the outputs are maps `[B, K, h, w]`, and the targets masks `[B, H, W]`."""

    @property
    def answers(self) -> tuple[str, ...]:
        """What an exported file can make of its outputs: softmax, top_k, sigmoid."""

    def open(self, source: str, root: str | None, seed: int, download: bool) -> Dataset:
        """The images and targets of `source`, with splits that the seed fixes; what a library could
        fetch is fetched where `download` allows it.

        Raises:
            UserError: no such source, or one that does not fit the task.
        """

    def read_targets(
        self, raw: Raw, names: tuple[str, ...] | None, source: str
    ) -> tuple[tuple[str, ...], Array]:
        """Targets as a user's code gives them: the names, and a row for each target.

        Args:
            raw: by split, with lists for arrays and sets.
            names: of the classes, labels or numbers; None takes those of the first split.
            source: stands in messages.

        Raises:
            UserError: targets that do not fit the task.
        """

    def prepare(self, preprocess: Preprocess, image: Image.Image, target: Any = None) -> Prepared:
        """An image, and with it what belongs to it, as the network takes them."""

    def evaluator(self, names: Sequence[str] | None, model: str = "the model") -> Evaluator:
        """A fresh evaluator. `names` of classes, labels or outputs; `model` stands in messages."""

    def compare(self, a: Score, b: Score) -> ScoreChange:
        """What B lost and gained against A.

        Raises:
            UserError: scores of different images.
        """

    def decisions(self, outputs: Array) -> Array | None:
        """What one output `[B, ...]` decides, as whole numbers; None where nothing is decided."""

    def agreement(self, reference: Array, other: Array, limit_db: float) -> Agreement | None:
        """Whether two arrays of one output `[B, ...]` decide alike; None where nothing is decided.

        Args:
            limit_db: least signal-to-error ratio that the two must have; a margin which noise of
                that size does not explain counts as clear.
        """

    def masks(self, score: Score) -> Maps | None:
        """What a network found in the pixels of each scored image; None without `maps`."""

    def describe(self, target: Any, names: Sequence[str]) -> str:
        """A target of the data set in words: `cat`, `cat, dog`, `height 1.8`."""

    def numbers(self, outputs: Outputs, names: Sequence[str], model: str) -> Array:
        """What a user reads for each name, `[B, K] float32`: a probability or a value; what the
        network gives in each place, `[B, ...]`, where places have values of their own.

        Raises:
            UserError: outputs of another kind, or not finite.
        """

    def predict(
        self, numbers: Array, names: Sequence[str], top: int, threshold: float,
        geometry: Geometry | None = None,
    ) -> Predictions:  # fmt: skip
        """What an image shows, from its row of `numbers` and what `prepare` says of it."""


def same_images(a: Score, b: Score) -> None:
    """Raise UserError where two scores are of different images, by their targets and pixels."""
    known = a.images_sha256 and b.images_sha256
    if (
        a.n != b.n
        or not np.array_equal(a.evidence["labels"], b.evidence["labels"])
        or (known and a.images_sha256 != b.images_sha256)
    ):
        raise UserError(
            f"The two accuracies are of different images ({a.n} of {a.source or 'unknown source'} "
            f"and {b.n} of {b.source or 'unknown source'}); measure both on the same data."
        )


def right_and_wrong(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    """What `ScoreChange` says of images `[N]` that are right or wrong in two networks."""
    only_a, only_b = int((before & ~after).sum()), int((after & ~before).sum())
    flips = stats.wilson(only_a, len(before))
    return {
        "only_a": only_a, "only_b": only_b, "p_value": stats.mcnemar(only_a, only_b),
        "negative_flips": flips.value, "negative_flips_interval": (flips.low, flips.high),
    }  # fmt: skip


def lost_most(a: Score, b: Score, most: int = 5) -> list[tuple[Part, Part]]:
    """The parts of which less is left in B, the greatest loss first."""
    pairs = [(x, y) for x, y in zip(a.parts, b.parts, strict=True) if x.n and y.n]
    pairs = [(x, y) for x, y in pairs if a.metric.loss(x.value, y.value) > 0]
    pairs.sort(key=lambda pair: -a.metric.loss(pair[0].value, pair[1].value))
    return pairs[:most]


def clear_margin(reference: Array, limit_db: float) -> float:
    """The largest difference of two outputs that an error of `limit_db` explains: three standard
    deviations of the difference of two errors of that size."""
    return float(3 * 2**0.5 * np.sqrt(np.square(reference).mean()) * 10 ** (-limit_db / 20))


def whole_image(preprocess: Preprocess, image: Image.Image, target: Any = None) -> Prepared:
    """`Task.prepare` of a task whose targets stand for the image as a whole."""
    from ..data.preprocess import apply

    return Prepared(apply(preprocess, image), target)


class WholeImages:
    """What the tasks share whose targets stand for an image as a whole."""

    maps = False
    prepare = staticmethod(whole_image)

    def masks(self, score: Score) -> None:
        """None: no pixel has a class of its own."""


def no_images() -> UserError:
    """What an evaluator says that was given nothing."""
    return UserError("There are no images to measure the accuracy on. Look at --data.")
