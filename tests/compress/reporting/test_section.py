"""A section that is taken over keeps what it shows; nothing else of its HTML comes along."""

from __future__ import annotations

import pytest

from vcompress.compress.reporting.section import LIMIT, read_section

OURS = (
    '<h2>Where they disagree</h2><p class="soft">On 2 of 6 images.</p>'
    "<p>Labelled &lt;i&gt; &amp; &#x27;red&#x27;</p><div>"
    '<figure><img src="data:image/png;base64,iVBORw0KGgo=" width="160" height="160" '
    'alt="image &quot;a&quot;"><figcaption>image</figcaption></figure></div>'
)


def test_what_we_wrote_comes_back_to_the_last_character() -> None:
    assert read_section(OURS) == OURS


@pytest.mark.parametrize(
    ("hostile", "kept"),
    [
        ("<script>alert(1)</script>", "alert(1)"),
        ("<p onclick=alert(1) class=soft>x</p>", '<p class="soft">x</p>'),
        ('<p class="soft wide">x</p>', "<p>x</p>"),
        ('<img src="http://evil/x.png" alt="a">', '<img alt="a">'),
        ('<img src="data:image/svg+xml;base64,AAAA">', "<img>"),
        ('<img src="data:image/png;base64,AAAA\\" onerror=x">', "<img>"),
        ("<img src=x onerror=alert(1)>", "<img>"),
        ("<style>body{display:none}</style>", "body{display:none}"),
        ("<meta http-equiv=refresh content='0;url=http://evil'><p>x", "<p>x</p>"),
        ("</body></html><h2>x", "<h2>x</h2>"),
        ("<!-- <script> --><p>x</p>", "<p>x</p>"),
        ("<p>&lt;script&gt;</p>", "<p>&lt;script&gt;</p>"),
        ("<div><p>x</div>", "<div><p>x</p></div>"),
        ("a\x1b[2J\u202eb", "a\ufffd[2J\ufffdb"),
        ("<a href='javascript:alert(1)'>x</a>", "x"),
        ("<scr<script>ipt>", "ipt&gt;"),
    ],
)
def test_only_known_elements_and_harmless_attributes_are_written_again(
    hostile: str, kept: str
) -> None:
    assert read_section(hostile) == kept


def test_a_section_beyond_all_measure_is_left_out() -> None:
    assert read_section("<p>" + "x" * LIMIT) == ""
