"""The review queue: what waits, who decided what, and what each verdict leads to."""

import pytest

from data import feedback, reviews
from data.records import Decision
from data.reviews import AGED, EDIT, HELD, LABEL, AlreadySettled, ask_aged, ask_held, ask_labels, items, settle
from tests.ledgers import new_ledger, release

ROW = {"id": "q1", "question": "How long?", "answers": ["30 days"], "document": "a.md", "section": "Trash"}
ROW |= {"origin": "given", "old": "Files stay 30 days.", "new": "Files stay 60 days.", "seen": "h2"}
ANSWER = {"question": "How long?", "references": ["30 days"], "answer": "30 days", "arm": "rel-1"}


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path, "wiki")


def one(ledger, kind):
    """The only waiting item of a kind, after putting one there."""
    if kind == AGED:
        ask_aged(ledger, "wiki", [ROW])
    elif kind == LABEL:
        ask_labels(ledger, "wiki", [ANSWER])
    elif kind == HELD:
        ask_held(ledger, "wiki", Decision("hold", "Not settled: correct.", "rel-2", "rel-1"))
    else:
        said = {"question": "How long?", "answer": "9 days", "chunks": ()}
        seq = ledger.add_feedback("wiki", release().id, "r1", -1, "30 days", None, "ann", "key", **said)
        ledger.ask_review("wiki", EDIT, {str(seq): {"question": "How long?", "answer": "9 days", "edit": "30 days"}})
    return items(ledger, "wiki", kind)[0]


@pytest.mark.parametrize("kind", [AGED, EDIT, LABEL, HELD])
def test_every_kind_stands_in_the_one_list_until_it_is_settled_with_who_and_when(ledger, kind):
    number = one(ledger, kind).number
    assert [item.number for item in items(ledger)] == [number]
    settled = settle(ledger, number, "discarded", " eve  berg ")
    assert (settled.state, settled.verdict, settled.reviewer) == ("settled", "discarded", "eve berg")
    assert settled.settled_at > 0 and items(ledger) == []


@pytest.mark.parametrize("kind", [AGED, EDIT, LABEL, HELD])
def test_settling_the_same_way_twice_changes_nothing_and_another_reviewer_is_refused(ledger, kind):
    number = one(ledger, kind).number
    first = settle(ledger, number, "accepted", "eve")
    assert settle(ledger, number, "accepted", "dan") == first
    with pytest.raises(AlreadySettled, match=r"was accepted by eve on .* ask them"):
        settle(ledger, number, "discarded", "dan")
    assert reviews.item(ledger, number) == first


def test_a_reviewer_may_change_their_mind_but_not_about_a_release(ledger):
    number = one(ledger, AGED).number
    settle(ledger, number, "accepted", "eve")
    changed = settle(ledger, number, "corrected", "eve", "60 days")
    assert (changed.verdict, changed.answer) == ("corrected", "60 days")
    assert changed.body["earlier"][0]["verdict"] == "accepted"
    held = one(ledger, HELD).number
    settle(ledger, held, "discarded", "eve")
    with pytest.raises(AlreadySettled):
        settle(ledger, held, "accepted", "eve")
    assert ledger.outbox() == []


@pytest.mark.parametrize(
    "kind, verdict, who, answer, golden, says",
    [
        (AGED, "liked", "eve", None, False, "use one of accepted, corrected, discarded"),
        (HELD, "corrected", "eve", "x", False, "use one of accepted, discarded"),
        (AGED, "accepted", " ", None, False, "Give a name"),
        (AGED, "accepted", "e" * 81, None, False, "at most 80"),
        (AGED, "corrected", "eve", " ", False, "what is the right answer"),
        (EDIT, "corrected", "eve", None, False, "what is the right answer"),
        (LABEL, "accepted", "eve", "x", False, "belongs to 'corrected'"),
        (LABEL, "accepted", "eve", None, True, "only an edit"),
        (EDIT, "discarded", "eve", None, True, "only an edit"),
    ],
)
def test_a_verdict_that_cannot_be_given_is_refused_and_the_item_goes_on_waiting(
    ledger, kind, verdict, who, answer, golden, says
):
    waiting = one(ledger, kind)
    with pytest.raises(ValueError, match=says):
        settle(ledger, waiting.number, verdict, who, answer, golden)
    assert reviews.item(ledger, waiting.number) == waiting


def test_an_unknown_number_is_named(ledger):
    with pytest.raises(KeyError, match="no number 7"):
        settle(ledger, 7, "accepted", "eve")


def test_an_aged_question_is_asked_once_for_each_state_of_its_source_and_not_when_it_votes_again(ledger):
    first = one(ledger, AGED).number
    ask_aged(ledger, "wiki", [ROW])
    assert [item.number for item in items(ledger)] == [first]
    ask_aged(ledger, "wiki", [ROW | {"new": "Files stay 70 days.", "seen": "h3"}])
    (second,) = items(ledger)
    assert second.number != first and "70 days" in second.shown["new"]
    with pytest.raises(AlreadySettled, match="waits for nobody"):
        settle(ledger, first, "accepted", "eve")
    ask_aged(ledger, "wiki", [ROW])
    assert [item.number for item in items(ledger)] == [first]
    ask_aged(ledger, "wiki", [])
    assert items(ledger) == []


def test_where_the_source_is_gone_the_old_answer_cannot_be_accepted(ledger):
    ask_aged(ledger, "wiki", [ROW | {"new": "", "seen": ""}])
    (gone,) = items(ledger)
    assert gone.shown["new"] == "(gone from the documents)"
    with pytest.raises(ValueError, match="its source is gone"):
        settle(ledger, gone.number, "accepted", "eve")


def test_rulings_hold_the_answers_as_decided_on_the_text_that_was_shown(ledger):
    settle(ledger, one(ledger, AGED).number, "corrected", "eve", "60 days, ask a@b.org")
    (ruling,) = reviews.rulings(ledger, "wiki")
    assert (ruling.question.answers, ruling.before) == (("60 days, ask [email]",), ("30 days",))
    assert (ruling.question.section_hash, ruling.text, ruling.by) == ("h2", "Files stay 60 days.", "eve")


def test_an_accepted_edit_is_reviewed_feedback_and_a_golden_one_says_so(ledger):
    number = one(ledger, EDIT).number
    settle(ledger, number, "accepted", "eve")
    (said,) = feedback.read(ledger, "wiki", find=lambda *_: {})
    assert said.reviewed and (said.verdict, said.reviewer, said.golden) == ("accepted", "eve", False)
    settle(ledger, number, "accepted", "eve", golden=True)
    assert feedback.read(ledger, "wiki", find=lambda *_: {})[0].golden


def test_feedback_that_a_model_was_trained_on_cannot_become_golden(ledger):
    from data.tables import trainings

    waiting = one(ledger, EDIT)
    row = {"assistant": "wiki", "model": "m" * 64, "snapshot": "s", "feedback": [int(waiting.subject)], "at": 0.0}
    with ledger.write() as c:
        c.execute(trainings.insert().values(**row))
    with pytest.raises(ValueError, match="was trained on"):
        settle(ledger, waiting.number, "accepted", "eve", golden=True)
    settle(ledger, waiting.number, "accepted", "eve")


def test_labels_are_one_and_zero_with_their_arm_and_the_arm_is_not_shown(ledger):
    more = [ANSWER | {"answer": text, "arm": "rel-2"} for text in ("60 days", "30 Days", "who knows")]
    ask_labels(ledger, "wiki", [ANSWER, *more])
    assert all("arm" not in item.shown for item in items(ledger))
    for item, verdict in zip(items(ledger), ("accepted", "corrected", "accepted", "discarded"), strict=True):
        settle(ledger, item.number, verdict, "eve")
    found = [(label["answer"], label["system"], label["label"]) for label in reviews.labels(ledger, "wiki")]
    assert found == [("30 days", "rel-1", 1), ("60 days", "rel-2", 0), ("30 Days", "rel-2", 1)]
    assert reviews.labels(ledger, "wiki")[0]["answers"] == ["30 days"]


def test_an_approved_release_is_a_decision_and_an_outbox_row_once_and_a_declined_one_no_row(ledger):
    number = one(ledger, HELD).number
    for _ in range(2):
        settle(ledger, number, "accepted", "eve")
    (row,) = ledger.outbox("wiki", ("open",))
    assert (row["kind"], row["body"]["release"], row["body"]["by"]) == ("approve", "rel-2", "eve")
    assert [(d["verdict"], d["reason"]) for d in ledger.decisions("wiki", "approval")] == [
        ("approved", "Approved by eve.")
    ]
    ask_held(ledger, "wiki", Decision("hold", "Again.", "rel-3", "rel-1"))
    settle(ledger, items(ledger)[0].number, "discarded", "eve")
    assert len(ledger.outbox()) == 1 and ledger.decisions("wiki", "approval")[0]["verdict"] == "declined"


def test_a_newer_hold_replaces_the_one_that_waits(ledger):
    one(ledger, HELD)
    ask_held(ledger, "wiki", Decision("hold", "Again.", "rel-3", "rel-1"))
    assert [item.body["release"] for item in items(ledger)] == ["rel-3"]


def test_what_a_forgotten_user_said_waits_for_nobody(ledger):
    number = one(ledger, EDIT).number
    feedback.forget(ledger, "wiki", "ann")
    assert items(ledger) == []
    with pytest.raises(AlreadySettled):
        settle(ledger, number, "accepted", "eve")
