"""The commands around the stages, one a file: a frozen dataclass `Command` with a method `run`.

A new file here is a new command: its fields are the flags, the first line of the class's docstring
stands in the overview. Nothing heavy is imported before `run`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import Any


def load_all() -> dict[str, type[Any]]:
    """Name of the command to its dataclass. `import_.py`, a word of Python's, is `import`."""
    files = [m.name for m in iter_modules(__path__) if not m.name.startswith("_")]
    return {
        name.strip("_").replace("_", "-"): import_module(f"{__name__}.{name}").Command
        for name in files
    }
