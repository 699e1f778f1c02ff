"""`python -m vcompress.compress`, the form that `accelerate launch` and torchrun start."""

import sys

from .cli import main

sys.exit(main())
