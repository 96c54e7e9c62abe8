"""What earlier decisions mean for the next one: looks that were used, sets that are worn, decisions that stand."""

import json
from dataclasses import replace

import pytest

from data import snapshots
from data.records import Chunk, Decision, GoldenQuestion, Prompt, Shot, Snapshot
from tasks import evaluate, precedents
from tasks.evaluate import Evaluation, Suite, changed_parts, suite_hash
from tests.ledgers import new_ledger, release

SNAPSHOT = Snapshot("snap", "uri", "wiki", *[0] * 8)


@pytest.fixture
def made(tmp_path):
    """A ledger, and a function that stores an evaluation of so many questions from a first one on."""
    book = new_ledger(tmp_path, "wiki")

    def evaluated(candidate, name: str, first: int = 0, questions: int = 10) -> Evaluation:
        book.add_release(candidate, "tuned", None, {})
        stored = tmp_path / f"{name}.json"
        ids = [f"q{at}" for at in range(first, first + questions)]
        stored.write_text(json.dumps({"candidate": {"questions": ids}}))
        return Evaluation(str(stored), candidate.id, "rel-live", "tuned", questions, 0, 1.0)

    return book, evaluated


def held(evaluation: Evaluation, look: int = 1, alpha: float = 0.05, verdict: str = "hold") -> Decision:
    return Decision(
        verdict, "", evaluation.release, "rel-live", look=look, alpha=alpha, evaluation=evaluation.uri, suite="s"
    )


def test_a_hold_on_other_scores_was_a_look_and_the_same_scores_are_not_counted_twice(made):
    book, evaluated = made
    first, second = evaluated(release(model="a"), "first"), evaluated(release(model="a"), "second")
    for decision in (held(first), held(first), held(second, look=0)):
        book.decide_gate("wiki", decision)
    assert precedents.looks_before(book, first) == ()
    assert precedents.looks_before(book, second) == (0.05,)
    assert precedents.looks_before(book, evaluated(release(model="b"), "other")) == ()


def test_an_accepting_decision_stands_for_the_same_suite_only(made, monkeypatch):
    book, evaluated = made
    golden = [GoldenQuestion("q1", "How many?", ("8",), "d", "s", "hash")]
    monkeypatch.setattr(snapshots, "golden", lambda snapshot: golden)
    live, candidate = release(model="b"), release(model="a")
    asked, _ = evaluate.questions_for(SNAPSHOT, "rollback", Suite())
    accepted = replace(held(evaluated(candidate, "x"), verdict="promote"), champion=live.id)
    book.decide_gate("wiki", replace(accepted, suite=suite_hash(asked, Suite())))
    assert precedents.decided(book, candidate, live, SNAPSHOT, "rollback").accepted
    golden[0] = replace(golden[0], answers=("9",))
    assert precedents.decided(book, candidate, live, SNAPSHOT, "rollback") is None
    book.decide_gate("wiki", replace(accepted, suite="of before", judged="approval"))
    assert precedents.decided(book, candidate, live, SNAPSHOT, "rollback").judged == "approval", "a person's yes stands"


def test_a_decision_stands_where_a_worked_example_kept_a_question_from_voting(made, monkeypatch):
    book, evaluated = made
    golden = [GoldenQuestion(f"q{at}", f"How many in {at}?", ("8",), "d", "s", "hash") for at in range(2)]
    monkeypatch.setattr(snapshots, "golden", lambda snapshot: golden)
    example = Shot("how many in 1", "8", Chunk("c", "d", "D", "s", "h", "There are 8."), 1)
    live, candidate = release(), replace(release(), prompt=Prompt(shots=(example,)))
    suite = suite_hash(golden[:1], Suite())
    book.decide_gate("wiki", replace(held(evaluated(candidate, "x"), verdict="promote"), champion=live.id, suite=suite))
    assert precedents.decided(book, candidate, live, SNAPSHOT, "rollback").accepted


def test_the_untuned_means_are_those_of_the_same_suite(made):
    book, evaluated = made
    base, tuned, later = release(model="b"), release(model="a"), release(model="c")
    book.add_release(base, "bootstrap", None, {})
    first = replace(held(evaluated(tuned, "x")), champion=base.id, baseline={"correct": 0.2})
    book.decide_gate("wiki", first)
    now = held(evaluated(later, "y"))
    assert precedents.untuned(book, now) == {"correct": 0.2}
    assert precedents.untuned(book, replace(now, suite="another")) is None


def test_what_changed_is_seen_by_what_is_served():
    live = release()
    assert changed_parts(live, None) == set(evaluate.TOUCHES)
    assert changed_parts(live, live) == set()
    assert changed_parts(release(model="z", index="new"), live) == {"model", "index"}
    worded = replace(live, prompt=replace(live.prompt, system="Answer."), index=replace(live.index, uri="elsewhere"))
    assert changed_parts(worded, live) == {"prompt"}
