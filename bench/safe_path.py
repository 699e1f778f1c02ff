"""`python -m vcompress...` without the modules that lie in the working folder.

Python puts the folder that the user is in before its own library there, so a `hashlib.py` beside a
model from elsewhere would run. This module is the first that the package imports, and imports
nothing itself. It cannot undo what Python imported before it: `vcompress-verify` and the other
commands, or `python -P -m`, do not look into the folder at all.
"""

import sys


def leave_working_folder() -> None:
    """Drop the working folder from the places of modules, where `python -m vcompress...` put it.

    Raises:
        SystemExit: a module that Python loads at its start came from there.
    """
    options = sys.orig_argv[1:-1]
    ours = any(
        option == "-m" and sys.orig_argv[place + 2].startswith("vcompress.")
        for place, option in enumerate(options)
    )
    if not ours or getattr(sys.flags, "safe_path", False) or not sys.path:
        return
    here = sys.path.pop(0)
    for name, module in list(sys.modules.items()):
        folder, _, file = (getattr(module, "__file__", None) or "").rpartition("/")
        if file.startswith("__init__."):
            folder = folder.rpartition("/")[0]
        if folder == here and name != "__main__":
            raise SystemExit(
                f"{folder}/{file}: was imported in the place of Python's own {name}, because it "
                f"lies in the working folder. Go to another folder, or use the commands vbench, "
                f"vcompress and vcompress-verify."
            )
