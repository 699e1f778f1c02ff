"""The ONNX checker and strict shape inference, which are C++ and can crash on a hostile file.

Run as a program it checks one file in a process of its own, with bounded time and memory.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx

MARK = "onnx-checker: "


def refusal(path: Path) -> str | None:
    """What the checker and strict shape inference say against a file; None where nothing."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # their exceptions have no common base
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kept = [line for line in lines if not line.startswith("==>")]
        return " ".join(dict.fromkeys(kept))[:600] or type(error).__name__
    return None


def refusal_apart(path: Path, timeout_s: float) -> tuple[str | None, bool]:
    """As `refusal`, in a process of its own; also whether that process ended without an answer."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path)],
            capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s", True
    answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode != 0 or not answers:
        return f"its process ended with status {done.returncode}", True
    return answers[-1].removeprefix(MARK) or None, False


def _limit_memory(path: Path) -> None:
    """Room for the file several times over, and no more, where the system can limit it."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    most = 8 * 1024**3 + 8 * path.stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )


if __name__ == "__main__":
    _limit_memory(Path(sys.argv[1]))
    sys.stdout.write(MARK + (refusal(Path(sys.argv[1])) or "") + "\n")
