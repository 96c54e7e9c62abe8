"""What each remedy does, its steps replaced: it is judged as its assistant was, and its row says what came of it."""

import json
from dataclasses import replace

import pytest

from data import reviews
from data.records import Decision, Snapshot, as_json
from flows import lifecycle, remedies
from tasks import precedents
from tasks.finetune import Training
from tests.ledgers import go_live, new_ledger, release

SNAPSHOT = Snapshot("snap", "uri", "wiki", *[0] * 8)
OWN = remedies.GateSettings(margin=0.1, approval_hours=24)


def work_on(book, monkeypatch):
    """The flows read and write `book`; the events they send are returned."""
    sent: list[tuple] = []
    for module in (lifecycle, remedies):
        monkeypatch.setattr(module, "ledger", lambda: book)
        monkeypatch.setattr(module.events, "emit", lambda event, *_, **about: sent.append((event, about)))
    return sent


def test_remedies_are_judged_with_the_settings_that_their_assistant_was_judged_with(tmp_path, monkeypatch):
    book, used = new_ledger(tmp_path, "wiki"), []
    go_live(book, release())
    book.decide_gate("wiki", Decision("promote", "", release().id, settings=as_json(OWN)))
    book.decide("wiki", "gate", release(model="b").id, "reject", "put on record by hand", {})
    sent = work_on(book, monkeypatch)
    monkeypatch.setattr(remedies, "prepare_and_index", lambda *_: (SNAPSHOT, release(index="new").index))
    monkeypatch.setattr(remedies, "finetune_model", lambda *_: release(model="c").model)

    def released(candidate, kind, snapshot, gates):
        used.append((kind, gates))
        return Decision("promote", "", candidate.id)

    monkeypatch.setattr(remedies, "release_candidate", released)
    remedies.reindex.fn("wiki")
    remedies.retrain.fn("wiki")
    assert used == [("reindex", OWN), ("tuned", OWN)]
    assert [(event, about["kind"], about["outbox"]) for event, about in sent] == [
        ("perennial.remedy.concluded", "reindex", 1),
        ("perennial.remedy.concluded", "retrain", 2),
    ]


def test_a_retraining_goes_as_the_live_model_was_trained_unless_it_is_told_otherwise(tmp_path, monkeypatch):
    book, used = new_ledger(tmp_path, "wiki"), []
    (tmp_path / "training.json").write_text(json.dumps({"training": as_json(Training(minutes=2.5, rank=8))}))
    model = replace(
        release(model="d").model, adapter="c" * 64, adapter_uri=str(tmp_path / "adapter" / "weights.safetensors")
    )
    work_on(book, monkeypatch)
    monkeypatch.setattr(remedies, "prepare_and_index", lambda *_: (SNAPSHOT, release(index="new").index))
    monkeypatch.setattr(remedies, "finetune_model", lambda *given: used.append(given[4]) or release(model="c").model)
    monkeypatch.setattr(remedies, "release_candidate", lambda candidate, *_: Decision("promote", "", candidate.id))
    for live, told in ((release(), None), (replace(release(), model=model), None), (None, Training(minutes=1))):
        if live:
            go_live(book, live)
        remedies.retrain.fn("wiki", training=told)
    assert used == [Training(), Training(minutes=2.5, rank=8), Training(minutes=1)]


class Approved:
    """A held release that eve approved, and what the flow `approve` then does with it."""

    def __init__(self, folder, monkeypatch):
        self.book, self.live, self.held = new_ledger(folder, "wiki"), release(model="a"), release(model="c")
        go_live(self.book, self.live)
        self.hold(self.live.id)
        work_on(self.book, monkeypatch)
        self.released, self.alerts = [], []
        monkeypatch.setattr(remedies, "release_candidate", self.release)
        monkeypatch.setattr(remedies.report, "alert", lambda name, said, *_: self.alerts.append(said))

    def hold(self, champion):
        """The gate holds the candidate, and eve approves it in the review queue."""
        self.book.add_release(self.held, "tuned", champion, as_json(SNAPSHOT))
        decision = Decision("hold", "Not settled: correct.", self.held.id, champion, settings=as_json(OWN))
        self.book.decide_gate("wiki", decision)
        reviews.ask_held(self.book, "wiki", decision)
        reviews.settle(self.book, reviews.items(self.book)[0].number, "accepted", "eve")

    def release(self, candidate, kind, snapshot, gates):
        self.gates = gates
        self.released.append((candidate.id, kind, precedents.decided(self.book, candidate, self.live, snapshot, kind)))
        return self.released[-1][2]

    def run(self):
        return remedies.approve.fn(self.book.outbox("wiki", ("open",))[0]["seq"])


@pytest.fixture
def approved(tmp_path, monkeypatch):
    return Approved(tmp_path, monkeypatch)


def test_an_approved_release_goes_on_to_smoke_and_canary_with_a_decision_that_names_who(approved):
    assert approved.run().name == "Promoted"
    ((candidate, kind, decision),) = approved.released
    assert (candidate, kind, decision.verdict, decision.judged) == (approved.held.id, "tuned", "promote", "approval")
    assert "approved by eve; the gate held it: Not settled" in decision.reason
    assert approved.gates == OWN
    assert approved.book.outbox("wiki")[0]["state"] == "acted"


def test_an_approval_against_a_champion_that_is_no_longer_live_releases_nothing(approved):
    go_live(approved.book, release(model="d"))
    assert approved.run().name == "Held"
    assert approved.released == [] and "no longer held against what is live" in approved.alerts[0]
    assert approved.book.gate_decision(approved.held.id)["verdict"] == "hold"


def test_a_release_that_was_rejected_since_is_not_approved(approved):
    approved.book.decide_gate("wiki", Decision("reject", "Worse.", approved.held.id, approved.live.id))
    assert approved.run().name == "Rejected" and approved.released == []
