"""The part of a report that belongs to one stage alone, taken over into a new report.

It lies in a bundle as HTML, and a bundle may come from anybody. So it is read, and what it holds of
our own few kinds (headings, paragraphs, pictures with captions, bars) is written anew.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from vcompress.bench.text import escape

LIMIT = 16 * 2**20
"""Characters; a dozen small pictures take one million."""
_KINDS = {
    "h2": {}, "div": {}, "figure": {}, "figcaption": {},
    "p": {"class": r"soft"},
    "table": {}, "tr": {}, "th": {"class": r"left"}, "td": {"class": r"left"},
    "meter": {"value": r"[01]\.\d{1,6}"},
    "img": {
        "src": r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+=*", "width": r"\d{1,4}",
        "height": r"\d{1,4}",
        "alt": r"(?s:.*)",
    },
}  # fmt: skip
"""The elements with the values that their attributes may have."""


def read_section(text: str) -> str:
    """The section as we would write it: HTML of known elements alone, every text escaped. Empty
    where it is longer than any of ours."""
    if len(text) > LIMIT:
        return ""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    reader.parts += [f"</{kind}>" for kind in reversed(reader.open)]
    return "".join(reader.parts)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _KINDS:
            return
        kept = "".join(
            f' {name}="{escape(value)}"'
            for name, value in attrs
            if value is not None and re.fullmatch(_KINDS[tag].get(name, "(?!)"), value)
        )
        self.parts.append(f"<{tag}{kept}>")
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1:] == [tag]:
            self.parts.append(f"</{self.open.pop()}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(escape(data))
