"""Which line of a user's code an error comes from."""

from __future__ import annotations

_NOT_THEIRS = ("torch", "torch_pruning", "vcompress")
"""Packages that call a user's code."""


def culprit(error: BaseException) -> str:
    """File, line and function, as a part of a sentence: the innermost that is neither torch's nor
    ours. "in its forward pass" where there is none."""
    place = "in its forward pass"
    traceback = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _NOT_THEIRS and not code.co_filename.startswith("<"):
            place = f"at {code.co_filename}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next
    return place
