"""The end of every command."""

from __future__ import annotations

import math
from pathlib import Path

from vcompress.compress.bundles.entry import plain


def test_what_json_has_no_word_for_becomes_a_plain_value() -> None:
    found = plain({"sqnr_db": math.inf, "worst": [math.nan, -math.inf, 1.5], "out": Path("a/b")})
    assert found == {"sqnr_db": None, "worst": [None, None, 1.5], "out": "a/b"}
