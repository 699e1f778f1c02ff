"""vbench for CMake: as a file, so that Python looks for modules here and not where CMake runs."""

import sys

from vcompress.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
