"""Files of a device build: a CMake package, headers, and an example application in C++."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent


def cmake_dir() -> Path:
    """The folder for `-Dvcompress_DIR=`."""
    return HERE / "cmake"


def example_dir() -> Path:
    """The folder of the example application."""
    return HERE / "example"
