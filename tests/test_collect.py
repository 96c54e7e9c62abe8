"""Asking for labels: which answers are listed first, which never, and what comes of what people say."""

from dataclasses import replace

import numpy as np
import pytest

from data import feedback, reviews
from data.records import Answer, Chunk, Generation
from tasks.collect import askable, informative, shown, uncertainty
from tasks.labels import collected, labels, untrained
from tests.ledgers import new_ledger, release

LIVE = release()
AXES = {"bin": 0, "link": 1, "seats": 2, "sync": 3}


def vector(text: str) -> np.ndarray:
    row = np.full(8, 0.01, np.float32)
    row[next((at for word, at in AXES.items() if word in text), 7)] = 1.0
    return row / np.linalg.norm(row)


def embed(texts):
    return np.stack([vector(text) for text in texts])


def logged(question, grounding=1.0, **more) -> dict:
    row = {"response": f"r-{question}", "source": "user", "status": 200, "release": LIVE.id, "tenant": "", "user": None}
    row |= {"question": question, "answer": "30 days", "abstained": False, "similarity": 0.8, "scores": [1.0, 0.4]}
    row |= {"grounding": grounding, "embedding": vector(question).astype(np.float16).tobytes(), "chunks": ["c1"]}
    return row | more


def alike(questions):
    """A release that says the same again."""
    return [Answer(q, "30 days", False, (), (), Generation("30 days", 1, 1, "stop", 0.1, 0.1)) for q in questions]


def best(rows, most, known=(), again=alike):
    return [row["question"] for row in informative(rows, most, embed, known, again)]


@pytest.fixture
def book(tmp_path):
    return new_ledger(tmp_path, "wiki")


def test_the_uncertain_answers_come_first():
    rows = [logged("bin one"), logged("link two", grounding=0.2), logged("seats three", grounding=0.6)]
    assert best(rows, 3) == ["link two", "seats three", "bin one"]
    assert uncertainty(logged("q", abstained=True)) == 1.0, "declined although a passage was near"
    assert uncertainty(logged("q", abstained=True, similarity=0.1)) == 0.0


def test_of_questions_that_are_about_the_same_one_is_asked():
    rows = [*(logged(f"bin {n}", grounding=0.1) for n in range(10)), logged("link"), logged("seats")]
    assert sorted(question.split()[0] for question in best(rows, 5)) == ["bin", "link", "seats"]


def test_a_new_topic_comes_before_one_that_is_known():
    rows = [logged("bin again"), logged("sync now")]
    assert best(rows, 2, known=["what of the bin"]) == ["sync now", "bin again"]


def test_an_answer_that_changes_with_the_words_of_its_question_is_uncertain():
    def fickle(questions):
        return [
            replace(answer, text="ten weeks") if "link" in answer.question else answer for answer in alike(questions)
        ]

    rows = [logged("bin one"), logged("link two")]
    assert best(rows, 2, again=fickle) == ["link two", "bin one"]


def test_a_passage_that_barely_stands_out_makes_an_answer_uncertain():
    rows = [logged("bin one"), logged("link two", scores=[1.0, 0.99])]
    assert best(rows, 1) == ["link two"]


@pytest.mark.parametrize(
    "more",
    [
        {"tenant": "acme"},
        {"source": "canary"},
        {"status": 500},
        {"release": "rel-other"},
        {"embedding": None},
        {"question": "how long is the BIN kept"},
    ],
    ids=str,
)
def test_nobody_is_asked_about_a_tenants_question_a_test_a_failure_or_what_is_known(more):
    known = ["How long is the bin kept?"]
    assert askable([logged("seats"), logged("link") | more], LIVE, known) == [logged("seats")]


# --- what comes back --------------------------------------------------------------------------


def ask(book, *questions, **more):
    chunk = Chunk("c1", "bin.md", "Bin", "Limits", "h", "The bin is emptied after 30 days.")
    rows = [shown(logged(question, **more), [chunk]) for question in questions]
    return reviews.ask_answers(book, "wiki", rows)


def settle(book, verdict, answer=None):
    reviews.settle(book, reviews.items(book, "wiki", reviews.LABEL)[0].number, verdict, "eve", answer)


def test_an_answer_is_listed_once_with_its_passages_and_without_why(book):
    assert ask(book, "bin", "link") == 2 and ask(book, "link", "seats") == 1
    assert [one.title for one in reviews.items(book)] == ["bin", "link", "seats"], "the most informative first"
    assert reviews.items(book)[0].shown == {
        "question": "bin",
        "answer": "30 days",
        "passages": "Bin > Limits: The bin is emptied after 30 days.",
    }
    assert reviews.asked_before(book, "wiki") == ["bin", "link", "seats"]


def test_labels_that_were_asked_for_are_learnt_from_and_never_counted_as_a_rate(book):
    ask(book, "bin", "link", "seats", "sync")
    for verdict, answer in (("accepted", None), ("corrected", "ten days"), ("corrected", None), ("discarded", None)):
        settle(book, verdict, answer)
    found = collected(book, "wiki")
    assert [(one.question, one.wrong, one.right) for one in found] == [
        ("bin", False, "30 days"),
        ("link", True, "ten days"),
        ("seats", True, ""),
    ]
    assert all(one.seq < 0 and one.release == LIVE.id for one in found)
    assert labels(book, "wiki") == [], "the detector of reviewed answers does not see them"
    assert untrained(book, LIVE, found) == (2, 1)
    heard = [one for one, _ in reviews.said(book, "wiki")]
    assert [(one.verdict, one.correction, one.reviewed) for one in heard[:2]] == [
        ("accepted", None, True),
        ("corrected", "ten days", True),
    ]
    assert heard[0].places == (feedback.Place("bin.md", "Limits"),)
    assert reviews.labels(book, "wiki") == [], "without references a judge cannot be compared"


def test_a_reviewer_who_changes_their_mind_changes_the_label(book):
    ask(book, "bin")
    number = reviews.items(book)[0].number
    reviews.settle(book, number, "accepted", "eve")
    reviews.settle(book, number, "corrected", "eve", "ten days")
    assert [(one.wrong, one.right) for one in collected(book, "wiki")] == [(True, "ten days")]


def test_a_label_is_withdrawn_by_its_number_or_by_who_asked_the_question(book):
    ask(book, "bin", user="ann")
    ask(book, "link", user="bob")
    ask(book, "seats", user="bob")
    for _ in range(3):
        settle(book, "accepted")
    first, second, third = (label.seq for label in collected(book, "wiki"))
    with pytest.raises(KeyError, match="no feedback number -99"):
        feedback.withdraw(book, "wiki", "?", "ops", seqs=(-99,))
    assert feedback.withdraw(book, "wiki", "wrong product", "ops", seqs=(first,)) == (first,)
    assert feedback.withdraw(book, "wiki", "a flood", "ops", user="bob", until=0.0) == ()
    assert [label.question for label in collected(book, "wiki")] == ["link", "seats"]
    assert set(feedback.withdraw(book, "wiki", "a flood", "ops", user="bob")) == {second, third}
    assert collected(book, "wiki") == []
    assert reviews.said(book, "wiki")[0][0].withdrawn == "by ops: wrong product"


def test_who_is_forgotten_leaves_no_question_in_the_queue(book):
    ask(book, "bin", user="ann")
    ask(book, "link", user="bob")
    settle(book, "accepted")
    feedback.forget(book, "wiki", "ann")
    assert collected(book, "wiki") == [] and reviews.asked_before(book, "wiki") == ["link"]


def test_a_question_taken_back_by_a_wish_to_be_forgotten_keeps_no_other_label_from_being_read(book):
    for question, user in (("bin", "ann"), ("link", "bob"), ("seats", "ann")):
        ask(book, question, user=user)
    for right in ("accepted", "accepted"):
        settle(book, right)
    feedback.forget(book, "wiki", "ann")
    assert reviews.items(book) == [] and [one.question for one, _ in reviews.said(book, "wiki")] == ["link"]
    gone = reviews.items(book, "wiki", reviews.LABEL, "settled")
    assert [(one.verdict, one.body == {}) for one in gone] == [
        ("accepted", True),
        ("accepted", False),
        ("discarded", True),
    ]
