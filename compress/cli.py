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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import tyro

from vcompress.bench.errors import UserError, nearest, reader_gone

from . import stages
from .options import Options

PROG = "vcompress"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATH_ERRORS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR)


@dataclass(frozen=True, kw_only=True)
class Import:
    """Take in a backbone that was fine-tuned elsewhere, and measure it."""

    model: str
    """Alias, torchvision name, timm:NAME or module:factory."""
    weights: str
    """state_dict, torchvision, timm, Lightning or DataParallel checkpoint, or .safetensors."""
    labels: Path | None = None
    """Text file, one class a line, in the order of the outputs."""
    out: Path | None = None
    """Where the bundle goes."""
    data: str | None = None
    """To measure the accuracy on: digits, a folder of class folders, or torchvision:NAME."""
    data_root: str | None = None
    """Where the files of torchvision:NAME are."""
    image_size: int | None = None
    """Side of the network's square input, pixels."""
    preprocess: str | None = None
    """imagenet, or JSON (or a .json file). Default: the data's usual one, else imagenet."""
    seed: int = 0
    """Of the split."""
    overwrite: bool = False
    """Replace a bundle that is already at --out."""

    def run(self) -> None:
        from .importing_bundle import import_checkpoint

        options = Options(
            data=self.data, data_root=self.data_root, image_size=self.image_size,
            preprocess=self.preprocess, seed=self.seed, overwrite=self.overwrite,
        )  # fmt: skip
        _show(import_checkpoint(self.model, Path(self.weights), self.labels, self.out, options))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a bundle's network again, check it against torch and measure it."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """The bundle; its model.onnx and metrics are replaced."""
    to: Literal["onnx"] = "onnx"
    """Format."""
    opset: int | None = None
    """ONNX operator set; default: the exporter's."""
    out: Path | None = None
    """Write the file here instead and leave the bundle as it is."""
    trust: str | None = None
    """Your own module:factory that the bundle may run."""

    def run(self) -> None:
        from .reexport import export_bundle, export_file

        if self.out is not None:
            print(export_file(self.run_dir, self.out, self.opset, self.trust))
        else:
            _show(export_bundle(self.run_dir, self.opset, self.trust))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Run the stages of a recipe file, then measure the first against the last."""

    recipe: Annotated[Path, tyro.conf.Positional]
    """TOML file."""
    out: Path | None = None
    """Where the bundles go; default: what the recipe says, else runs/NAME."""
    resume: bool = False
    """Go on where a run of the same recipe stopped."""
    overwrite: bool = False
    """Replace the bundles of an earlier run."""

    def run(self) -> None:
        from .recipe import read_recipe, run_recipe

        recipe = read_recipe(self.recipe)
        _show(*run_recipe(recipe, self.out, resume=self.resume, overwrite=self.overwrite))


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole way on scikit-learn's digits: R50, distilled, pruned, quantised, measured.

    A demo that was interrupted goes on where it stopped.
    """

    out: Path = Path("runs/demo")
    """Where the bundles and the report go."""
    short: bool = False
    """A smaller one of about a minute, for a quick look."""
    overwrite: bool = False
    """Start again."""

    def run(self) -> None:
        from .recipe import read_recipe, run_recipe

        name = "demo_short.toml" if self.short else "demo.toml"
        recipe = read_recipe(Path(__file__).with_name(name))
        out = self.out.with_name(self.out.name + "-short") if self.short else self.out
        _show(*run_recipe(recipe, out, resume=not self.overwrite, overwrite=self.overwrite))


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What is in a bundle and how it came to be; every file's hash is checked."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Folder written by vcompress."""

    def run(self) -> None:
        from .inspect import inspect

        inspect(self.bundle)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantising each layer alone costs, the most sensitive first."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """A float bundle with data."""
    target: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    """Where the network will run."""
    trust: str | None = None
    """Your own module:factory that the bundle may run."""

    def run(self) -> None:
        from .rank import rank_layers
        from .table import print_ranking

        print_ranking(rank_layers(self.bundle, self.target, self.trust))


_AROUND: dict[str, type[Any]] = {
    "import": Import, "export": Export, "run": Run, "demo": Demo, "inspect": Inspect,
    "sensitivity": Sensitivity,
}  # fmt: skip
_NAMES = "alias (r18, mnv2, vitb16, ...), torchvision name, timm:NAME, module:factory, or a bundle"
_KIND_HELP = {
    "fresh": f"{_NAMES}; a name starts with random weights, or with --weights",
    "trained": f"{_NAMES}; a name alone is fine-tuned first",
    "optional": f"{_NAMES}; a name alone is fine-tuned first",
}


def commands() -> dict[str, type[Any]]:
    """Name to a dataclass of its flags with a method `run`."""
    found = {name: _stage_command(name, stages.load(name)) for name in stages.names()}
    return dict(sorted((found | _AROUND).items()))


def _stage_command(name: str, stage: ModuleType) -> type[Any]:
    """The flags of a stage: its networks, where to write, its own `Config`, and `Options`."""
    roles = stages.inputs(stage)
    flat = tyro.conf.OmitArgPrefixes
    fields: list[Any] = []
    for role, kind in roles.items():
        hint = tyro.conf.arg(help=_KIND_HELP[kind])
        if kind == "optional":
            fields.append((role, Annotated[str | None, hint], dataclasses.field(default=None)))
        else:
            fields.append((role, Annotated[str, hint]))
    out = Annotated[Path | None, tyro.conf.arg(help="where the bundle goes; default: under runs/")]
    fields += [
        ("out", out, dataclasses.field(default=None)),
        (name, flat[stage.Config]),
        ("common", flat[Options]),
    ]

    def run(self: Any) -> None:
        from .flow import run_stage

        given = {role: value for role in roles if (value := getattr(self, role)) is not None}
        _show(run_stage(stage, getattr(self, name), given, self.out, self.common))

    command = dataclasses.make_dataclass(
        f"{name.capitalize()}Command", fields, frozen=True, kw_only=True, namespace={"run": run}
    )
    command.__doc__ = (stage.__doc__ or name).strip()
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run `vcompress`; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
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
            known[name], prog=f"{PROG} {name}", args=rest, config=(tyro.conf.FlagCreatePairsOff,)
        )
        _configure_logging()
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
    print(f"{PROG}: {message}", file=sys.stderr)
    return status


def _configure_logging() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # Of several processes (torchrun, accelerate launch) only the first one speaks.
    main_process = os.environ.get("RANK", "0") == "0"
    logging.getLogger("vcompress").setLevel(logging.INFO if main_process else logging.WARNING)


def _show(bundle: Any, report: Path | None = None) -> None:
    """The table at the end of every command, in the main process alone."""
    from .processes import process_state
    from .table import print_history

    if process_state().is_main_process:
        print_history(bundle)
        print(f"report: {report or bundle.path / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main())
