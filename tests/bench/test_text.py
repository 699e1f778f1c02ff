"""Names in any script are names; what would steer a terminal is not shown."""

from __future__ import annotations

import pytest

from vcompress.bench.text import escape, is_name, printable, shown


@pytest.mark.parametrize(
    "text",
    [
        "cat", "red fox", "caf\u00e9", "day\u00a0light", "\u3042\u3000\u3044",
        "\u0645\u06cc\u200c\u0631\u0648\u0645",  # Persian
        "\u0d15\u0d23\u0d4d\u200d",  # Malayalam
        "\U0001f468\u200d\U0001f469",  # a family
    ],
)  # fmt: skip
def test_a_name_in_any_script_is_shown_as_it_is(text: str) -> None:
    assert is_name(text)
    assert printable(text) == text


@pytest.mark.parametrize(
    "character", ["\n", "\x1b", "\x00", "\x9b", "\u202e", "\u2066", "\u200e", "\u2028", "\ud800"]
)
def test_what_would_steer_a_terminal_or_end_a_line_is_no_name(character: str) -> None:
    assert not is_name(f"a{character}b")
    assert printable(f"a{character}b") == "a\ufffdb"


@pytest.mark.parametrize("value", ["", " ", "\u00a0", None, 3, ["cat"]])
def test_nothing_is_no_name(value: object) -> None:
    assert not is_name(value)


def test_a_message_keeps_its_lines_and_a_page_its_elements() -> None:
    assert shown("a\n\tb\x1b[2J\u202e") == "a\n\tb\ufffd[2J\ufffd"
    assert escape("<a\x1b>\n'") == "&lt;a\ufffd&gt;\n&#x27;"
