"""A recipe: stages in order, from a TOML file, resumable.

out = "runs/mine"

[options]                 # the flags that all commands share
data = "images/"

[[stages]]
stage = "finetune"       # a file of compress/stages/
model = "r50"
epochs = 20               # the stage's own options

[[stages]]
stage = "distill"        # the teacher is the stage before
student = "r18"

[joint]                   # at the end, or alone: distil, prune and quantise on one budget
student = "r18"
epochs = 30
prune.macs = 0.5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vcompress.bench.bundle import Bundle, is_bundle
from vcompress.bench.config import from_mapping, read_toml
from vcompress.bench.errors import UserError, nearest
from vcompress.bench.own_code import check_trusted, is_factory, is_own_data

from .. import stages
from ..options import Options
from ..stages.contract import Kind, Stage
from .joint import Joint

_TABLES = ("losses", "features")
"""Options that may be written as a table: `losses.kd = 1.0` for `losses = ["kd=1.0"]`."""


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, checked."""

    name: str
    """The folder of its bundle, and how later steps refer to it."""
    stage: Stage[Any]
    config: Any
    given: Mapping[str, str]
    """Role to a name, a bundle's path, or an earlier step's name."""


@dataclass(frozen=True)
class Recipe:
    out: Path
    options: Options
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class _File:
    stages: list[dict[str, Any]] = field(default_factory=list)
    joint: Joint | None = None
    out: str | None = None
    options: dict[str, Any] | None = None


def read_recipe(path: Path, trust: str | None = None) -> Recipe:
    """Read and check the whole file before anything runs.

    Args:
        trust: names of the user's own `module:factory`, with commas between several, that the
            recipe and its bundles may run. A recipe is data: it cannot say so itself.

    Raises:
        UserError: not TOML, an unknown key (the nearest is named), a wrong value, or a factory that
            is not trusted.
    """
    try:
        body = read_toml(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not valid TOML ({error}).") from None
    file = from_mapping(_File, body, str(path))
    if not file.stages and file.joint is None:
        raise UserError(f"{path}: a recipe needs at least one [[stages]], or [joint].")
    for key in ("resume", "overwrite", "trust"):
        if key in (file.options or {}):
            raise UserError(
                f"{path}, [options]: {key} is said with --{key} when the recipe is run, not in it."
            )
    steps: list[Step] = []
    for number, table in enumerate(file.stages, 1):
        steps.append(_step(dict(table), number, steps, f"{path}, stage {number}"))
    if file.joint is not None:
        teacher = file.joint.teacher or (steps[-1].name if steps else None)
        if teacher is None:
            raise UserError(f"{path}, [joint]: give teacher = a model's name or a bundle.")
        for table in file.joint.tables(teacher):
            steps.append(_step(table, len(steps) + 1, steps, f"{path}, [joint], {table['stage']}"))
    options = from_mapping(Options, file.options or {}, f"{path}, [options]")
    if options.data is not None and is_own_data(options.data):
        check_trusted(options.data, trust, f"{path}, [options]: its data are made by your own code")
    for step in steps:
        for role, value in step.given.items():
            if is_factory(value) and not is_bundle(value):
                what = f"{path}, {step.name}: its {role} is built by your own factory"
                check_trusted(value, trust, what)
    out = Path(file.out or f"runs/{path.stem}")
    return Recipe(out, replace(options, trust=trust), tuple(steps))


def _step(table: dict[str, Any], number: int, before: list[Step], where: str) -> Step:
    method = table.pop("stage", None)
    if not isinstance(method, str):
        raise UserError(f"{where}: the key 'stage' is missing. Known: {', '.join(stages.names())}.")
    try:
        stage = stages.load(method)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    name = table.pop("name", f"{number}-{method}")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise UserError(f"{where}: name = {name!r}; use letters, digits, - and _.")
    if name in {step.name for step in before}:
        raise UserError(f"{where}: an earlier stage is called {name!r} too; give another name.")
    roles = [role.name for role in stage.roles]
    said = {role: table.pop(role) for role in roles if role in table}
    for key, value in table.items():
        known = {*roles, "stage", "name", *stage.Config.__dataclass_fields__}
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
        if key in _TABLES and isinstance(value, dict):
            table[key] = [f"{name}={inner}" for name, inner in value.items()]
    config = from_mapping(stage.Config, table, where)
    given: dict[str, str] = {}
    for role in stage.asked(config):
        if role.name in said:
            value = said.pop(role.name)
            names = value if isinstance(value, list) and role.kind is Kind.SEVERAL else [value]
            given |= role.numbered([str(one) for one in names])
        elif role.kind in (Kind.TRAINED, Kind.SEVERAL) and before:
            given[role.name] = before[-1].name
    try:
        stage.assigned(config, {**given, **said})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Step(name, stage, config, given)


def run_recipe(
    recipe: Recipe, out: Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> tuple[Bundle, Path]:
    """Run every step into `out/NAME`; the first and the last are then measured side by side.

    Returns:
        The last bundle and the page `out/report.html`.
    """
    from vcompress.bench.bundle.output import check_output

    from ..training.processes import process_state
    from .run import run_stage
    from .side_by_side import write_side_by_side

    out = out or recipe.out
    check_output(out / "report.html")
    options = replace(recipe.options, resume=resume, overwrite=overwrite)
    done: dict[str, Bundle] = {}
    for step in recipe.steps:
        given = {
            role: str(done[value].path) if value in done else value
            for role, value in step.given.items()
        }
        done[step.name] = run_stage(step.stage, step.config, given, out / step.name, options)
    bundles = list(done.values())
    if process_state().is_main_process:
        write_side_by_side(bundles[0], bundles[-1], out / "report.html", options.trust)
    return bundles[-1], out / "report.html"
