"""One question to a fresh process of this package: JSON in, marked lines of JSON out.

A file from elsewhere can crash a library, run without end or take all memory. It does so in the
other process, whose time, CPU time and memory are limited; here that becomes one message.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import EnvironmentLacks, UserError

MARK = "vcompress-says: "
_GROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)
_GROUP_USED = Path("/sys/fs/cgroup/memory.current")
_GROUP_STATISTICS = Path("/sys/fs/cgroup/memory.stat")
_MEMORY = Path("/proc/meminfo")
UNUSED_MEMORY = 2 * 2**30
"""Bytes that a process may map beyond what is free: stacks and buffers that nothing fills."""
# As `python -m`, but for the folder that the user is in, which -m would import from first: a
# numpy.py beside a model from elsewhere must not run. (-P, which does the same, came with 3.11.)
_START = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; import runpy; "
    "runpy.run_module(sys.argv[1], run_name='__main__')"
)

_OBEY = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; from vcompress.bench.apart import obey; "
    "sys.exit(obey())"
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
        ends = {
            "SIGKILL": "was killed (out of memory?)",
            "SIGALRM": "did not come back in time",
            "SIGXCPU": "did not come back within the CPU time that it has",
        }
        return ends.get(name, f"crashed ({name})")

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
    cpu_s = math.ceil(timeout_s * _cpus()) + 5
    try:
        done = subprocess.run(
            [sys.executable, "-c", _START, module],
            input=json.dumps({**request, "parent": os.getpid(), "cpu_s": cpu_s}),
            capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""  # bytes, whatever was asked for
        text = output if isinstance(output, str) else output.decode(errors="replace")
        return Reply(tuple(_marked(text)), None)
    return Reply(tuple(_marked(done.stdout)), done.returncode, done.stderr)


def follow(
    module: str, request: Mapping[str, Any], heard: Callable[[dict[str, Any]], None],
    printed: Callable[[str], None], meanwhile: Callable[[], object] = lambda: None,
) -> Reply:  # fmt: skip
    """As `ask`, for work whose length nobody knows before: `heard` is told what the process says
    while it works, and `printed` the other lines on its standard output. Its standard error is that
    of this process, which does `meanwhile` while the other one starts.

    Its limits hold while `bounded` code runs there.

    Args:
        request: also holds `patience_s`, see `bounded`.
    """
    last: dict[str, Any] = {}
    with subprocess.Popen(
        [sys.executable, "-c", _START, module], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin as stream:
                stream.write(json.dumps({**request, "parent": os.getpid()}))
            meanwhile()
            for line in process.stdout:
                said = next(_marked(line), None)
                if said is not None:
                    last = said
                    heard(said)
                elif line.strip():
                    printed(line)
            process.wait()
        except BaseException:
            _end(process)
            raise
    return Reply((last,) if last else (), process.returncode)


def supervised(module: str, arguments: Sequence[str], patience_s: float) -> Reply:
    """Run `main(arguments)` of a module in a process of its own with this one's input and outputs;
    `bounded` code there may take `patience_s`.

    Memory is not limited, for the command may use a GPU; where it runs out that process ends first.
    """
    command = [sys.executable, "-c", _OBEY, module, str(os.getpid()), str(patience_s), *arguments]
    with ended_by_signals(), subprocess.Popen(command) as process:
        try:
            # The keys of a terminal reach both: that one says what is to be said.
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)
            process.wait()
            signal.signal(signal.SIGINT, before)
        except BaseException:
            _end(process)
            raise
    return Reply((), process.returncode)


def obey() -> int:
    """The other side of `supervised`."""
    module, parent, patience_s, *arguments = sys.argv[1:]
    _end_with(int(parent))
    _limit(memory=False, cpu_s=None)
    _allowed.patience_s = float(patience_s)
    status: int = import_module(module).main(arguments)
    return status


def _end(process: subprocess.Popen[Any]) -> None:
    """End it as a signal ends a command, which removes its temporary folders."""
    process.terminate()
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()


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
    _limit(memory=request.get("device") == "cpu", cpu_s=request.get("cpu_s"))
    _allowed.patience_s = request.get("patience_s")
    try:
        with ended_by_signals():
            say(**work(request))
    except UserError as error:
        say(error=str(error), status=error.status)
    except MemoryError:
        say(error=f"{request['path']} needs more memory than is free on this machine.", status=2)
    except Exception as error:  # a bad file fails in as many ways as there are libraries
        text = " ".join(str(error).split())[:400]
        say(error=f"{request['path']}: {type(error).__name__}: {text}", status=2)
    return 0


def say(**found: Any) -> None:
    """Tell the parent."""
    # What a library prints without a line end must not hide the mark.
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")
    sys.stdout.flush()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as an error does: its temporary folders are removed, and
    the processes that it started are ended."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Allowed:
    """What `bounded` code of this process may take."""

    patience_s: float | None = None
    now_s: float = 0.0
    """Seconds of the code that runs; 0: no limit."""


_allowed = _Allowed()


@contextmanager
def bounded(seconds: float = 0.0) -> Iterator[None]:
    """Run code of a model in a process that `follow` started: the system ends the process where the
    code takes longer than `seconds` and the patience that was asked for. The process itself does
    nothing for that, so the times that it measures are the same. Elsewhere there is no limit."""
    before = _allowed.now_s
    if _allowed.patience_s is None:
        yield
        return
    _allow(seconds + _allowed.patience_s)
    try:
        yield
    finally:
        _allow(before)


def _allow(seconds: float) -> None:
    """End this process after so many seconds, or when it has used their CPU time; 0: never."""
    _allowed.now_s = seconds
    if not hasattr(signal, "setitimer"):  # not on Windows
        return
    import resource

    signal.setitimer(signal.ITIMER_REAL, seconds)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    most = math.ceil(used + seconds * _cpus()) + 5 if seconds else hard
    resource.setrlimit(resource.RLIMIT_CPU, (_least(most, hard), hard))


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_limit() -> int:
    """Bytes of memory that this process may have: the machine's, or less by its control group."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _GROUP_LIMITS:
        with suppress(OSError, ValueError):  # "max" is no number
            found.append(int(path.read_text()))
    return min(found)


def memory_free() -> int:
    """Bytes of memory that nothing uses, in the machine and in the control group; what files in
    the cache take counts as free."""
    found = [memory_limit()]
    with suppress(OSError, ValueError, KeyError):
        found.append(1024 * int(_numbers(_MEMORY)["MemAvailable:"]))
    with suppress(OSError, ValueError, KeyError):
        cached = int(_numbers(_GROUP_STATISTICS)["inactive_file"])
        found.append(memory_limit() - int(_GROUP_USED.read_text()) + cached)
    return min(found)


def _numbers(path: Path) -> dict[str, str]:
    return {words[0]: words[1] for line in path.read_text().splitlines() if (words := line.split())}


def _end_with(parent: int | None) -> None:
    """Linux ends this process with the one that asked: nobody else would end an endless model."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:  # it is gone already
        os._exit(1)


def _limit(*, memory: bool, cpu_s: int | None) -> None:
    """No core files, so much CPU time, and the memory that is free: a model that asks for more
    fails, and nothing else on the machine pays for it. Where the system runs out of memory all the
    same, it ends this process first."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if cpu_s is not None:
        _set_limit(resource.RLIMIT_CPU, cpu_s)
    if memory:
        # Addresses are more than memory: files that are mapped, stacks that nothing fills.
        _set_limit(resource.RLIMIT_AS, memory_limit() + 8 * 2**30)
        _set_limit(resource.RLIMIT_DATA, memory_free() + UNUSED_MEMORY)


def _set_limit(which: int, most: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    resource.setrlimit(which, (_least(most, hard), hard))


def _least(most: int, hard: int) -> int:
    import resource

    return most if hard == resource.RLIM_INFINITY else min(most, hard)
