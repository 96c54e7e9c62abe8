"""What the monitor remembers: a reference learnt once, then only new values."""

from dataclasses import replace

from data.records import Prompt
from tasks import watch
from tasks.drift import Signal
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


def test_a_reference_restarts_with_the_prompt_and_not_with_the_index():
    reprompted = replace(release(), prompt=Prompt(system="Other."))
    assert watch.served_by(release()) != watch.served_by(reprompted)
    assert watch.served_by(release()) == watch.served_by(release(index="another"))


def test_a_quiet_window_joins_the_reference_and_one_out_of_line_does_not():
    state = {"reference": [1, 2], "pending": [3, 4], "windows": 0, "detector": {}}
    quiet = Signal("questions", 0.1, False, "", {"p": 0.9, "state": {}})
    moved = Signal("questions", 0.99, False, "", {"p": 0.01, "state": {}})
    assert watch.tested(state, quiet, SMALL)["reference"] == [1, 2, 3, 4]
    assert watch.tested(state, moved, SMALL) == {"reference": [1, 2], "pending": [], "windows": 1, "detector": {}}


def test_question_windows_are_disjoint_and_wait_until_they_are_full():
    rows = [{"id": number, "embedding": b"x"} for number in range(12)]
    reference, window, state = watch.question_windows(None, rows, SMALL)
    assert (reference, window) == (None, None)
    assert (state["reference"], state["pending"]) == (list(range(10)), [10, 11])


def test_the_worst_user_of_bad_ratings_is_seen_only_when_there_are_enough():
    bad = [{"rating": -1, "user": "one"}] * 4 + [{"rating": -1, "user": "two"}]
    assert watch.users_share(bad) == 0.8
    assert watch.users_share(bad[:4]) == 0.0
