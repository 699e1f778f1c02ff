"""`vcompress`: one command for each stage, and those around them.

Only the standard library and tyro are imported before a command has been chosen.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from vcompress.bench.apart import supervised
from vcompress.bench.errors import UserError, nearest, reader_gone
from vcompress.bench.text import shown

from . import commands as around
from . import stages
from .allocator import keep_large_blocks
from .commands._show import show
from .options import Options
from .stages.contract import Kind, Role, Stage

PROG = "vcompress"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATH_ERRORS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR)

_APART = ("predict", "robustness", "export")
"""Commands that run the file of a bundle, which may be from elsewhere."""
_PATIENCE_S = 120.0

_NAMES = (
    "Network: an alias (r18, mnv2, vitb16, ...), a torchvision name, timm:NAME, hf:NAME, "
    "module:factory, or a bundle"
)
_KIND_HELP = {
    Kind.FRESH: f"{_NAMES}. A name starts with random weights, or with --weights.",
    Kind.TRAINED: f"{_NAMES}. A name alone is fine-tuned first.",
    Kind.OPTIONAL: f"{_NAMES}. A name alone is fine-tuned first; none: the unchanged network.",
    Kind.SEVERAL: f"{_NAMES}; one or more. A name alone is fine-tuned first.",
}


def commands() -> dict[str, type[Any]]:
    """Name to a dataclass of its flags with a method `run`."""
    found = {name: _stage_command(stages.load(name)) for name in stages.names()}
    return dict(sorted((found | around.load_all()).items()))


def _stage_command(stage: Stage[Any]) -> type[Any]:
    """The flags of a stage: its networks, where to write, its own `Config`, and `Options`."""
    flat = tyro.conf.OmitArgPrefixes
    out = Annotated[Path | None, tyro.conf.arg(help="Folder of the bundle. Default: under runs/.")]
    fields: list[Any] = [
        *(_role_flag(role) for role in stage.roles),
        ("out", out, dataclasses.field(default=None)),
        (stage.name, flat[stage.Config]),
        ("common", flat[Options]),
    ]

    def run(self: Any) -> None:
        from .pipeline.run import run_stage

        given: dict[str, str] = {}
        for role in stage.roles:
            value = getattr(self, role.name)
            if role.kind is Kind.SEVERAL:
                given |= role.numbered(value)
            elif value is not None:
                given[role.name] = value
        show(run_stage(stage, getattr(self, stage.name), given, self.out, self.common))

    command = dataclasses.make_dataclass(
        f"{stage.name.capitalize()}Command", fields, frozen=True, kw_only=True,
        namespace={"run": run},
    )  # fmt: skip
    command.__doc__ = stage.help
    return command


def _role_flag(role: Role) -> Any:
    """Name, type and default of the flag that names a network."""
    hint = tyro.conf.arg(help=_KIND_HELP[role.kind])
    if role.kind is Kind.OPTIONAL:
        return role.name, Annotated[str | None, hint], dataclasses.field(default=None)
    if role.kind is Kind.SEVERAL:
        return role.name, Annotated[tuple[str, ...], hint], dataclasses.field(default=())
    return role.name, Annotated[str, hint]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vcompress`; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    if argv is None and given and given[0] in _APART and not {"-h", "--help"} & set(given):
        return _supervised(given)
    known = commands()
    if not given or given[0] in ("-h", "--help"):
        print(_overview(known))
        return 0 if given else 2
    name, rest = given[0], given[1:]
    try:
        if name not in known:
            hint = nearest(name, known) or f" Known: {', '.join(known)}."
            raise UserError(f"unknown command {name!r}.{hint}")
        # Only the chosen command's parser is built: all of them would take as long as the imports.
        command = tyro.cli(
            known[name],
            prog=f"{PROG} {name}",
            args=rest,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
        )
        _configure_logging()
        keep_large_blocks()
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:
        return reader_gone()
    except UserError as error:
        return _fail(str(error), error.status)
    except KeyboardInterrupt:
        return _fail("interrupted. Run the same command with --resume to go on.", 130)
    except OSError as error:
        if error.errno not in (*_DISK_FULL, *_PATH_ERRORS):
            raise
        where = f"{error.filename}: " if error.filename else ""
        advice = "make room and retry" if error.errno in _DISK_FULL else "give another path"
        return _fail(f"{where}{error.strerror}. Nothing was half-written; {advice}.", 2)
    return 0


def _supervised(given: Sequence[str]) -> int:
    """Run the command in a process that ends where a call of the model does not."""
    try:
        reply = supervised("vcompress.compress.cli", given, _PATIENCE_S)
    except SystemExit as ended:  # by a signal
        return ended.code if isinstance(ended.code, int) else 1
    if reply.status is not None and reply.status >= 0:
        return reply.status
    return _fail(
        f"{given[0]}: its process {reply.end}. One call of a model may take {_PATIENCE_S:g} s. The "
        "bundle's file is damaged, hostile, or meets a bug of the runtime.",
        UserError.status,
    )


def _overview(known: dict[str, type[Any]]) -> str:
    lines = [
        f"usage: {PROG} COMMAND [OPTIONS]",
        "",
        "Distil, prune and quantise a vision backbone, export it, and prove what that cost on the",
        "runtime that ships.",
        "",
    ]
    for name, kind in known.items():
        lines.append(f"  {name:12} {(kind.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", f"`{PROG} COMMAND --help` lists a command's options."])


def _fail(message: str, status: int) -> int:
    print(shown(f"{PROG}: {message}"), file=sys.stderr)
    return status


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _configure_logging() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    # Of several processes (torchrun, accelerate launch) only the first one speaks.
    main_process = os.environ.get("RANK", "0") == "0"
    logging.getLogger("vcompress").setLevel(logging.INFO if main_process else logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
