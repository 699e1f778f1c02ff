"""Quantisation: what is trained is what ships.

`prepare` puts quantisers into a network where a target wants them, `calibrate` sets their
ranges, training refines them (learned step sizes), `to_export` gives the network that is
exported. `placement` and `restore` take a prepared network apart into JSON and weights, and
put it together again.
"""

from .calibration import calibrate
from .lower import to_export
from .placement import (
    check_float,
    count_quantised,
    is_quantized,
    placement,
    prepare,
    restore,
    target_of,
)
from .quantizers import ActivationQuantizer, WeightQuantizer, freeze_norms
from .targets import target_names

# `export` lowers what it is given without knowing this room: the quantisers tell it how.
ActivationQuantizer.lower_network = staticmethod(to_export)
WeightQuantizer.lower_network = staticmethod(to_export)

__all__ = [
    "calibrate",
    "check_float",
    "count_quantised",
    "freeze_norms",
    "is_quantized",
    "placement",
    "prepare",
    "restore",
    "target_names",
    "target_of",
    "to_export",
]
