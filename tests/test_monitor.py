"""A diagnosis becomes one outbox row for a cause, and everything that does not act stays a record."""

import pytest

from flows import monitor
from tasks.diagnose import Evidence, Remedy
from tests.ledgers import new_ledger


@pytest.fixture
def heard(monkeypatch):
    """The events that would have been sent, and the alerts."""
    events: list = []
    monkeypatch.setattr(monitor.remedy, "emit", lambda *event: events.append(event))
    monkeypatch.setattr(monitor.report, "alert", lambda *alert: events.append(alert))
    return events


def ask(ledger, kind: str, stale: str = "hash 1", live: str = "rel-1") -> None:
    found = Remedy(kind, "3", "because")
    monitor.ask_for(ledger, "wiki", live, found, Evidence(), {"cursor": {"stale": stale, "request": 7}})


def test_the_same_staleness_asks_once_and_a_new_edit_asks_again(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    ask(ledger, "reindex")
    ask(ledger, "reindex")
    assert len(ledger.outbox("wiki")) == 1
    ask(ledger, "reindex", stale="hash 2")
    assert len(ledger.outbox("wiki")) == 2
    assert [event[0] for event in heard] == ["perennial.drift.detected", "perennial.remedy.reindex"] * 2


def test_the_detectors_states_are_stored_with_the_row(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    ask(ledger, "reindex")
    assert ledger.signal_states("wiki")["cursor"]["request"] == 7


def test_an_alert_moves_nothing_and_a_freeze_pauses(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    ask(ledger, "alert")
    assert ledger.outbox("wiki") == [] and not ledger.assistant("wiki")["paused"]
    ask(ledger, "alert")
    assert heard == [("wiki", "because")], "an alarm that stays on is told once"
    ask(ledger, "freeze")
    assert ledger.assistant("wiki")["paused"]


def test_nothing_is_not_even_a_record(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    ask(ledger, "nothing")
    assert heard == [] and ledger.decisions("wiki") == [] and ledger.signal_states("wiki")
