"""`python -P -m vcompress.bench.verify`, where `vcompress-verify` is not on the path."""

import sys

from .check import main

if __name__ == "__main__":
    sys.exit(main())
