"""Whether int8 products of a file saturate on this machine: x86 without VNNI.

ONNX Runtime multiplies uint8 activations by int8 weights. Without VNNI the instruction for that
(`vpmaddubsw`) adds two products in 16 bits and clips: 2 * 255 * 127 does not fit, 2 * 255 * 63
does. The same file is then less accurate on such a machine than where it was made, and nothing says
so.
"""

from __future__ import annotations

import platform
from pathlib import Path

from ..onnx_file import OnnxFacts, read

FITS = 64
"""Weights up to here do not saturate: 2 * 255 * 64 < 2**15."""
_EXACT = frozenset({"avx512_vnni", "avx512vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"})


def saturates(machine: str | None = None, cpuinfo: str | None = None) -> bool:
    """Whether this processor (or the one that is described) clips sums of int8 products.

    Args:
        machine: such as x86_64; ARM never clips.
        cpuinfo: the text of /proc/cpuinfo. Without one (not Linux) nothing is claimed.
    """
    if (machine or platform.machine()).lower() not in ("x86_64", "amd64", "i686"):
        return False
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(errors="replace")
        except OSError:
            return False
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return not _EXACT & set(value.split())
    return False


def is_exposed(facts: OnnxFacts) -> bool:
    """Whether a file multiplies uint8 activations by int8 weights of 8 bits."""
    rounds = any(o.startswith(("QuantizeLinear", "QLinear")) for o in facts.operators)
    return rounds and "uint8" in facts.weight_bytes and facts.int8_reach > FITS


def note(path: str | Path, facts: OnnxFacts | None = None) -> str | None:
    """What to tell the user about an ONNX file on this machine; None where all is well.

    `facts` is what the file holds, where that was read already.
    """
    if not saturates() or not is_exposed(facts or read(path)):
        return None
    return (
        f"{Path(path).name}: this x86 processor has no VNNI, so sums of 8-bit products saturate "
        "and the file is less accurate here than where VNNI is. Quantise with --weight-bits 7 for "
        "such machines."
    )
