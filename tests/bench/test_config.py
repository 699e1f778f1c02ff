"""Dataclasses from data, and what is refused on the way."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import pytest

from vcompress.bench.config import MOST_BYTES, from_mapping, plain, read_toml
from vcompress.bench.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    mean: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.1
    steps: int = 1
    kind: Literal["small", "large"] = "small"
    name: str | None = None
    flag: bool = False
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] | None = None


GOOD: dict[str, Any] = {"inner": {"size": [4, 5]}}


def test_lists_become_tuples_and_whole_numbers_become_floats() -> None:
    made = from_mapping(Outer, {"inner": {"size": [4, 5], "mean": [1, 0.5]}, "rate": 2}, "here")
    assert made == Outer(Inner((4, 5), (1.0, 0.5)), 2.0)
    assert isinstance(made.rate, float)
    assert all(isinstance(value, float) for value in made.inner.mean)


def test_a_dataclass_comes_back_from_its_own_fields() -> None:
    made = Outer(Inner((1, 2)), 0.25, 3, "large", "x", True, (Inner((3, 4)),), {"a": Inner((5, 6))})
    assert from_mapping(Outer, asdict(made), "here") == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rat": 1}, "here: unknown key 'rat'. Did you mean 'rate'?"),
        (
            {"inner": {"size": [1, 2], "maen": [1.0]}},
            "unknown key 'inner.maen'. Did you mean 'mean",
        ),
        ({"many": [{"size": [1, 2], "q": 1}]}, "unknown key 'many[0].q'. Known: mean, size."),
        ({"by_name": {"a": {"size": [1, 2], "q": 1}}}, "unknown key 'by_name.a.q'"),
        ({"inner": {"size": "ab"}}, "inner.size = 'ab', expected a list"),
        ({"inner": {"size": [1]}}, "inner.size = [1], expected 2 values"),
        ({"inner": {"size": [1, 2, 3]}}, "inner.size = [1, 2, 3], expected 2 values"),
        ({"inner": {"size": [1, 2.5]}}, "inner.size[1] = 2.5, expected a whole number"),
        ({"inner": {}}, "the key 'inner.size' is missing"),
        ({"inner": 5}, "inner = 5, expected a table of named values"),
        ({"rate": "fast"}, "rate = 'fast', expected a number"),
        ({"steps": True}, "steps = True, expected a whole number"),
        ({"flag": 1}, "flag = 1, expected true or false"),
        ({"kind": "smal"}, "kind = 'smal', expected one of small, large. Did you mean 'small'?"),
        ({"name": 3}, "name = 3, expected a text"),
        ({"name": ["x" * 500]}, "..., expected a text"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        from_mapping(Outer, GOOD | change, "here")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("data", [None, 5, [], "text"])
def test_what_is_no_table_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match=r"here: got .*, expected a table of named values"):
        from_mapping(Outer, data, "here")


def test_none_is_taken_where_it_is_allowed_only() -> None:
    assert from_mapping(Outer, GOOD | {"name": None}, "here").name is None
    with pytest.raises(UserError, match="steps = None, expected a whole number"):
        from_mapping(Outer, GOOD | {"steps": None}, "here")


def test_what_json_has_no_word_for_becomes_a_plain_value() -> None:
    found = plain({"sqnr_db": math.inf, "worst": [math.nan, -math.inf, 1.5], "out": Path("a/b")})
    assert found == {"sqnr_db": None, "worst": [None, None, 1.5], "out": "a/b"}
    found = plain({"counts": np.array([[1, 2]]), "share": np.float32(0.5), 3: (True, None, math)})
    assert found == {"counts": [[1, 2]], "share": 0.5, "3": [True, None, str(math)]}


def test_toml_that_takes_long_to_read_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('a.b = 0.5\nc = ["../x.y"]\n')
    assert read_toml(path) == {"a": {"b": 0.5}, "c": ["../x.y"]}
    begin = perf_counter()
    for text, said in (
        ("a." * 100_000 + "b = 1", "line 1 has more than 200 dots"),
        ("#" * (MOST_BYTES + 1), "more than 1,048,576 bytes"),
        ("a = " + "[" * 100_000, "without end"), ("\ud800", "utf-8"),
    ):  # fmt: skip
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match=said):
            read_toml(path)
    assert perf_counter() - begin < 5
