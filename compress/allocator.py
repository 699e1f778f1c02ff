"""How the C library keeps the memory of large tensors between uses."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_LARGEST = 2**31 - 1
_KEPT = 512 * 2**20


def keep_large_blocks() -> None:
    """Let glibc keep freed blocks of any size for the next tensor, up to 512 MiB of them at the end
    of the heap.

    Else each activation of some megabytes is mapped anew, page by page, and unmapped: that took
    half of the processor time of a calibration. Nothing happens under other C libraries, or where
    the user has set MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ or GLIBC_TUNABLES.
    `tests/benchmarks/allocator.py` measures it.
    """
    chosen = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    if not sys.platform.startswith("linux") or any(name in os.environ for name in chosen):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
