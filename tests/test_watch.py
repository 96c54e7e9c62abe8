"""What the monitor remembers: a reference learnt once, then only new values."""

from data.records import Prompt
from tasks import watch
from tasks.watch import MonitorSettings
from tests.ledgers import release

SMALL = MonitorSettings(reference=10, window=5)


def test_a_stream_learns_first_and_then_hands_values_to_its_detector():
    state, left = watch.learned(None, [0.0] * 7, "owner", SMALL)
    assert state["detector"] is None and left == []
    state, left = watch.learned(state, [0.0] * 5, "owner", SMALL)
    assert state["detector"]["p0"] > 0 and len(left) == 2


def test_a_stream_of_another_model_starts_learning_again():
    state, _ = watch.learned(None, [0.0] * 12, "old model", SMALL)
    state, left = watch.learned(state, [1.0] * 3, "new model", SMALL)
    assert (len(state["reference"]), state["detector"], left) == (3, None, [])


def test_only_answer_side_streams_belong_to_model_prompt_and_settings():
    from dataclasses import replace

    one, reprompted = release(), replace(release(), prompt=Prompt(system="Other."))
    assert watch.served_by("grounding", one) != watch.served_by("grounding", reprompted)
    assert watch.served_by("ratings", one) == watch.served_by("ratings", reprompted)
    assert watch.served_by("grounding", one) == watch.served_by("grounding", release(index="another"))


def test_question_windows_are_disjoint_and_wait_until_they_are_full():
    rows = [{"id": number, "embedding": b"x"} for number in range(12)]
    reference, window, state = watch.question_windows(None, rows, SMALL)
    assert (reference, window) == (None, None)
    assert (state["reference"], state["pending"]) == (list(range(10)), [10, 11])


def test_the_worst_user_of_bad_ratings_is_seen_only_when_there_are_enough():
    bad = [{"rating": -1, "user": "one"}] * 4 + [{"rating": -1, "user": "two"}]
    assert watch.users_share(bad) == 0.8
    assert watch.users_share(bad[:4]) == 0.0
