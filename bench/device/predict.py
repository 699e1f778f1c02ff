"""Run a bundle on a device: from an image to labels and scores, with the bundle's preprocessing.

    from vcompress.bench import load

    with load("runs/r18-quantize") as model:
        for found in model.predict("cat.jpg"):
            print(found.label, found.score)

It needs no torch and imports only what the first prediction needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from ..bundle import MODEL, Bundle
from ..bundle.atomic import temporary_folder
from ..bundle.bundle import content_of
from ..errors import UserError
from ..tasks import TABLE
from ..tasks import load as load_task

if TYPE_CHECKING:
    import numpy.typing as npt
    from PIL.Image import Image

    from ..data.preprocess import Geometry
    from ..runtimes.session import Session
    from ..tasks.task import Predictions, Task

    Array = npt.NDArray[Any]
    Picture: TypeAlias = str | os.PathLike[str] | Image | Array
    """A path, a Pillow image, or an array `[H, W, 3]`, `[H, W, 4]`, `[H, W, 1]` or `[H, W]` uint8,
    in the order red, green, blue, alpha."""

BATCH = 32
"""Images in one call of the runtime, at most, where the file leaves the batch free."""


@dataclass(frozen=True)
class Model:
    """A bundle that is opened in a runtime. A context manager."""

    bundle: Bundle
    session: Session
    task: Task

    @overload
    def predict(self, image: Picture, top: int = 5, threshold: float = 0.5) -> Predictions: ...
    @overload
    def predict(
        self, image: list[Any] | tuple[Picture, ...], top: int = 5, threshold: float = 0.5
    ) -> list[Predictions]: ...
    def predict(
        self, image: Picture | list[Any] | tuple[Picture, ...], top: int = 5, threshold: float = 0.5
    ) -> Predictions | list[Predictions]:
        """What an image shows; of a list, one entry an image.

        Args:
            top: classes to name, the likeliest first (classification).
            threshold: probability above which a label is named (multilabel).

        Raises:
            UserError: a missing file, one that is no image, an array of another kind, `top` < 1,
                a `threshold` outside 0 to 1.
        """
        if top < 1:
            raise UserError(f"top = {top}: it must be 1 or more.")
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold = {threshold}: a probability from 0 to 1.")
        images = image if isinstance(image, (list, tuple)) else [image]
        found = [
            self.task.predict(row, self.bundle.labels, top, threshold, geometry)
            for rows, geometries in self._numbers(images)
            for row, geometry in zip(rows, geometries, strict=True)
        ]
        return found if isinstance(image, (list, tuple)) else found[0]

    def scores(self, images: Sequence[Picture]) -> Array:
        """Probabilities (or the values of a regression), `[N, K] float32`, in the order of the
        labels; the maps `[N, ...]` of a network that says something of each place."""
        import numpy as np

        parts = [rows for rows, _ in self._numbers(images)]
        empty = np.zeros((0, len(self.bundle.labels)), np.float32)
        return np.concatenate(parts) if parts else empty

    def close(self) -> None:
        """Free the model."""
        self.session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _numbers(self, images: Sequence[Picture]) -> Iterator[tuple[Array, list[Geometry | None]]]:
        """What the task reads of each call's outputs, and how the inputs lie in their images."""
        import numpy as np

        from ..tasks.scoring import call_size, outputs

        size = call_size(self.session, BATCH)
        for start in range(0, len(images), size):
            chosen = [_decode(image) for image in images[start : start + size]]
            prepared = [self.task.prepare(self.bundle.preprocess, image) for image in chosen]
            batch = np.stack([one.values for one in prepared])
            found = outputs(self.session, batch, len(batch))
            rows = self.task.numbers(found, self.bundle.labels, str(self.session.path))
            yield rows, [one.geometry for one in prepared]


def load(
    path: str | os.PathLike[str],
    *,
    runtime: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> Model:
    """Open the bundle at `path`; the file is run only if its hash is the manifest's.

    Args:
        runtime: by default ONNX Runtime. `Bundle.ships_in` names the one that the network was
            quantised for and measured in.
        device: cpu, cuda, ...; never replaced by another. Default: the runtime's own.
        threads: of one call; None leaves the runtime's default.

    Raises:
        UserError: no bundle, a changed file, a task that this version does not know.
        EnvironmentLacks: the runtime or the device is missing.
    """
    bundle = Bundle.open(Path(path))
    if bundle.task not in TABLE:
        raise UserError(
            f"{path}: its task is {bundle.task!r:.80}; predict knows {', '.join(TABLE)}."
        )
    name = runtime or "onnxruntime"
    content = _read_beside_imports(bundle, name)
    from ..runtimes import open_session

    with _whole(bundle, content) as (file, held):
        session = open_session(file, runtime=name, device=device, threads=threads, **held)
    session.path = bundle.path / MODEL
    return Model(bundle, session, load_task(bundle.task))


@contextmanager
def _whole(bundle: Bundle, content: bytes) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What to open: bytes that were hashed, or, where weights lie in files of their own, copies
    that nobody else can change."""
    from .. import onnx_file

    facts = onnx_file.read(bundle.path / MODEL, content)
    if not facts.external:
        yield bundle.path / MODEL, {"content": content}
        return
    with temporary_folder() as folder:
        (folder / MODEL).write_bytes(content)
        for name in {PurePosixPath(item.location).as_posix() for item in facts.external}:
            held = content_of(bundle, name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(held)
        yield folder / MODEL, {}


def _read_beside_imports(bundle: Bundle, runtime: str) -> bytes:
    """The model's bytes, hashed in a thread while numpy, Pillow and the runtime load."""
    checked = _Check(bundle, MODEL)
    interval = sys.getswitchinterval()
    # The thread hands over after each piece of the file; by default it would wait 5 ms each time.
    sys.setswitchinterval(1e-4)
    try:
        checked.start()
        from ..tasks import scoring  # noqa: F401

        load_task(bundle.task)
        from ..runtimes import module, names

        if runtime in names():
            module(runtime).library()
        return checked.result()
    finally:
        sys.setswitchinterval(interval)


class _Check(Thread):
    """`content_of` in a thread: hashing runs beside the imports."""

    def __init__(self, bundle: Bundle, name: str) -> None:
        super().__init__(daemon=True)
        self._bundle, self._name = bundle, name
        self._content: bytes | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._content = content_of(self._bundle, self._name)
        except Exception as error:
            self._error = error

    def result(self) -> bytes:
        self.join()
        if self._error is not None:
            raise self._error
        assert self._content is not None
        return self._content


def _decode(image: Picture) -> Image:
    import numpy as np
    from PIL import Image as pillow
    from PIL import ImageOps

    from ..data.preprocess import read_image

    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, pillow.Image):
        try:
            return ImageOps.exif_transpose(image)
        except Exception as error:  # a lazily opened file is decoded here
            raise UserError(f"the image cannot be decoded ({error}).") from None
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"got {type(image).__name__}; expected a path, a Pillow image or a uint8 array "
            "[height, width, channels]."
        )
    shape = list(image.shape)
    channels = shape[2] if len(shape) == 3 else 1
    if image.dtype != np.uint8 or len(shape) not in (2, 3) or channels not in (1, 3, 4):
        raise UserError(
            f"got an array {shape} {image.dtype}; expected uint8 and [height, width] or [height, "
            "width, 1, 3 or 4 channels]."
        )
    if 0 in shape:
        raise UserError(f"got an array {shape}, which has no pixels.")
    return pillow.fromarray(np.ascontiguousarray(image[..., 0] if shape[2:] == [1] else image))
