"""Calls that block are waited for without silence."""

from __future__ import annotations

import time

from duckling_provider.base.cancellation import Control
from duckling_provider.base.interruptible import Workers, interruptible


def test_a_store_that_answers_nothing_is_told_of_again_and_again(monkeypatch, caplog):
    monkeypatch.setattr(Workers, "TOLD_EVERY", 0.2)
    assert interruptible(lambda: time.sleep(1.0) or "answer", Control()) == "answer"
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 2
    assert all(line.startswith("waiting: the store has answered nothing for ") for line in lines)


def test_a_quick_answer_is_told_of_nowhere(caplog):
    assert interruptible(lambda: "answer", Control()) == "answer"
    assert caplog.records == []
