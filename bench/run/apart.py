"""One call of vbench in a process of its own, whose time, CPU time and memory are limited.

A file may load and run in the fresh process that shows a cold start, and take for ever or all
memory in the thousandth run. What it does then it does to that process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..apart import follow
from ..errors import UserError
from ..own_code import is_own_data
from ..runtimes.tensorrt_library import ENGINES
from ..text import shown
from .options import Options

if TYPE_CHECKING:
    from ..reports.result import Result
    from ..timing.selftest import SelfTest

_WORKER = "vcompress.bench.run.worker"


def run(options: Options, tell: Callable[[str], None] = lambda text: None) -> Result:
    """As `job.run`, in a process of its own.

    Raises:
        UserError: as `job.run`; and where the model crashes that process, asks for more memory than
            is free, or one call of it takes longer than `load_timeout`.
    """
    found: Result = _asked("job", options, tell)
    return found


def selftest(options: Options, tell: Callable[[str], None] = lambda text: None) -> SelfTest:
    """As `timing.selftest.run`, in a process of its own; of `options` it takes the second model,
    where there is one, and the threads."""
    found: SelfTest = _asked("selftest", options, tell)
    return found


def _asked(work: str, options: Options, tell: Callable[[str], None]) -> Any:
    from .wire import kinds, pack, unpack

    stage = "starting"

    def heard(said: dict[str, Any]) -> None:
        nonlocal stage
        if "stage" in said:
            stage = said["stage"]
            tell(stage)

    model = " or ".join(map(str, options.models))
    request = {
        "path": model, "work": work, "options": pack(options), "device": _bounded_as(options),
        "patience_s": options.load_timeout, "sys_path": _places(options),
    }  # fmt: skip
    reply = follow(_WORKER, request, heard, _print, meanwhile=kinds)
    reply.raise_error()
    if reply.status != 0 or "result" not in reply.answer:
        raise UserError(
            f"{model}: the process that runs it {reply.end} while {stage}. One call of a model may "
            f"take {options.load_timeout:g} s; --load-timeout gives more. Else the file is "
            "damaged, hostile, or meets a bug of the runtime."
        )
    return unpack(reply.answer["result"])


def _bounded_as(options: Options) -> str:
    """The device that says whether memory is limited: where a GPU may be used it is not."""
    engines = any(path.suffix in ENGINES for path in options.models)
    return options.device or ("cuda" if engines or options.runtime == "tensorrt" else "cpu")


def _places(options: Options) -> list[str]:
    """Where the user's own code may be imported from, where it is asked for."""
    own = options.trust is not None or (options.data is not None and is_own_data(options.data))
    return [place for place in sys.path if place] if own else []


def _print(line: str) -> None:
    """What the user's own code prints in that process."""
    print(shown(line.rstrip("\n")))
