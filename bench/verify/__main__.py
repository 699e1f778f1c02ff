"""`python -m vcompress.bench.verify`, on a device that has only this package."""

import sys

from .check import main

if __name__ == "__main__":
    sys.exit(main())
