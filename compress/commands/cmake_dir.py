"""`vcompress cmake-dir`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """Print the folder of the CMake package: cmake -Dvcompress_DIR="$(vcompress cmake-dir)"."""

    example: bool = False
    """Print the folder of the example application instead."""

    def run(self) -> None:
        from vcompress.export import edge

        print(edge.example_dir() if self.example else edge.cmake_dir())
