"""Every remedy is judged once: by the signals that asked for it, when there is enough to judge by."""

import time

from tasks.outcome import SETTLED, outcomes
from tasks.signals import Signal
from tests.ledgers import new_ledger


def asked(tmp_path, state: str = "acted"):
    book = new_ledger(tmp_path, "wiki")
    seq = book.open_remedy("wiki", "retrain", "labels", {"signals": ["labels"]})
    book.settle(seq, state, "promoted")
    return book, seq


def after(events: int) -> dict:
    return {"cursor": {"at": time.time()}, "labels": {"detector": {"events": events}}}


def test_a_stream_that_stays_quiet_has_recovered_and_is_judged_once(tmp_path):
    book, seq = asked(tmp_path)
    quiet = (Signal("labels", 0.1, False, ""),)
    assert outcomes(book, "wiki", quiet, after(SETTLED - 1)) == []
    assert outcomes(book, "wiki", quiet, after(SETTLED)) == [seq]
    assert outcomes(book, "wiki", quiet, after(SETTLED)) == []
    assert book.decisions("wiki", "outcome")[0]["verdict"] == "recovered"


def test_an_alarm_after_the_remedy_says_that_it_did_not_help(tmp_path):
    book, _ = asked(tmp_path)
    outcomes(book, "wiki", (Signal("labels", 1.0, True, ""),), after(40))
    found = book.decisions("wiki", "outcome")[0]
    assert found["verdict"] == "not recovered" and "labels" in found["reason"]


def test_what_was_not_done_is_an_outcome_too(tmp_path):
    book, _ = asked(tmp_path, "vetoed")
    outcomes(book, "wiki", (), after(0))
    assert book.decisions("wiki", "outcome")[0]["verdict"] == "not done"


def test_what_ended_after_the_last_look_is_judged_by_the_next(tmp_path):
    book, seq = asked(tmp_path)
    quiet, old = (Signal("labels", 0.1, False, ""),), after(SETTLED) | {"cursor": {"at": time.time() - 60}}
    assert outcomes(book, "wiki", quiet, old) == []
    assert outcomes(book, "wiki", quiet, after(SETTLED)) == [seq]
