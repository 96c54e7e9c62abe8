"""A diagnosis becomes one outbox row for a cause, and everything that does not act stays a record."""

from dataclasses import replace

import pytest
from prefect.states import Completed, Failed

from data import splits
from flows import monitor
from tasks.diagnose import Remedy, diagnose
from tasks.evidence import Evidence
from tasks.index import Staleness
from tasks.signals import Signal
from tests.ledgers import go_live, new_ledger, release


@pytest.fixture
def heard(monkeypatch):
    """The events that would have been sent, and the alerts."""
    events: list = []
    monkeypatch.setattr(monitor.events, "emit", lambda *event, **about: events.append((*event, about)))
    monkeypatch.setattr(monitor.report, "alert", lambda *alert: events.append(("alert", *alert)))
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
    assert [said[0] for said in heard] == ["perennial.drift.detected", "perennial.remedy.alert", "alert"], "told once"
    assert heard[-1][1:3] == ("wiki", "because")
    ask(ledger, "freeze")
    assert ledger.assistant("wiki")["paused"]


def test_nothing_is_a_decision_told_to_nobody_and_recorded_when_it_is_new(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    ask(ledger, "nothing")
    ask(ledger, "nothing")
    assert heard == [] and [row["verdict"] for row in ledger.decisions("wiki")] == ["nothing"]
    assert ledger.signal_states("wiki")


def test_a_decision_holds_evidence_alternatives_costs_and_brakes(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    ledger.pause("wiki", True)
    evidence = Evidence(stale_sections=2)
    monitor.ask_for(ledger, "wiki", "rel-1", diagnose(evidence), evidence, {"cursor": {"stale": "hash"}})
    body = ledger.decisions("wiki", "diagnosis")[0]["body"]
    assert body["evidence"] == {"stale_sections": 2} and body["outbox"] == 1
    assert {"retrain", "rollback", "nothing"} <= {other["kind"] for other in body["alternatives"]}
    assert all(other["why not"] and other["expected_cost"] >= 0 for other in body["alternatives"])
    assert body["expected_cost"] > 0
    assert body["brakes"] == {"refuses": "", "holds": "automation of 'wiki' is paused"}


def test_an_alarm_too_young_to_act_on_is_asked_again_when_it_has_come_of_age(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    evidence = Evidence(labelled_quality_down=True, worse_windows=2, new_labelled_examples=600)
    for events in (12, 20, 31):
        alarm = Signal("labels", 1.0, True, "", {"state": {"events": events}})
        seen = replace(evidence, signals=(alarm,))
        monitor.ask_for(ledger, "wiki", "rel-1", diagnose(seen), seen, {})
    assert [row["body"]["events"] for row in ledger.outbox("wiki")] == [12, 31]


def test_a_refused_cause_fires_again_only_when_its_evidence_has_changed(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    few, more = (Evidence(labelled_quality_down=True, worse_windows=2, new_labelled_examples=n) for n in (600, 1300))
    for evidence in (few, few, more):
        monitor.ask_for(ledger, "wiki", "rel-1", diagnose(evidence), evidence, {})
        ledger.settle(ledger.outbox("wiki")[-1]["seq"], "refused", "the gate rejected it")
    assert len(ledger.outbox("wiki")) == 2


def test_another_alarm_of_the_same_row_is_told(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    for name in ("latency", "latency", "cost"):
        seen = Evidence(signals=(Signal(name, 1.0, True, ""),))
        monitor.ask_for(ledger, "wiki", "rel-1", diagnose(seen), seen, {})
    assert [said[0] for said in heard].count("alert") == 2


def test_the_events_of_a_remedy_carry_its_row_and_why(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    evidence = Evidence(stale_sections=2, signals=(Signal("staleness", 1.0, True, "a sentence"),))
    monitor.ask_for(ledger, "wiki", "rel-1", diagnose(evidence), evidence, {"cursor": {"stale": "hash"}})
    about = heard[1][-1]
    assert (about["outbox"], about["kind"], about["row"], about["release"]) == (1, "reindex", "3", "rel-1")
    assert about["reason"].startswith("2 sections changed")
    assert about["evidence"] == {"signals": ["staleness"], "stale_sections": 2}


def test_an_edit_heals_although_the_detectors_fail(tmp_path, heard, monkeypatch):
    ledger = new_ledger(tmp_path, "wiki")
    go_live(ledger, release())
    ledger.store_signals("wiki", {"cursor": {"request": 7}, "labels": {"reference": [1]}})
    monkeypatch.setattr(monitor, "Ledger", lambda _: ledger)
    monkeypatch.setattr(monitor.watch, "Ledger", lambda _: ledger)
    monkeypatch.setattr(monitor.report, "signals", lambda *_: None)
    stale = Staleness((("a.md", "Limits"),), fingerprint="f")
    monkeypatch.setattr(monitor, "find_outdated", lambda *_, **__: Completed(data=stale))
    monkeypatch.setattr(monitor, "watch_assistant", lambda *_, **__: Failed(message="KeyError"))
    monkeypatch.setattr(monitor, "diagnose_evidence", diagnose)
    for _ in range(3):
        monitor.monitor.fn()
    assert [(row["kind"], row["body"]["signals"]) for row in ledger.outbox("wiki")] == [("reindex", ["staleness"])]
    assert [row["verdict"] for row in ledger.decisions("wiki", "diagnosis")] == ["alert", "reindex"]
    assert ledger.signal_states("wiki")["cursor"] == {"request": 7, "stale": "f"}
    assert ledger.signal_states("wiki")["labels"] == {"reference": [1]}


def test_split_tests_are_looked_at_while_one_runs_and_not_otherwise(tmp_path, heard, monkeypatch):
    ledger, started = new_ledger(tmp_path, "wiki"), []
    monkeypatch.setattr(monitor, "Ledger", lambda _: ledger)
    monkeypatch.setattr(monitor, "run_deployment", lambda name, **_: started.append(name))
    monitor.monitor.fn()
    assert started == []
    go_live(ledger, other := release(model="b"))
    go_live(ledger, live := release())
    splits.start(ledger, "wiki", live.id, other.id, 0.5, {})
    ledger.pause("wiki", True)
    monitor.monitor.fn()
    assert started == ["split/split"]


def test_too_few_labels_to_retrain_ask_for_a_prompt_and_for_more_labels(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    evidence = Evidence(labelled_quality_down=True, worse_windows=2, new_labelled_examples=20)
    for _ in range(2):
        monitor.ask_for(ledger, "wiki", "rel-1", diagnose(evidence), evidence, {})
    assert [row["kind"] for row in ledger.outbox("wiki")] == ["reprompt", "collect"]


def test_more_labels_are_asked_for_when_those_that_came_back_are_too_few(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    worse = Evidence(labelled_quality_down=True, worse_windows=2, new_labelled_examples=2)
    for back, fresh in ((0, 2), (0, 2), (20, 5), (20, 9), (40, 10)):
        seen = replace(worse, settled_labels=back, new_labelled_examples=fresh)
        monitor.ask_for(ledger, "wiki", "rel-1", diagnose(seen), seen, {})
        for row in ledger.outbox("wiki", ("open",)):
            ledger.settle(row["seq"], "acted", "done")
    assert [row["kind"] for row in ledger.outbox("wiki")] == ["collect", "collect", "reprompt", "collect"]


def test_a_second_flood_by_others_and_a_judge_that_moves_again_are_asked_for_anew(tmp_path, heard):
    ledger = new_ledger(tmp_path, "wiki")
    floods = [Evidence(rating_alarm=True, rating_alarm_users_share=0.8, rating_alarm_voices=(v,)) for v in "aab"]
    moves = [Evidence(judge_moved=True, signals=(Signal("anchors", 1.0, True, "", {"said": said}),)) for said in "xxy"]
    for evidence in (*floods, *moves):
        monitor.ask_for(ledger, "wiki", "rel-1", diagnose(evidence), evidence, {})
    rows = [(row["kind"], row["body"].get("voices")) for row in ledger.outbox("wiki")]
    assert rows == [("quarantine_ratings", ["a"]), ("quarantine_ratings", ["b"]), *[("recalibrate", None)] * 2]
