"""What users made of two releases becomes one value a voice, and a verdict follows."""

from dataclasses import replace

import pytest

from data import feedback, quarantine, splits
from data.records import as_json
from data.requests import Logged, RequestLog
from serving.keys import Key, create
from tasks import split as comparison
from tasks.betting import Difference
from tasks.split import LABEL, LIVE, RATING, Compared, Plan, Score, units
from tests.ledgers import accept, go_live, new_ledger, release

A, B = release(model="a"), release(model="c")
PLAN = Plan(hours=1.0)
HOUR = 3600.0


class Place:
    """A running split test with its ledger and log; `ask` and `rate` are what users do."""

    def __init__(self, folder):
        self.book, self.log = new_ledger(folder, "wiki"), RequestLog(f"sqlite:///{folder}/requests.db")
        go_live(self.book, A)
        accept(self.book, B)
        self.test = splits.start(self.book, "wiki", A.id, B.id, 0.5, as_json(PLAN))
        self.keys = {}
        for owner in ("ann", "bob"):
            create(self.book, Key(f"key-{owner}", owner))
            self.keys[owner] = f"key-{owner}"

    def ask(self, arm, user, owner="", n=1, **more):
        """One answered request; its response id."""
        response = f"{owner}/{user}/{n}"
        at = self.test.started + n
        row = Logged(response, at, "wiki", (B if arm == "b" else A).id, arm, user=user, question="q", answer="w")
        row.key = self.keys.get(owner, "")
        row.abstained, row.grounding, row.similarity = False, 0.8, 0.9
        for name, value in more.items():
            setattr(row, name, value)
        self.log.write(row)
        return response

    def rate(self, response, rating, owner=None, user=None, edit=None):
        about = (None, response, rating, edit, None, user, owner, "q", "w")
        return self.book.add_feedback("wiki", *about)

    def scores(self, *kinds):
        """Voice, response and kind of every score there is -> its value."""
        self.log.flush()
        answers = comparison.answered(comparison.asked(self.book, self.log, self.test))
        self.seen = [*comparison.said(self.book, self.test, answers), *comparison.live_quality(answers)]
        return {(s.asker, s.response, s.kind): s.value for s in self.seen if s.kind in kinds}

    def compare(self, hours=100.0):
        self.log.flush()
        return comparison.compare(self.book, self.log, self.test, self.test.started + hours * HOUR)


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.log.close()


# --- whose score, and which -------------------------------------------------------------------


def test_a_rating_counts_when_it_is_by_whoever_asked(place):
    mine, others, keyed = place.ask("a", "eve"), place.ask("b", "max"), place.ask("b", "1", "ann")
    place.rate(mine, 1, user="eve")
    place.rate(others, 1, user="eve")
    place.rate(keyed, -1, owner="bob", user="1")
    place.rate(keyed, 1, owner="ann", user="1")
    assert place.scores(RATING) == {("/eve", mine, RATING): 1.0, ("ann/1", keyed, RATING): 1.0}


def test_the_same_user_name_under_two_keys_is_two_voices_and_two_keys_of_one_owner_are_one(place):
    create(place.book, Key("second", "ann"))
    place.keys["ann again"] = "second"
    for n, owner in enumerate(("ann", "bob", "ann again"), start=1):
        place.rate(place.ask("a", "1", owner, n), 1, owner=owner.split()[0], user="1")
    assert {asker for asker, *_ in place.scores(RATING)} == {"ann/1", "bob/1"}


def test_answers_to_nobody_in_particular_and_what_our_own_processes_asked_do_not_count(place):
    place.rate(place.ask("a", None, n=1), 1)
    place.rate(place.ask("b", "eve", n=2, source="canary"), 1, user="eve")
    place.rate(place.ask("b", "eve", n=3, source="direct"), 1, user="eve")
    place.rate(place.ask("canary", "eve", n=4), 1, user="eve")
    place.rate(place.ask("b", "eve", n=5, release=A.id), 1, user="eve")
    assert place.scores(RATING, LIVE) == {} and place.compare().nobody == 1


def test_a_reviewed_label_goes_before_the_rating_and_a_later_rating_before_an_earlier_one(place):
    labelled, rated = place.ask("a", "eve", n=1), place.ask("a", "eve", n=2)
    seq = place.rate(labelled, 1, user="eve")
    feedback.review_feedback(place.book, seq, "corrected", "ada", "the right answer")
    place.rate(rated, -1, user="eve")
    place.rate(rated, 1, user="eve")
    assert place.scores(LABEL) == {("/eve", labelled, LABEL): 0.0}
    people = [one for one in place.seen if one.kind != LIVE]
    assert len(people) == 4 and units(people, 1.0, place.test.started + 9 * HOUR) == [("a", 0.5)]


def test_an_accepted_edit_is_a_wrong_answer(place):
    seq = place.rate(place.ask("b", "eve"), None, user="eve", edit="better so")
    assert place.scores(LABEL, RATING) == {}
    feedback.review_feedback(place.book, seq, "accepted", "ada")
    assert list(place.scores(LABEL).values()) == [0.0]


def test_discarded_and_withdrawn_ratings_do_not_count(place):
    one, other = (place.rate(place.ask("a", "eve", n=n), 1, user="eve") for n in (1, 2))
    assert len(place.scores(RATING)) == 2
    feedback.review_feedback(place.book, one, "discarded", "ada")
    feedback.withdraw(place.book, "wiki", "a flood", "ada", seqs=[other])
    assert place.scores(RATING) == {}


def test_ratings_that_are_set_aside_do_not_count_until_they_are_given_back(place):
    for name in ("eve", "max"):
        place.rate(place.ask("a", name), 1, user=name)
    quarantine.set_aside(place.book, "wiki", [f"{quarantine.KEYLESS}eve"], "a flood")
    assert {asker for asker, *_ in place.scores(RATING)} == {"/max"}
    quarantine.give_back(place.book, "wiki", f"{quarantine.KEYLESS}eve", "ada")
    assert len(place.scores(RATING)) == 2


def test_live_quality_is_grounding_and_nothing_for_an_abstention_that_was_right(place):
    place.ask("a", "eve", n=1)
    place.ask("a", "eve", n=2, abstained=True, grounding=None)
    place.ask("a", "eve", n=3, abstained=True, grounding=None, similarity=0.1)
    place.ask("a", "eve", n=4, grounding=None)
    place.ask("a", "eve", n=5, status=503)
    assert {response: value for (_, response, _), value in place.scores(LIVE).items()} == {
        "/eve/1": 0.8,
        "/eve/2": 0.0,
    }


# --- one value a voice ------------------------------------------------------------------------


def score(user, value, hours, arm="a", response=None, kind=RATING):
    return Score(arm, user, response or f"{user} {hours}", kind, value, hours * HOUR)


def test_a_user_counts_once_with_the_mean_of_their_first_hours():
    scores = [score("u", 1.0, 0.0), score("u", 0.0, 0.5), score("u", 0.0, 1.5), score("v", 1.0, 0.2, "b")]
    assert units(scores, 1.0, 2 * HOUR) == [("a", 0.5), ("b", 1.0)]


def test_a_user_whose_hours_are_not_over_waits_and_then_nothing_moves_them():
    scores = [score("u", 1.0, 0.0), score("v", 0.0, 0.5)]
    assert units(scores, 1.0, 0.9 * HOUR) == []
    assert units(scores, 1.0, 1.0 * HOUR) == [("a", 1.0)]
    late = [*scores, score("u", 0.0, 1.1), score("u", 0.0, 1.2, response="u 0.0", kind=LABEL)]
    assert units(late, 1.0, 9 * HOUR) == [("a", 1.0), ("a", 0.0)]


def test_many_answers_of_one_user_are_one_voice(place):
    for n in range(1, 31):
        place.rate(place.ask("b", "eve", n=n), 1, user="eve")
        place.rate(place.ask("a", f"user {n}"), -1, user=f"user {n}")
    found = place.compare()
    assert found.scores[RATING] == 60
    assert found.judged.users == {"a": 1, "b": 1} and found.judged.ahead == ""


# --- the verdict ------------------------------------------------------------------------------


def found(judged="", live="", users=50, requests=100, failed=0) -> Compared:
    def side(ahead):
        return Difference(0.1, 0.05, 0.2, ahead, users, {"a": users, "b": users})

    return Compared(side(judged), side(live), {RATING: 2 * users}, {"a": 100, "b": 100}, requests, failed)


TEST = splits.Split(1, "wiki", "rel-a", "rel-b", 0.5, as_json(Plan(days=2)), started=0.0)


@pytest.mark.parametrize(
    "seen, hours, verdict",
    [
        (found(), 1, ""),
        (found("b"), 1, "b"),
        (found("a"), 1, "a"),
        (found(live="b"), 1, ""),
        (found(live="a"), 1, "none"),
        (found("b", live="a"), 1, "b"),
        (found(users=100), 1, "none"),
        (found("b", users=100), 1, "b"),
        (found(), 48, "none"),
        (found("b"), 48, "b"),
        (found(failed=2), 1, ""),
        (found("b", failed=3), 1, "refused"),
        (found(requests=1000, failed=19), 1, ""),
        (found(requests=10, failed=10), 1, ""),
    ],
)
def test_the_verdict_follows_people_and_live_quality_only_ends_without_a_proof(seen, hours, verdict):
    assert comparison.conclude(TEST, seen, hours * HOUR)[0] == verdict


def test_a_verdict_says_estimate_bounds_users_and_scores():
    _, reason = comparison.conclude(TEST, found("b"), HOUR)
    assert reason == (
        "b is better: b is at +10.0 points (+5.0 to +20.0) on 50 and 50 users of 100 and 100 planned; 100 by rating"
    )


def test_failed_requests_of_b_are_counted_and_busy_ones_are_not(place):
    for n, status in enumerate((200, 500, 503, 504), start=1):
        place.ask("b", "eve", n=n, status=status)
    seen = place.compare()
    assert (seen.requests, seen.failed) == (4, 1)


def test_a_plan_says_how_many_users_it_takes():
    plan = Plan(p0=0.8, difference=0.1)
    assert plan.users(0.5) == {"a": plan.blocks(0.5), "b": plan.blocks(0.5)}
    assert plan.users(0.2)["a"] == 4 * plan.users(0.2)["b"]
    assert replace(plan, difference=0.2).blocks(0.5) < plan.blocks(0.5)


def test_users_who_like_b_make_it_win(place):
    for n in range(60):
        for arm, rating in (("a", -1), ("b", 1)):
            place.rate(place.ask(arm, f"{arm}{n}"), rating, user=f"{arm}{n}")
    seen = place.compare()
    assert seen.judged.ahead == "b" and comparison.conclude(place.test, seen, place.test.started + HOUR)[0] == "b"
    assert place.compare(0.5).judged.ahead == "", "nobody's hour is over"
