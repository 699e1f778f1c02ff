"""The process of `apart.py`: `python -m vcompress.bench.run.worker`."""

from __future__ import annotations

import signal
import sys
import traceback
from typing import Any

from ..apart import say, serve
from ..errors import UserError
from ..timing import selftest
from . import job
from .wire import pack, unpack


def _work(request: dict[str, Any]) -> dict[str, Any]:
    # The keys reach all processes of a terminal; the one that asked ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options = unpack(request["options"])
    # Behind the places of the installed packages: no module of theirs is replaced.
    sys.path += [place for place in request["sys_path"] if place not in sys.path]

    def tell(text: str) -> None:
        say(stage=text)

    try:
        if request["work"] == "job":
            return {"result": pack(job.run(options, tell))}
        model = options.models[1] if len(options.models) == 2 else None
        return {"result": pack(selftest.run(model, options.threads or 1, tell=tell))}
    except UserError:
        raise
    except OSError as error:  # whichever file the user named: it is gone, unreadable, no file
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}. Look at the path.") from None
    except MemoryError:
        raise UserError(
            f"{request['path']}: there is not enough memory for this. Give a smaller --batch or "
            "--shape, or fewer images with --limit."
        ) from None
    except Exception:  # a fault of ours: it keeps its traceback
        traceback.print_exc()
        raise


if __name__ == "__main__":
    sys.exit(serve(_work))
