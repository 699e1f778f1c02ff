"""The user's own code: what is run, and what never is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vcompress.bench.errors import UserError
from vcompress.bench.own_code import check_trusted, import_own, is_factory

OWN = """
from os import getcwd as borrowed
from subprocess import Popen as klass
from functools import partial
def net(size=3):
    return size
five = partial(net, 5)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)


def test_a_function_of_the_users_module_is_found(own: None) -> None:
    assert import_own("own_nets:net")() == 3
    assert import_own("own_nets:five")() == 5


@pytest.mark.parametrize(
    "name",
    [
        "http.server:test", "builtins:exit", "builtins:breakpoint", "os:abort", "code:interact",
        "pdb:set_trace", "webbrowser:open", "os.path:join", "ctypes:string_at",
        "_posixsubprocess:x", "antigravity:x", "test.support:x",
    ],
)  # fmt: skip
def test_pythons_own_modules_are_never_imported_for_a_factory(name: str) -> None:
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"a module of Python's own, which makes no networks"):
        import_own(name)
    assert set(sys.modules) == before


def test_pythons_own_functions_are_no_factories_by_way_of_a_module(own: None) -> None:
    for name in ("borrowed", "klass"):
        with pytest.raises(UserError, match=r"own_nets:"):
            import_own(f"own_nets:{name}")


def test_what_is_trusted_is_named_whole() -> None:
    check_trusted("a:b", "c:d, a:b", "x")
    for trust in (None, "", "a", "a:bb", "a:b:c"):
        with pytest.raises(UserError, match=r"give --trust a:b"):
            check_trusted("a:b", trust, "x")


def test_names_of_libraries_are_no_factories() -> None:
    found = {name: is_factory(name) for name in ("r18", "timm:resnet18", "hf:net", "a:b", "a.b:c")}
    assert found == {
        "r18": False,
        "timm:resnet18": False,
        "hf:net": False,
        "a:b": True,
        "a.b:c": True,
    }


def test_an_import_that_fails_inside_the_module_shows_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_nets.py").write_text("import json\nimport no_such_module\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        import_own("lacking_nets:net")
    assert "No module named 'no_such_module'" in str(caught.value)
    assert "(lacking_nets.py, line 2: import no_such_module)" in str(caught.value)
