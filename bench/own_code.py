"""Code of the user's own: `module:function`, imported from the working folder.

What the user names on a command line is run. What a bundle or a recipe names is code from
elsewhere: it is run only where the user names it too, with `--trust module:function`. Python's own
modules make neither networks nor data: they are refused whoever names them.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError, nearest

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own_data(source: str) -> bool:
    """Whether a source of data has the form `module:function`; nothing is imported."""
    return _NAME.fullmatch(source) is not None and not source.startswith("torchvision:")


def is_factory(model: str) -> bool:
    """Whether the name of a network has the form `module:function`; nothing is imported."""
    module, colon, _ = model.partition(":")
    # deeplabv3+timm:NAME is a head on a backbone.
    return bool(colon) and module not in ("timm", "hf", "smp") and "+" not in module


def check_trusted(name: str, trust: str | None, what: str) -> None:
    """Raise a UserError where `name` is none of the names in `trust`, which commas separate, or can
    be no factory.

    Args:
        what: names the bundle or recipe and what the code is of, as the beginning of a sentence.
    """
    given = [] if trust is None else [part.strip() for part in trust.split(",")]
    if name in given:
        return
    try:
        _check_name(name)
    except UserError as error:
        raise UserError(
            f"{what} {name!r}. Loading runs that code; it is refused: {error}"
        ) from None
    more = ", with a comma between several" if given else ""
    raise UserError(
        f"{what} {name!r}. Loading runs that code; if you trust it, give --trust {name}{more}."
    )


def import_own(name: str) -> Callable[..., Any]:
    """The function of `module:function`.

    Raises:
        UserError: no such module or function, one of Python's own, or a module that cannot be run.
    """
    module_name, attribute = _check_name(name)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        sought = error.name if isinstance(error, ModuleNotFoundError) else None
        if sought is not None and f"{module_name}.".startswith(f"{sought}."):
            hint = nearest(module_name, ["torchvision", *_modules(Path(here))])
            raise UserError(
                f"{name}: the module {module_name!r} cannot be imported from {here} ({error})."
                f"{hint}"
            ) from None
        raise UserError(
            f"{name}: the module {module_name!r} cannot be imported from {here} "
            f"({raised(error, name)})."
        ) from None
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(function) or inspect.isbuiltin(function):
        raise UserError(
            f"{name}: {module_name} has no function {attribute!r}.{nearest(attribute, dir(module))}"
        )
    if (inspect.isroutine(function) or inspect.isclass(function)) and _is_pythons(
        str(function.__module__)
    ):
        raise UserError(
            f"{name}: this is {function.__module__}.{function.__qualname__} of Python's own. Give "
            f"a function that returns your network or data."
        )
    return function


def _check_name(name: str) -> tuple[str, str]:
    """Module and function of `module:function`."""
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{name}: {module!r} is not a module's name. Give module:factory.")
    if _is_pythons(module):
        raise UserError(
            f"{name}: {module} is a module of Python's own, which makes no networks or data. Give "
            f"a module of yours; rename it where it has this name."
        )
    return module, attribute


def _is_pythons(module: str) -> bool:
    first = module.partition(".")[0]
    return first in sys.stdlib_module_names or first == "test"


def raised(error: Exception, name: str) -> str:
    """What the code of `module:function` raised and at which of its own lines: the innermost one
    beside that module.

    `ValueError: no images (mine.py, line 7: raise ValueError("no images"))`.
    """
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        text = (error.text or "").strip()
        return f"{type(error).__name__}: {error.msg} ({_at(error.filename, error.lineno, text)})"
    ours = Path(__file__).parent.parent
    folder = _folder(name)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if (path := Path(frame.filename)).is_relative_to(folder)
        and "site-packages" not in path.parts
        and not any(path.is_relative_to(ours / room) for room in ("bench", "compress", "export"))
    ]
    if not own:
        return said
    return f"{said} ({_at(own[-1].filename, own[-1].lineno, own[-1].line or '')})"


def _folder(name: str) -> Path:
    """Where the outermost package of `module:function` lies; the working folder before it does."""
    file = getattr(sys.modules.get(name.partition(":")[0].partition(".")[0]), "__file__", None)
    if file is None:
        return Path.cwd()
    return Path(file).parents[1 if Path(file).stem == "__init__" else 0]


def _at(file: str, line: int | None, text: str) -> str:
    return f"{Path(file).name}, line {line}{f': {text}' if text else ''}"


def _modules(folder: Path) -> list[str]:
    """What could be imported from `folder`."""
    return [
        path.stem
        for path in folder.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]
