"""What the lifecycle flow decides by itself, its steps replaced."""

import pytest

from data.records import Decision, Snapshot
from flows import lifecycle
from tests.ledgers import new_ledger, release

SNAPSHOT = Snapshot("snap", "uri", "wiki", *[0] * 8)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """`compared` on three candidates with the verdicts and shares of correct answers given."""
    book = new_ledger(tmp_path, "wiki")
    shown = []
    monkeypatch.setattr(lifecycle, "ledger", lambda: book)
    monkeypatch.setattr(lifecycle, "mirror", lambda *_, **__: None)
    monkeypatch.setattr(lifecycle.report, "bases", lambda *given: shown.append(given[3]))

    def compare(*verdicts):
        candidates = [release(model=letter) for letter in "abc"]
        decisions = iter(verdicts)

        def gated(candidate, live, kind, snapshot, gates):
            verdict, correct = next(decisions)
            return Decision(verdict, "", candidate.id, metrics={"correct": correct})

        monkeypatch.setattr(lifecycle, "gated", gated)
        best = lifecycle.compared(candidates, [None] * 3, SNAPSHOT, lifecycle.GateSettings())
        assert [decision.release for decision in shown[-1]] == [candidate.id for candidate in candidates]
        assert {book.release(candidate.id).id for candidate in candidates} == {c.id for c in candidates}
        return "abc"[candidates.index(best)]

    return compare


def test_of_several_bases_the_accepted_one_with_most_correct_answers_is_taken(judged):
    assert judged(("promote", 0.5), ("promote", 0.6), ("reject", 0.9)) == "b"


def test_of_several_bases_none_accepted_the_first_is_taken_and_its_refusal_told(judged):
    assert judged(("hold", 0.5), ("reject", 0.6), ("hold", 0.9)) == "a"
