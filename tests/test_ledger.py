"""The ledger keeps its promises whatever order things happen in."""

import threading

import pytest

from data.ledger import Ledger, NotAccepted, PointerMoved, migrate
from data.records import Sources
from tests.ledgers import accept, new_ledger, release


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path, "wiki")


def test_a_release_with_gate_smoke_and_canary_goes_live_once(ledger):
    accept(ledger, release())
    assert ledger.promote("wiki", release().id, 0) == 1
    assert ledger.live()["wiki"].live == release()
    with pytest.raises(PointerMoved):
        ledger.promote("wiki", release().id, 0)


@pytest.mark.parametrize(
    "kind, verdict", [("gate", "reject"), ("gate", "hold"), ("smoke", "silent"), ("canary", "broken")]
)
def test_a_release_that_failed_a_condition_never_goes_live(ledger, kind, verdict):
    accept(ledger, release())
    ledger.decide("wiki", kind, release().id, verdict, "", {})
    with pytest.raises(NotAccepted, match=kind):
        ledger.promote("wiki", release().id, 0)
    assert ledger.live()["wiki"].live is None


def test_a_release_of_another_assistant_is_refused(ledger):
    accept(ledger, release())
    ledger.register(Sources("other", "docs"), {})
    with pytest.raises(NotAccepted, match="not a release of 'other'"):
        ledger.promote("other", release().id, 0)


def test_rollback_goes_only_to_what_was_live(ledger):
    first, never = release(model="a"), release(model="c")
    accept(ledger, first)
    ledger.promote("wiki", first.id, 0)
    ledger.add_release(never, "tuned", None, {})
    ledger.decide("wiki", "smoke", never.id, "answered", "", {})
    with pytest.raises(NotAccepted, match="never live"):
        ledger.promote("wiki", never.id, 1, kind="rollback")
    assert ledger.promote("wiki", first.id, 1, kind="rollback") == 2


def test_the_same_cause_opens_one_row_and_a_new_cause_another(ledger):
    assert ledger.open_remedy("wiki", "reindex", "hash-1", {}) == 1
    assert ledger.open_remedy("wiki", "reindex", "hash-1", {}) is None
    ledger.settle(1, "refused", "cooldown")
    assert ledger.open_remedy("wiki", "reindex", "hash-1", {}) is None
    assert ledger.open_remedy("wiki", "reindex", "hash-2", {}) == 2


def test_one_claim_wins_among_many_and_covers_the_other_open_rows(ledger):
    rows = [ledger.open_remedy("wiki", "reindex", f"hash-{n}", {}) for n in range(6)]
    won: list = []
    threads = [threading.Thread(target=lambda s=s: won.append(ledger.claim(s, f"run-{s}"))) for s in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    claimed = [row for row in won if row]
    assert len(claimed) == 1
    states = [row["state"] for row in ledger.outbox("wiki")]
    assert sorted(states) == ["claimed"] + ["merged"] * 5


def test_a_settled_row_keeps_its_state_and_a_freed_claim_can_be_taken_again(ledger):
    seq = ledger.open_remedy("wiki", "reindex", "x", {})
    assert ledger.claim(seq, "run-1")
    ledger.free(seq, "run-1")
    assert ledger.claim(seq, "run-2")
    ledger.settle(seq, "acted", "done", run="run-1")
    assert ledger.outbox("wiki")[0]["state"] == "claimed"
    ledger.settle(seq, "acted", "done", run="run-2")
    ledger.settle(seq, "refused", "late")
    assert ledger.outbox("wiki")[0]["state"] == "acted"


def test_tombstones_hide_gone_chunks_and_let_returning_text_back(ledger):
    ledger.bury("wiki", {"a", "b"}, {"c"})
    assert ledger.tombstones("wiki") == {"a", "b"}
    ledger.bury("wiki", {"c"}, {"a"})
    assert ledger.tombstones("wiki") == {"b", "c"}


def test_an_unknown_assistant_is_named_with_the_known_ones(ledger):
    with pytest.raises(KeyError, match="known: wiki"):
        ledger.assistant("wikki")


def test_migrating_twice_changes_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/twice.db"
    migrate(url)
    migrate(url)
    assert Ledger(url).assistants() == []


def test_one_row_at_most_is_queued_and_it_is_the_newest(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    first = ledger.open_remedy("wiki", "reindex", "edit 0", {})
    ledger.claim(first, "run")
    rows = [ledger.open_remedy("wiki", "reindex", f"edit {number}", {}) for number in range(1, 20)]
    assert [row["seq"] for row in ledger.outbox("wiki", ("open",))] == [rows[-1]]
    assert len(ledger.outbox("wiki", ("merged",))) == 18
    assert ledger.outbox("wiki")[-1]["at"] <= ledger.outbox("wiki")[1]["at"], "it waits since the first of them did"


def test_two_approvals_that_wait_together_both_run(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    first, second = (ledger.open_remedy("wiki", "approve", f"review {n}", {"asked": "by hand"}) for n in (1, 2))
    assert ledger.claim(first, "run-1") and ledger.claim(second, "run-2") is None
    ledger.settle(first, "acted", "", run="run-1")
    assert ledger.claim(second, "run-2")


def test_what_a_person_asked_for_is_not_merged_into_what_a_signal_asked_for(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    by_hand = ledger.open_remedy("wiki", "rollback", "by hand 1", {"asked": "by hand", "to": "rel"})
    signal = ledger.open_remedy("wiki", "rollback", "worse", {})
    assert [row["seq"] for row in ledger.outbox("wiki", ("open",))] == [by_hand, signal]
