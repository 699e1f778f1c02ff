"""Text from elsewhere: what may be a name, and what may be shown."""

from __future__ import annotations

import html
import unicodedata
from typing import Any


def is_name(value: Any) -> bool:
    """Whether a class or label may be called so: it is shown, and stands in JSON and HTML."""
    return isinstance(value, str) and bool(value.strip()) and all(map(_harmless, value))


def printable(text: str) -> str:
    """Without control characters: what others have written must not steer the terminal."""
    return "".join(c if _harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def shown(text: str) -> str:
    """As `printable`, of a message that may have several lines."""
    return "".join(c if c in "\n\t" or _harmless(c) else "\N{REPLACEMENT CHARACTER}" for c in text)


def escape(text: str) -> str:
    """As HTML shows it, without control characters."""
    return html.escape(shown(text))


PAGE_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)
"""Stands in the head of every page: nothing runs in it, nothing is fetched, whatever it holds."""


def document(title: str, style: str, body: str) -> str:
    """A page of HTML that stands alone. The title is text; style and body are as they are shown."""
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{PAGE_POLICY}\n"
        f"<title>{escape(title)}</title>\n<style>{style}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _harmless(character: str) -> bool:
    """Spaces of any kind and the joiners of Persian, Malayalam and emoji belong to names; control
    characters, ends of lines and marks of direction do not."""
    return (
        character.isprintable()
        or character in "\u200c\u200d"
        or unicodedata.category(character) == "Zs"
    )
