"""What each remedy does, its steps replaced: it is judged as its assistant was, and its row says what came of it."""

import json
from dataclasses import replace

import pytest

from data import quarantine, reviews
from data.outbox import ask
from data.records import Chunk, Decision, Prompt, Shot, Snapshot, Sources, as_json
from flows import lifecycle, remedies
from tasks import precedents
from tasks.calibrate import Labelled, calibrate
from tasks.evaluate import changed_parts
from tasks.finetune import Training
from tests.ledgers import go_live, new_ledger, release

SNAPSHOT = Snapshot("snap", "uri", "wiki", *[0] * 8)
SHOT = Shot("When?", "30 days", Chunk("c1", "bin.md", "Bin", "Limits", "h", "After 30 days."), 1)
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


# --- the other remedies -----------------------------------------------------------------------


class Bench:
    """An assistant with a live release, its steps replaced; what was released and who was told."""

    def __init__(self, folder, monkeypatch, live=None):
        self.book, self.live = new_ledger(folder), live or release()
        self.book.register(Sources("wiki", "docs"), as_json(SNAPSHOT))
        go_live(self.book, self.live)
        work_on(self.book, monkeypatch)
        self.released, self.alerts = [], []
        monkeypatch.setattr(remedies, "release_candidate", self.release)
        monkeypatch.setattr(remedies, "heard", lambda *_: ())
        monkeypatch.setattr(remedies.report, "alert", lambda name, said: self.alerts.append(said))

    def release(self, candidate, kind, snapshot, gates):
        self.released.append((candidate, kind))
        return Decision("promote", "Not worse.", candidate.id)

    @property
    def row(self):
        return self.book.outbox("wiki")[-1]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


def test_reprompt_releases_worked_examples_over_the_live_model_and_index(bench, monkeypatch):
    monkeypatch.setattr(remedies, "choose_shots", lambda *_: (SHOT,))
    assert remedies.reprompt.fn("wiki").name == "Promoted"
    ((candidate, kind),) = bench.released
    assert kind == "reprompt" and candidate.prompt.shots == (SHOT,)
    assert changed_parts(candidate, bench.live) == {"prompt"}
    assert (bench.row["state"], bench.row["note"]) == ("acted", "Not worse.")


def test_too_few_reviewed_pairs_reprompt_nothing_and_say_so(bench, monkeypatch):
    monkeypatch.setattr(remedies, "choose_shots", lambda *_: ())
    assert remedies.reprompt.fn("wiki").name == "TooFew"
    assert bench.released == [] and "collect labels first" in bench.alerts[0]
    assert bench.row["state"] == "acted" and "collect labels first" in bench.row["note"]


def test_a_retrained_model_goes_without_the_examples_that_it_has_learnt(tmp_path, monkeypatch):
    bench = Bench(tmp_path, monkeypatch, replace(release(), prompt=Prompt(shots=(SHOT,))))
    trained = []
    monkeypatch.setattr(remedies, "prepare_and_index", lambda *_: (SNAPSHOT, bench.live.index))
    monkeypatch.setattr(remedies, "finetune_model", lambda *given: trained.append(given[2]) or release(model="c").model)
    remedies.retrain.fn("wiki")
    assert trained == [Prompt()] and bench.released[0][0].prompt == Prompt()


def test_collect_and_quarantine_touch_nothing_live_and_note_what_they_did(bench, monkeypatch):
    monkeypatch.setattr(remedies, "collect_answers", lambda *_: "9 answers listed")
    assert remedies.collect.fn("wiki").name == "Asked" and bench.row["note"] == "9 answers listed"
    seq = bench.book.open_remedy("wiki", "quarantine_ratings", "flood", {"voices": ["mob"]})
    assert remedies.quarantine_ratings.fn(outbox=seq).name == "SetAside"
    assert list(quarantine.aside(bench.book, "wiki")) == ["mob"] and "1 voice" in bench.alerts[0]
    assert bench.released == [] and bench.book.assistant("wiki")["live_seq"] == 1


def labelled(book, rows):
    answers = [{"question": q, "references": ["x"], "answer": said, "arm": arm} for q, said, arm, _ in rows]
    reviews.ask_labels(book, "wiki", answers)
    for item, (*_, right) in zip(reviews.items(book, "wiki"), rows, strict=True):
        reviews.settle(book, item.number, "accepted" if right else "corrected", "eve")


def test_recalibrate_compares_the_judge_with_the_labels_there_are_and_says_when_it_may_not_be_heard(bench, monkeypatch):
    labelled(bench.book, [("q1", "x", "rel-1", True), ("q2", "y", "rel-1", False)])
    asked = []
    verdicts = calibrate([Labelled("q1", ("x",), "x", "rel-1", 1)], [1.0], "tiny@1")
    monkeypatch.setattr(remedies, "compare", lambda name, items: asked.extend(items) or verdicts)
    monkeypatch.setattr(remedies.report, "calibration", lambda *_: None)
    listed = []
    monkeypatch.setattr(remedies.review, "ask", lambda book, of, items: listed.append((of, items)))
    assert remedies.recalibrate.fn("wiki").name == "Advisory"
    assert [(one.question, one.label) for one in asked] == [("q1", 1), ("q2", 0)]
    assert "it advises" in bench.alerts[0] and "it advises" in bench.row["note"]
    assert listed == [(bench.live.id, 200)], "too few labels: answers with references are listed"
    assert bench.released == [] and bench.book.assistant("wiki")["live_seq"] == 1


def test_what_a_person_asked_for_by_hand_is_the_row_that_a_flow_started_by_hand_takes(bench, monkeypatch):
    seq = ask(bench.book, "wiki", "collect", "ann")
    monkeypatch.setattr(remedies, "collect_answers", lambda *_: "done")
    remedies.collect.fn("wiki")
    assert [(row["seq"], row["state"]) for row in bench.book.outbox("wiki")] == [(seq, "acted")]
