"""One question to a fresh process of this package: JSON in, marked lines of JSON out.

A file from elsewhere can crash a library, run without end or take all memory. It does so in the
other process; here that becomes one message.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EnvironmentLacks, UserError

MARK = "vcompress-says: "
_GROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
# As `python -m`, but for the folder that the user is in, which -m would import from first: a
# numpy.py beside a model from elsewhere must not run. (-P, which does the same, came with 3.11.)
_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; "
    "runpy.run_module(sys.argv[1], run_name='__main__')"
)


@dataclass(frozen=True)
class Reply:
    """What the process said, and how it ended."""

    said: tuple[dict[str, Any], ...]
    """Its marked lines, in order."""
    status: int | None
    """Its exit status, negative for a signal; None where it did not end in time."""
    stderr: str = ""

    @property
    def answer(self) -> dict[str, Any]:
        """The last thing that it said; empty where it said nothing."""
        return self.said[-1] if self.said else {}

    @property
    def end(self) -> str:
        """How it ended without an answer, such as `crashed (SIGSEGV)`."""
        if self.status is None or self.status >= 0:
            return f"ended with status {self.status}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        return f"crashed ({name})" if name != "SIGKILL" else "was killed (out of memory?)"

    @property
    def last_words(self) -> str:
        """The last line on its standard error as a sentence; empty where there is none."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        return f" It said: {lines[-1].strip()[:300]}" if lines else ""

    def raise_error(self) -> None:
        """Raise here what was raised there."""
        if "error" in self.answer:
            lacks = self.answer["status"] == EnvironmentLacks.status
            raise (EnvironmentLacks if lacks else UserError)(self.answer["error"])


def ask(module: str, request: Mapping[str, Any], timeout_s: float) -> Reply:
    """Run the module, which answers `request` with `serve`, as a program.

    Args:
        request: `path` names the file that is worked on; `device`, where it is cpu, bounds memory.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, module],
            input=json.dumps({**request, "parent": os.getpid()}),
            capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""  # bytes, whatever was asked for
        text = output if isinstance(output, str) else output.decode(errors="replace")
        return Reply(tuple(_marked(text)), None)
    return Reply(tuple(_marked(done.stdout)), done.returncode, done.stderr)


def _marked(output: str) -> Iterator[dict[str, Any]]:
    for line in output.splitlines():
        if line.startswith(MARK):
            with suppress(ValueError):  # cut off by the end of the process
                yield json.loads(line.removeprefix(MARK))


def serve(work: Callable[[dict[str, Any]], Mapping[str, Any]]) -> int:
    """The other side: answer the one request on standard input. What `work` raises is an answer."""
    request = json.load(sys.stdin)
    _end_with(request.get("parent"))
    # On a GPU the driver maps far more addresses than there is memory.
    _limit(bounded=request.get("device") == "cpu")
    try:
        say(**work(request))
    except UserError as error:
        say(error=str(error), status=error.status)
    except MemoryError:
        say(error=f"{request['path']} needs more memory than this machine has.", status=2)
    except Exception as error:  # a bad file fails in as many ways as there are libraries
        text = " ".join(str(error).split())[:400]
        say(error=f"{request['path']}: {type(error).__name__}: {text}", status=2)
    return 0


def say(**found: Any) -> None:
    """Tell the parent."""
    # What a library prints without a line end must not hide the mark.
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")
    sys.stdout.flush()


def memory_limit() -> int:
    """Bytes of memory that this process may have: the machine's, or less by its control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(int(path.read_text()))
    return min(found)


def _end_with(parent: int | None) -> None:
    """Linux ends this process with the one that asked: nobody else would end an endless model."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:  # it is gone already
        os._exit(1)


def _limit(*, bounded: bool) -> None:
    """No core files; address space that is plenty for a model and stops one that asks for
    terabytes."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if bounded:
        most = memory_limit() + 8 * 2**30
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
