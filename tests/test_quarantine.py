"""Ratings that a few users carry: who they are, what no longer counts, and that a person can give it back."""

from types import SimpleNamespace

import pytest

from data import feedback, quarantine, reviews
from flows import by_hand
from tasks import watch
from tasks.guards import ROWS, Guards, Known
from tasks.quarantine import carriers, set_aside
from tests.ledgers import new_ledger


@pytest.fixture
def book(tmp_path):
    return new_ledger(tmp_path, "wiki")


def row(owner, rating, user=None):
    return {"owner": owner, "user": user, "rating": rating}


CALM = [row(f"u{n % 20}", -1 if n % 10 == 0 else 1) for n in range(80)]


def test_one_voice_that_floods_is_named_with_its_share():
    voices, share = carriers([*CALM, *[row("mob", -1)] * 60], 0.12)
    assert voices == ("mob",) and share == pytest.approx(60 / 68)
    keyless = [row(None, -1, "bob")] * 60
    assert carriers([*CALM, *keyless], 0.12)[0] == ("without a key: bob",)


def test_a_busy_user_among_others_who_are_as_unhappy_carries_nothing():
    unhappy = [row(f"u{n % 20}", -1 if n % 2 else 1) for n in range(80)]
    assert carriers([*unhappy, *[row("busy", -1)] * 60], 0.12) == ((), 0.0)
    worse = [row(f"u{n % 20}", -1 if n % 6 == 0 else 1) for n in range(80)]
    busy = [row("busy", -1 if n % 6 == 0 else 1) for n in range(120)]
    assert carriers([*worse, *busy], 0.10) == ((), 0.0), "the others are too few to tell, but the busy one is no worse"


def test_where_nothing_got_worse_nobody_carries_it():
    assert carriers(CALM, 0.12) == ((), 0.0), "two gave all the bad ones, and there are no more of these than ever"


def test_nobody_is_few_among_four_or_over_a_handful_of_ratings():
    assert carriers([row("a", -1)] * 50 + [row(name, 1) for name in "bcd"], 0.12) == ((), 0.0)
    assert carriers([*[row(f"u{n}", 1) for n in range(40)], *[row("mob", -1)] * 4], 0.12) == ((), 0.0)
    assert carriers([*CALM, *[row(None, -1)] * 60], 0.12) == ((), 0.0), "without a user it is nobody's in particular"


def test_many_voices_are_not_few():
    crowd = [row(f"c{n}", -1) for n in range(60)]
    assert carriers([*CALM, *crowd], 0.12) == ((), 0.0)


def test_what_is_set_aside_counts_for_nothing_until_it_is_given_back_and_is_never_deleted(book):
    for owner in ("mob", "ann"):
        book.add_feedback("wiki", "rel", "r", -1, None, owner=owner, question="Q?", answer="A")
    said = set_aside(book, "wiki", ["mob"])
    assert "1 voice;" in said and "give-back" in said
    rows = book.feedback("wiki")
    assert len(rows) == 2
    assert [r["owner"] for r in quarantine.counted(book, "wiki", rows)] == ["ann"]
    assert "done already" in set_aside(book, "wiki", ["mob"])
    decision = book.decisions("wiki", "quarantine")[0]
    assert (decision["verdict"], decision["body"]["voices"]) == ("set aside", ["mob"])
    give_back = SimpleNamespace(word="give-back", assistant="wiki", voice=None)
    assert by_hand.run(book, give_back) == "mob"
    with pytest.raises(KeyError, match="nothing of 'ann' is set aside; set aside are: mob"):
        quarantine.give_back(book, "wiki", "ann", "eve")
    quarantine.give_back(book, "wiki", "mob", "eve", "they were right")
    assert len(quarantine.counted(book, "wiki", rows)) == 2
    assert "given back by eve: they were right" in book.decisions("wiki", "quarantine")[0]["reason"]
    assert by_hand.run(book, give_back) == "nothing is set aside"
    reasons = [one["reason"] for one in book.decisions("wiki", "quarantine")]
    assert len(reasons) == 2 and not any("mob" in one for one in (said, *reasons)), "a reason is shown to many"


def test_votes_set_aside_are_not_trained_on_unless_a_reviewer_accepts_them(book):
    for question in ("Q1?", "Q2?"):
        book.add_feedback("wiki", "rel", "r", -1, "B", owner="mob", question=question, answer="A")
    set_aside(book, "wiki", ["mob"])
    feedback.review_feedback(book, 2, "accepted", "eve")
    rows = feedback.read(book, "wiki", find=lambda *_: {})
    refused = ROWS["set aside"](rows, Known(None, (), (), Guards(), {}))
    assert list(refused) == [1] and "1 voice" in refused[1]


def test_by_hand_the_ratings_of_now_are_looked_at_against_what_is_usual(book):
    for one in [*CALM, *[row("mob", -1)] * 60]:
        book.add_feedback("wiki", "rel", "r", one["rating"], owner=one["owner"])
    assert "what is usual" in set_aside(book, "wiki")
    book.store_signals("wiki", {"ratings": {"detector": {"p0": 0.12}}})
    assert "set aside the ratings of 1 voice" in set_aside(book, "wiki")
    assert list(quarantine.aside(book, "wiki")) == ["mob"]
    assert "nothing to set aside" in set_aside(book, "wiki")


def test_the_monitor_names_the_voices_when_the_ratings_alarm(book):
    from tasks.index import Staleness
    from tasks.signals import Signal
    from tests.test_watch import LIVE, SMALL

    alarm = Signal("ratings", 1.0, True, "", {"state": {"p0": 0.12, "events": 100}, "rate": 0.5, "since": 0})
    states = {"ratings": {"promoted": None, "began": None, "deployed": None, "detector": None}}
    rated = [*CALM, *[row("mob", -1)] * 60]
    found = watch.concluded((alarm,), states, Staleness(()), None, LIVE, [], rated, SMALL)
    assert found.rating_alarm_voices == ("mob",) and found.rating_alarm_users_share > 0.5
    assert reviews.items(book) == []
