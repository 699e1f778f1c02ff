"""Long work is not silent."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from vcompress.bench import working as module
from vcompress.bench.working import working


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.05)


def test_a_long_block_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    with working("ranking layers", 3) as work:
        work.done(2)
        time.sleep(0.3)
    said = len(caplog.messages)
    assert said >= 2
    assert caplog.messages[0].startswith("ranking layers, 2 of 3, ")
    time.sleep(0.1)
    assert len(caplog.messages) == said  # over is over


def test_what_ends_soon_or_fails_says_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    with pytest.raises(ValueError, match="broken"), working("exporting"):
        raise ValueError("broken")
    assert caplog.messages == []


def test_no_thread_runs_where_nothing_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, module.__name__)
    before = threading.active_count()
    with working("exporting"):
        assert threading.active_count() == before
