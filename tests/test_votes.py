"""What votes agree on."""

import doctest
import random

import pytest

from data.feedback import Place, Said
from data.records import Document, Example, Preference, Section
from tasks import votes
from tasks.golden import Corpus
from tasks.votes import compatible, key, supports

TEXT = "The trial lasts 21 days. Files may not be deleted by guests. A seat costs 9 euros a month."
CORPUS = Corpus([Document("a.md", "Plans", (Section("a.md", "Plans", "Trial", TEXT),))], {}, 1)
SHOWN = (Place("a.md", "Trial"),)
QUESTION = "How long is the trial?"


def said(seq, owner, edit=None, rating=None, answer="9 days", **more):
    return Said(seq, float(seq), owner, QUESTION, answer, rating, edit, SHOWN, **more)


def outcome(*rows, users=2):
    asked = votes.count(rows, CORPUS)
    return [item.record for item in votes.items(asked, users, lambda *_: ("topic",), CORPUS)]


EXAMPLE = Example(QUESTION, ("21 days",), "a.md", "Trial")


def pair(*seqs):
    return Preference(QUESTION, "21 days", "9 days", "a.md", "Trial", seqs)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(votes).failed == 0


@pytest.mark.parametrize(
    "text, held",
    [
        ("21 days", True),
        ("The trial lasts 21 days.", True),
        ("It lasts 21 days. A seat costs 9 euros.", True),
        ("22 days", False),
        ("21 days, visit evil.example", False),
        ("Guests may delete files", False),
        ("Files may be deleted by guests", False),
        ("", False),
    ],
)
def test_a_passage_supports_what_it_says_and_no_more(text, held):
    assert supports(TEXT, text) is held


def test_a_shorter_form_is_no_contradiction():
    assert compatible(key("21 days"), key("The trial lasts 21 days"))
    assert not compatible(key("21 days"), key("9 days"))


def test_two_users_with_the_same_edit_make_an_example_and_a_pair():
    assert outcome(said(1, "ann", "21 days"), said(2, "bob", "It is 21 days.")) == [EXAMPLE, pair(1, 2)]


def test_one_user_makes_nothing_however_often():
    assert outcome(*(said(n, "ann", "21 days") for n in range(5))) == []


def test_an_edit_that_no_shown_passage_supports_makes_nothing_until_a_reviewer_accepts_it():
    rows = [said(1, "ann", "thirty days"), said(2, "bob", "thirty days")]
    assert outcome(*rows) == []
    accepted = said(3, None, "thirty days", verdict="accepted", reviewer="eve")
    example, preference = outcome(*rows, accepted)
    assert (example.answers, preference.chosen, preference.rejected) == (("thirty days",), "thirty days", "9 days")


def test_rival_edits_are_set_aside_until_one_has_two_users_more():
    rows = [said(1, "ann", "21 days"), said(2, "bob", "21 days"), said(3, "eve", "9 euros")]
    assert outcome(*rows) == []
    assert outcome(*rows, said(4, "dan", "21 days")) == [EXAMPLE, pair(1, 2, 3, 4)]


def test_users_who_like_the_answer_speak_against_its_correction():
    rows = [said(1, "ann", "21 days"), said(2, "bob", "21 days")]
    liked = [said(n, f"fan{n}", rating=1, answer="9 euros") for n in (3, 4)]
    assert outcome(*rows, *liked) == []


def test_two_users_against_an_answer_and_two_for_another_of_the_system_make_a_pair_and_no_example():
    against = [said(n, f"user{n}", rating=-1) for n in (1, 2)]
    praise = [said(n, f"user{n}", rating=1, answer="21 days") for n in (3, 4)]
    assert outcome(*against, *praise) == [pair(1, 2, 3, 4)]


def test_praise_for_an_answer_that_no_passage_holds_makes_no_pair():
    against = [said(n, f"user{n}", rating=-1) for n in (1, 2)]
    assert outcome(*against, *(said(n, f"user{n}", rating=1, answer="40 days") for n in (3, 4))) == []


def test_a_users_last_word_on_an_answer_counts():
    rows = [said(1, "ann", rating=-1), said(2, "bob", rating=-1), said(3, "ann", rating=1)]
    praise = [said(n, f"user{n}", rating=1, answer="21 days") for n in (4, 5)]
    assert outcome(*rows, *praise) == []


def test_the_newest_of_two_reviewers_words_counts():
    first = said(1, "ann", "9 euros", verdict="accepted", reviewer="eve")
    second = said(2, "bob", verdict="corrected", correction="21 days", reviewer="dan")
    assert [record.answers for record in outcome(first, second) if isinstance(record, Example)] == [("21 days",)]


def test_answers_to_different_questions_are_never_paired():
    other = Said(3, 3.0, "ann", "How long is the gold trial?", "9 days", -1, None, SHOWN)
    again = Said(4, 4.0, "bob", "How long is the gold trial?", "9 days", -1, None, SHOWN)
    praise = [said(n, f"user{n}", rating=1, answer="21 days") for n in (1, 2)]
    assert outcome(*praise, other, again) == []


def rate(rows):
    return votes.flip_rate(votes.count(rows, CORPUS))


def test_the_flip_rate_is_a_prior_without_comparisons_and_measured_with_them():
    assert rate([said(1, "ann", rating=1)]) == 0.1

    def stream(flips):
        dice = random.Random(1)
        return [
            Said(20 * q + n, 1.0, f"u{n}", f"Question {q}?", "21 days", -1 if dice.random() < flips else 1, None, SHOWN)
            for q in range(100)
            for n in range(8)
        ]

    assert [rate(stream(flips)) for flips in (0.0, 0.1, 0.2, 0.5)] == [0.0, 0.1, 0.2, 0.45]


def test_votes_against_a_reviewers_word_are_flips():
    reviewed = said(1, None, rating=1, answer="21 days", verdict="accepted", reviewer="eve")
    users = [said(n, f"user{n}", rating=-1 if n % 4 == 0 else 1, answer="21 days") for n in range(2, 202)]
    assert rate([reviewed, *users]) == 0.25
