"""Golden sets by hash, and how many tuned candidates one has judged."""

import json
from dataclasses import replace

import pytest

from data import golden_sets
from data.golden_sets import golden_hash, record, tuned_decisions
from data.records import GoldenQuestion
from tasks import evaluate
from tasks.gate import GateSettings
from tests.ledgers import new_ledger, release


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path, "wiki")


def questions(numbers, state="active"):
    return [GoldenQuestion(f"q{n}", f"Question {n}?", (f"{n} days",), "a.md", "S", "h", state) for n in numbers]


def judged(ledger, name, asked, kind="tuned"):
    """One decision of the gate on a candidate of this kind, taken on these questions."""
    candidate = release(model=name)
    ledger.add_release(candidate, kind, None, {})
    body = {"golden": record(ledger, "wiki", asked)} if asked is not None else {}
    ledger.decide("wiki", "gate", candidate.id, "reject", "", body)
    return candidate.id


def test_the_hash_is_of_what_is_asked_and_not_of_order_binding_or_what_is_set_aside():
    asked = questions(range(10))
    moved = [replace(one, section="T", section_hash="i", state="rederived") for one in reversed(asked)]
    assert golden_hash(asked) == golden_hash([*moved, *questions([99], "aged")])
    corrected = [replace(asked[0], answers=("9 weeks",)), *asked[1:]]
    assert len({golden_hash(asked), golden_hash(asked[1:]), golden_hash(corrected)}) == 3


def test_a_set_is_recorded_once_with_how_many_are_synthetic(ledger):
    asked = [replace(one, origin="generated") for one in questions(range(3))] + questions([9])
    assert record(ledger, "wiki", asked) == record(ledger, "wiki", asked[::-1])
    (row,) = ledger.rows(golden_sets.golden_sets.select())
    assert (len(row["questions"]), row["synthetic"]) == (4, 3)


def test_a_tuned_candidate_wears_the_set_it_was_judged_on_once(ledger):
    asked = questions(range(10))
    first = judged(ledger, "a", asked)
    ledger.decide("wiki", "gate", first, "hold", "", {"golden": golden_hash(asked)})
    judged(ledger, "c", asked, "reprompt")
    judged(ledger, "d", asked, "reindex")
    assert tuned_decisions(ledger, "wiki", asked) == 2
    assert tuned_decisions(ledger, "wiki", asked, but=first) == 1


def test_only_new_questions_replace_part_of_a_set(ledger):
    judged(ledger, "a", questions(range(10)))
    assert tuned_decisions(ledger, "wiki", questions(range(5))) == 1, "questions that left replace nothing"
    assert tuned_decisions(ledger, "wiki", questions(range(1, 11))) == 1, "a tenth is new"
    assert tuned_decisions(ledger, "wiki", questions(range(2, 12))) == 0, "a fifth is new"


def test_a_decision_of_before_sets_had_a_hash_wears_none(ledger):
    record(ledger, "wiki", questions(range(5)))
    judged(ledger, "a", None)
    assert tuned_decisions(ledger, "wiki", questions(range(5))) == 0


def test_a_decision_and_its_report_carry_the_set_and_say_how_much_of_it_is_synthetic(tmp_path):
    body = {"candidate": None, "champion": None, "hard": {"whole": "no"}, "probes": None, "first_tuned": False}
    body |= {"changed": ["model"], "repeated": {}, "about": {"suite": "s"}}
    (tmp_path / "e.json").write_text(json.dumps(body))
    sha = golden_hash(questions(range(3)))
    stored = evaluate.Evaluation(str(tmp_path / "e.json"), "rel-2", "rel-1", "tuned", 3, 0, 1.0, sha, 2)
    decision = evaluate.decide(stored, "tuned", GateSettings())
    assert decision.golden == sha and "2 voting questions are synthetic" in decision.notes[-2]
    assert decision.notes[-1] == f"Golden set: {sha}."


def of_documents(numbers, each=4):
    return [replace(one, id=f"{d}-{one.id}", document=f"d{d}.md") for d in numbers for one in questions(range(each))]


def test_a_fifth_of_the_documents_is_sealed_and_stays_so_whatever_joins_or_leaves():
    few, many = of_documents(range(40)), of_documents(range(400))
    apart = golden_sets.sealed(many)
    assert 0.15 < len(apart) / len(many) < 0.25
    assert golden_sets.sealed(few) == apart & {one.id for one in few}
    documents = {one.document for one in many if one.id in apart}
    assert apart == {one.id for one in many if one.document in documents}
    assert {one.id for one in golden_sets.open_part(many)} == {one.id for one in many} - apart


def test_what_is_sealed_stays_so_when_questions_of_most_documents_age():
    many = [replace(one, section=f"S{at % 4}") for at, one in enumerate(of_documents(range(20)))]
    aged = [replace(one, state="aged") if at >= 40 else one for at, one in enumerate(many)]
    assert golden_sets.sealed(aged) == golden_sets.sealed(many)
    assert golden_sets.sealed([one for one in aged if one.votes]) != golden_sets.sealed(many), "half a set says less"


def test_with_few_documents_sections_are_sealed_so_that_something_stays_open():
    one_book = [replace(one, section=f"S{n}") for n, one in enumerate(questions(range(100)))]
    assert 0.1 < len(golden_sets.sealed(one_book)) / 100 < 0.3
