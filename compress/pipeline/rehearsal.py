"""What comes at the end is tried before the first epoch: describe, save, load, export.

A network that cannot be written is refused in seconds, not after its training.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from torch import nn

from vcompress.bench.bundle import InputSpec
from vcompress.bench.bundle.atomic import temporary_folder
from vcompress.bench.errors import UserError
from vcompress.export import onnx_export

from .. import quantization
from ..bundles.store import Network, check_reloads, save_network
from ..data.loader import Data, split_of
from ..training.processes import process_state
from .proof import export_checked

log = logging.getLogger(__name__)

IMAGES = 4
WHOLE = 10.0
"""Time of a whole export with its proof, in traces of the network: 3 to 9 for the networks of
torchvision, on a CPU."""
MOST = 0.03
"""Largest share of a training's time that is spent on a whole export."""


@dataclass
class Rehearsal:
    """Tries the end of a stage on a network as it will be. The first process does."""

    source: Network
    """What the stage started from."""
    data: Data
    exported: bool = False

    def __call__(self, network: nn.Module, seconds: float) -> None:
        """Write `network`, load it again and export it.

        Args:
            network: a copy of what is trained, after a pass in training. It is left in evaluation.
            seconds: time of the training that follows, estimated. NaN where it is not known.

        Raises:
            UserError: what would have failed after the training.
        """
        if not process_state().is_main_process:
            return
        try:
            self._try(network.eval(), seconds)
        except UserError as error:
            raise UserError(f"{error} Nothing has been trained yet.") from error

    def _try(self, network: nn.Module, seconds: float) -> None:
        split = split_of(self.data.dataset, "train")
        images = next(iter(self.data.loader(split, IMAGES)))[0]
        written = as_written(self.source, network)
        with temporary_folder() as folder:
            save_network(written, folder)
            check_reloads(written, folder, images)
            if self.exported:  # of a pruning in several steps the first
                return
            started = time.perf_counter()
            quantised = quantization.is_quantized(network)
            exportable = quantization.to_export(network) if quantised else network
            onnx_export.check_traces(exportable, InputSpec.of(self.data.preprocess).shape)
            if WHOLE * (time.perf_counter() - started) <= MOST * seconds:
                log.info("trying the export before the training")
                data = self.data
                export_checked(
                    written, folder / "model.onnx", images, labels=data.classes,
                    preprocess=data.preprocess, task=data.dataset.task,
                )  # fmt: skip
            self.exported = True


def as_written(source: Network, model: nn.Module) -> Network:
    """`model`, which came from `source`, as it is written: quantisers hide what was pruned before
    them; in the float network, which they leave as it was, it can still be seen."""
    changes = source.noted() if quantization.is_quantized(model) else None
    return Network(model, source.spec, changes)
