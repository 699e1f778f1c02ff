"""The processes of a training; accelerate is told here what it cannot find out."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """Which of how many processes this is.

    Without a GPU accelerate takes every process of torchrun for a lone one, unless the first
    call says `cpu`: each would train alone and write the same bundle.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available())
