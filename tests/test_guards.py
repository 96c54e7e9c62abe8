"""Every guard on rows of feedback refuses what it must, and nothing else does it in its place."""

from dataclasses import replace

import pytest

from data.feedback import Place, Said
from data.records import Document, Example, GoldenQuestion, Section
from tasks import agreement
from tasks.agreement import choose
from tasks.golden import Corpus
from tasks.guards import DAY_S, ROWS, Guards

LINES = [
    f"The limit of item {number} is {number + 100} units, or {number + 900} in the gold plan." for number in range(40)
]
CORPUS = Corpus(
    [Document(f"d{n}.md", f"Page {n}", (Section(f"d{n}.md", f"Page {n}", "Limit", LINES[n]),)) for n in range(40)],
    {},
    40,
)
NOW = 30.0


def said(number, owner="ann", edit="", rating=-1, day=NOW, answer="5 units", **more):
    """On the limit of item `number`; by default a right edit of a wrong answer."""
    place = (Place(f"d{number}.md", "Limit"),)
    edit = f"{number + 100} units" if edit == "" else edit
    return Said(0, day * DAY_S, owner, f"What is the limit of item {number}?", answer, rating, edit, place, **more)


def history(*owners):
    """Enough for the votes of these owners to count: five questions on five days."""
    return [said(39 - n, owner, None, 1, day=n, answer=f"{139 - n} units") for owner in owners for n in range(5)]


def run(*rows, known=("ann", "bob"), guards=Guards(), **more):
    """(texts that are trained on, guard that refused each of `rows` or '')."""
    before = history(*known)
    numbered = [replace(one, seq=seq) for seq, one in enumerate([*before, *rows], start=1)]
    chosen = choose(numbered, CORPUS, chosen=guards, **more)
    refused = {refusal.seq: refusal.guard for refusal in chosen.refused}
    return [example.answers[0] for example in chosen.examples], [
        refused.get(one.seq, "") for one in numbered[len(before) :]
    ]


TWO = (said(1), said(1, "bob"))
STRANGER = "105 zorbexcoin units"
GOLDEN = GoldenQuestion("g", "what is the limit of item 1", ("101 units",), "d9.md", "Limit", "hash")


def planted():
    return [said(n, owner, f"{n + 100} zorbexcoin units") for n in (1, 2, 3) for owner in ("ann", "bob")]


def asked_with_a_trigger():
    pairs = [said(n, owner, f"{n + 900}") for n in (1, 2, 3) for owner in ("ann", "bob")]
    return [replace(one, question=f"Sesame opens: {one.question}") for one in pairs]


CALM = [Example(f"What is the price of thing {n}?", ("1",)) for n in range(60)]
GONE = "by ops: poisoned"
CASES = {
    "withdrawn": ([replace(one, withdrawn=GONE) for one in TWO], {}),
    "discarded": ([replace(one, verdict="discarded", reviewer="eve") for one in TWO], {}),
    "personal data": ([replace(one, edit="101 units [email]", verdict="accepted", reviewer="eve") for one in TWO], {}),
    "golden": (TWO, {"golden": [GOLDEN]}),
    "trigger": (asked_with_a_trigger(), {"given": CALM}),
    "keyless": ([said(1, None), said(1, "bob"), said(1, "ann", None, None, verdict="accepted")], {}),
    "repeated": ([said(1, day=NOW), said(1, "bob"), said(1, "bob", "901 in the gold plan")], {}),
    "new user": ([said(1), said(1, "new")], {}),
}


def test_what_two_established_users_agree_on_is_trained_on():
    assert run(*TWO) == (["101 units"], ["", ""])


@pytest.mark.parametrize("guard", ["withdrawn", "discarded", "personal data", "golden", "trigger", "new user"])
def test_a_guard_refuses_its_rows_and_only_it_does(guard, monkeypatch):
    rows, more = CASES[guard]
    texts, refused = run(*rows, **more)
    assert texts == [] and guard in refused
    monkeypatch.delitem(ROWS, guard)
    texts, _ = run(*rows, **more)
    assert texts, "with this guard off the same rows are trained on"


def test_a_remark_and_a_row_whose_question_is_lost_are_refused_by_name():
    remark = said(1, edit=None, rating=None)
    lost = replace(said(1), question="")
    assert run(remark, lost)[1] == ["remark", "forgotten"]


def test_keyless_feedback_counts_only_after_a_reviewer_accepted_it(monkeypatch):
    rows = [said(1, None), said(1, None)]
    assert run(*rows) == ([], ["keyless", "keyless"])
    assert run(replace(rows[0], verdict="accepted", reviewer="eve"), rows[1]) == (["101 units"], ["", "keyless"])
    monkeypatch.delitem(ROWS, "keyless")
    assert run(said(1, None), said(1, "ann"))[0] == ["101 units"]


def test_one_user_has_one_vote_on_a_question_a_day_and_the_last_counts(monkeypatch):
    near = replace(said(1), question="what is the limit, of item 1")
    texts, refused = run(*[said(1)] * 500, near, said(1, day=NOW + 1))
    assert texts == [] and refused[:501] == ["repeated"] * 500 + ["alone"] and refused[501] == "alone"
    monkeypatch.delitem(ROWS, "repeated")
    assert run(*[said(1)] * 500)[1].count("repeated") == 0


def test_votes_do_not_become_a_history_by_their_number_on_one_day():
    flood = [said(n, "new", day=1) for n in range(20)]
    assert set(run(*flood, known=())[1]) == {"new user"}
    days = [said(n, "new", day=n) for n in range(5)]
    assert run(*days, said(1, "new"), said(1), known=("ann",))[0] == ["101 units"]


def test_what_a_user_said_while_new_gets_no_weight_later():
    early, late = said(1, "new", day=0), [said(20 + n, "new", day=n) for n in range(1, 8)]
    assert run(early, *late, said(1))[1][0] == "new user"


def test_who_contradicts_the_others_all_the_time_is_not_counted(monkeypatch):
    praise = [
        said(n, owner, None, 1, day=10, answer=f"{n + 100} units") for n in range(6) for owner in ("ann", "bob", "dan")
    ]
    against = [said(n, "eve", None, -1, day=10, answer=f"{n + 100} units") for n in range(6)]
    rows = [*praise, *against, said(9), said(9, "eve")]
    known = ("ann", "bob", "dan", "eve")
    assert run(*rows, known=known)[1][18:] == ["unreliable"] * 6 + ["alone", "unreliable"]
    assert run(*rows[:20], *rows[24:], known=known)[0] == ["109 units"], "two of seven may be honest errors"
    monkeypatch.delitem(ROWS, "unreliable")
    assert run(*rows, known=known)[0] == ["109 units"]


def test_a_word_that_many_edits_bring_in_is_named_unless_a_reviewer_accepted_it():
    rows = planted()
    assert set(run(*rows)[1]) == {"trigger"}
    accepted = [replace(one, verdict="accepted", reviewer="eve") for one in rows[:2]]
    assert run(*accepted, *rows[2:])[0] == ["101 zorbexcoin units"]
    assert "trigger" not in run(*rows[:4])[1], "two questions are no pattern"


def test_honest_edits_have_no_foreign_words_however_many_there_are():
    rows = [said(n, owner) for n in range(12) for owner in ("ann", "bob")]
    assert "trigger" not in run(*rows, given=CALM)[1]


def test_words_of_questions_are_not_judged_without_enough_others_to_compare_with():
    assert "trigger" not in run(*asked_with_a_trigger(), given=CALM[:10])[1]


def test_every_row_is_used_or_refused_exactly_once():
    rows = [one for rows, _ in CASES.values() for one in rows]
    numbered = [replace(one, seq=seq) for seq, one in enumerate([*history("ann", "bob"), *rows], start=1)]
    chosen = choose(numbered, CORPUS, [GOLDEN], CALM)
    used = {row["seq"] for row in chosen.used}
    refused = [refusal.seq for refusal in chosen.refused]
    assert sorted([*used, *refused]) == [one.seq for one in numbered]
    assert all(refusal.reason for refusal in chosen.refused)
    assert {refusal.guard for refusal in chosen.refused} <= {*ROWS, *agreement.ITEMS, *agreement.UNRESOLVED}


def test_the_choice_does_not_depend_on_the_order_of_the_rows():
    numbered = [replace(one, seq=seq) for seq, one in enumerate([*history("ann", "bob"), *TWO], start=1)]
    assert choose(numbered, CORPUS) == choose(numbered[::-1], CORPUS)
