"""Remedies run once, under brakes, and their row reaches one final state."""

from dataclasses import replace

import pytest

from data.outbox import ask, veto
from data.records import as_json
from serving.engine.upstream import upstream_model
from tasks import remedy
from tasks.edetector import watch as fresh_detector
from tasks.remedy import Brakes
from tests.ledgers import go_live, new_ledger, release


@pytest.fixture
def ledger(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    go_live(book, release())
    return book


def state(ledger, seq: int) -> str:
    return next(row["state"] for row in ledger.outbox() if row["seq"] == seq)


def test_a_remedy_that_ends_settles_its_row_with_its_note(ledger):
    seq = ledger.open_remedy("wiki", "reindex", "edit", {"reason": "one page"})
    with remedy.claimed(ledger, seq, "run-1", Brakes()) as claim:
        assert (claim.assistant, claim.cause, claim.body["reason"]) == ("wiki", "edit", "one page")
        claim.note("promoted")
    row = ledger.outbox("wiki")[0]
    assert (row["state"], row["note"]) == ("acted", "promoted")


def test_a_second_run_of_the_same_row_does_nothing(ledger):
    seq = ledger.open_remedy("wiki", "reindex", "edit", {})
    with remedy.claimed(ledger, seq, "run-1", Brakes()), remedy.claimed(ledger, seq, "run-2", Brakes()) as second:
        assert second is None
    with remedy.claimed(ledger, seq, "run-3", Brakes()) as late:
        assert late is None
    assert state(ledger, seq) == "acted"


def test_a_remedy_that_raises_gives_its_claim_back_until_the_attempts_are_used_up(ledger):
    seq = ledger.open_remedy("wiki", "retrain", "worse", {})
    for attempt in range(2):
        with pytest.raises(OSError), remedy.claimed(ledger, seq, f"run-{attempt}", Brakes(attempts=2)):
            raise OSError("no disk")
        assert state(ledger, seq) == "open"
    with remedy.claimed(ledger, seq, "run-9", Brakes(attempts=2)) as claim:
        assert claim is None
    assert state(ledger, seq) == "refused"


def test_retraining_what_is_served_elsewhere_is_refused_at_once(ledger):
    go_live(ledger, replace(release(), model=upstream_model("http://10.0.0.5/v1#qwen3")))
    seq = ledger.open_remedy("wiki", "retrain", "worse", {})
    with remedy.claimed(ledger, seq, "run-1", Brakes()) as claim:
        assert claim is None
    (row,) = [row for row in ledger.outbox("wiki") if row["seq"] == seq]
    assert row["state"] == "refused" and "no adapter of ours can go" in row["note"]


def test_a_cooldown_makes_a_row_wait_and_a_person_passes_it(ledger):
    first = ledger.open_remedy("wiki", "reindex", "edit 1", {})
    with remedy.claimed(ledger, first, "run-1", Brakes()):
        pass
    second = ledger.open_remedy("wiki", "reindex", "edit 2", {})
    with remedy.claimed(ledger, second, "run-2", Brakes(cooldown_s={"reindex": 60})) as claim:
        assert claim is None
    assert state(ledger, second) == "open"
    third = ask(ledger, "wiki", "reindex")
    with remedy.claimed(ledger, third, "run-3", Brakes(cooldown_s={"reindex": 60})) as claim:
        assert claim is not None


def test_a_remedy_that_says_again_is_given_back(ledger):
    seq = ledger.open_remedy("wiki", "reindex", "edit", {})
    with remedy.claimed(ledger, seq, "run-1", Brakes()) as claim:
        claim.again("the canary broke")
    assert state(ledger, seq) == "open"


def test_a_pause_keeps_rows_open_and_refuses_a_person(ledger):
    ledger.pause("wiki", True)
    waiting = ledger.open_remedy("wiki", "reindex", "edit", {})
    with remedy.claimed(ledger, waiting, "run-0", Brakes()) as claim:
        assert claim is None
    assert state(ledger, waiting) == "open"
    seq = ask(ledger, "wiki", "rollback")
    with remedy.claimed(ledger, seq, "run-1", Brakes()) as claim:
        assert claim is None
    assert state(ledger, seq) == "refused"


def test_the_weekly_budget_refuses_when_it_is_used_up(ledger):
    brakes = Brakes(cooldown_s={"reindex": 0}, weekly=1)
    seqs = [ledger.open_remedy("wiki", "reindex", "edit 1", {})]
    with remedy.claimed(ledger, seqs[0], "run-1", brakes):
        pass
    seqs.append(ledger.open_remedy("wiki", "reindex", "edit 2", {}))
    with remedy.claimed(ledger, seqs[1], "run-2", brakes) as claim:
        assert claim is None
    assert [state(ledger, seq) for seq in seqs] == ["acted", "refused"]


def test_an_unknown_row_is_named(ledger):
    with pytest.raises(KeyError, match="no outbox row 99"), remedy.claimed(ledger, 99, "run", Brakes()):
        pass


def test_a_veto_counts_until_the_remedy_has_started_and_is_on_record(ledger):
    brakes = Brakes(opt_out_s=60)
    seq = ledger.open_remedy("wiki", "retrain", "worse", {})
    with remedy.claimed(ledger, seq, "run-1", brakes) as claim:
        assert claim is None, "within the opt-out window nothing starts"
    assert veto(ledger, seq, "Ann", "the labels are wrong")
    row = ledger.outbox("wiki")[0]
    assert (row["state"], row["note"]) == ("vetoed", "vetoed by Ann: the labels are wrong")
    assert ledger.decisions("wiki", "veto")[0]["verdict"] == "retrain"
    assert ledger.open_remedy("wiki", "retrain", "worse", {}) is None, "not asked again for the same cause"
    started = ledger.open_remedy("wiki", "retrain", "worse still", {})
    with remedy.claimed(ledger, started, "run-2", Brakes()):
        assert not veto(ledger, started, "Ann")


def test_a_pause_is_on_record(ledger):
    remedy.pause(ledger, "wiki", True, "Ann", "migration")
    assert ledger.assistant("wiki")["paused"]
    remedy.pause(ledger, "wiki", False, "Ann")
    said = [(row["verdict"], row["reason"]) for row in ledger.decisions("wiki", "pause")]
    assert said == [("resumed", "resumed by Ann"), ("paused", "paused by Ann: migration")]


@pytest.mark.parametrize("brakes", [Brakes(weekly_s=50), Brakes(weekly_cost=1.0, price_per_hour=100.0)])
def test_machine_time_and_money_of_the_week_refuse_when_they_are_used_up(ledger, brakes):
    ledger.decide("wiki", "remedy", None, "failed", "retrain", {"outbox": 1, "seconds": 60.0, "run": "r"})
    seq = ledger.open_remedy("wiki", "reindex", "edit", {})
    with remedy.claimed(ledger, seq, "run-1", brakes) as claim:
        assert claim is None
    assert state(ledger, seq) == "refused" and "this week" in ledger.outbox("wiki")[0]["note"]


def test_an_alarm_on_too_few_events_is_refused(ledger):
    seq = ledger.open_remedy("wiki", "retrain", "worse", {"events": 12})
    with remedy.claimed(ledger, seq, "run-1", Brakes(evidence=30)) as claim:
        assert claim is None
    assert "at least 30 are needed" in ledger.outbox("wiki")[0]["note"]


def test_what_a_remedy_took_is_recorded_also_when_it_fails(ledger):
    seq = ledger.open_remedy("wiki", "retrain", "worse", {})
    with pytest.raises(OSError), remedy.claimed(ledger, seq, "run-1", Brakes()):
        raise OSError("no disk")
    run = ledger.decisions("wiki", "remedy")[0]
    assert run["verdict"] == "failed" and run["body"]["outbox"] == seq and run["body"]["seconds"] >= 0


def test_who_resumes_has_seen_to_what_was_broken(ledger):
    alarmed = as_json(fresh_detector(0.1, 100.0)) | {"alarm": True}
    states = {name: {"detector": alarmed} for name in ("format", "labels")}
    ledger.store_signals("wiki", states | {"cursor": {"request": -1, "at": 5.0}})
    remedy.pause(ledger, "wiki", True, "Ann")
    assert ledger.signal_states("wiki")["format"]["detector"]["alarm"]
    remedy.pause(ledger, "wiki", False, "Ann")
    after = ledger.signal_states("wiki")
    assert not after["format"]["detector"]["alarm"] and after["labels"]["detector"]["alarm"]
    assert after["cursor"] == {"request": 0, "at": 5.0}, "what was asked in the pause is not held against it"


def test_waiting_for_a_persons_word_is_no_machine_time(ledger, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(remedy.time, "monotonic", lambda: clock[0])
    seq = ledger.open_remedy("wiki", "retrain", "worse", {})
    with remedy.claimed(ledger, seq, "run-1", Brakes()):
        ledger.decide("wiki", "approval", "rel", "approved", "", {"waited": 3600.0})
        clock[0] = 3700.0
    assert remedy.spent(ledger, "wiki", 0.0) == 100.0
