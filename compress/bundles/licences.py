"""The licences of data and weights: from an option, from a bundle, or unknown.

Each stage's entry in the history keeps its own, so the licence of a teacher or of the data of an
earlier stage is not lost. They are texts, SPDX identifiers where possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vcompress.bench.bundle import Bundle
from vcompress.bench.bundle.history import Licences

if TYPE_CHECKING:
    from vcompress.bench.data.dataset import Dataset

    from ..options import Options

UNKNOWN = Licences().data
# "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
_OF_DATA = {"digits": "CC-BY-4.0"}


def record(
    options: Options, dataset: Dataset | None, changed: Bundle | None = None,
    opened: Sequence[Bundle] = (),
) -> Licences:  # fmt: skip
    """What the history entry of a stage keeps.

    Args:
        dataset: what the stage trains or measures on.
        changed: the bundle whose weights the stage changes; None where it starts from a name.
        opened: all bundles that take part; one that was made with the same images knows their
            licence.
    """
    same = [
        recorded(bundle).data
        for bundle in opened
        if dataset is not None and (bundle.data or {}).get("fingerprint") == dataset.fingerprint
    ]
    known = _OF_DATA.get(dataset.source, UNKNOWN) if dataset is not None else UNKNOWN
    inherited = next((licence for licence in same if licence != UNKNOWN), known)
    weights = recorded(changed).weights if changed is not None else UNKNOWN
    return Licences(options.data_licence or inherited, options.weights_licence or weights)


def recorded(bundle: Bundle) -> Licences:
    """The licences of the bundle's last stage; unknown where nothing is recorded."""
    last = bundle.history[-1].licences if bundle.history else None
    return last or Licences()
