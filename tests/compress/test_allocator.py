"""Blocks of large tensors are kept, where the C library can and the user has not chosen."""

import ctypes
import os
import subprocess
import sys

import pytest

from vcompress.compress import allocator

CODE = """
import ctypes, resource
from vcompress.compress.allocator import keep_large_blocks
keep_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(ctypes.c_void_p(block))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""
PAGES = (64 << 20) // 4096


def faults(**environment: str) -> int:
    """Pages that 20 blocks of 64 MiB, one after the other, make the kernel hand out."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True,
        env={**clean, **environment},
    )  # fmt: skip
    return int(run.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc")
def test_a_large_block_is_handed_out_once() -> None:
    assert faults() < 2 * PAGES
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > 10 * PAGES  # the user's choice stands


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(name: object) -> None:
        raise AssertionError("the C library was touched")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", never)
    allocator.keep_large_blocks()
