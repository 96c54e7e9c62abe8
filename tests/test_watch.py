"""What the monitor remembers: a reference learnt once, then only new values; and what it makes of a run's rows."""

from dataclasses import replace

from data import feedback
from data.records import Prompt, as_json
from tasks import references, watch
from tasks.edetector import restart, update, watch_p
from tasks.edetector import watch as fresh_detector
from tasks.evidence import Evidence
from tasks.labels import labels, untrained
from tasks.references import MonitorSettings, learned
from tasks.signals import Signal
from tests.ledgers import new_ledger, release

SMALL = MonitorSettings(reference=10, window=5)
LIVE = release()
REPROMPTED = replace(LIVE, prompt=Prompt(system="Other."))
REINDEXED = release(index="another")


def test_a_stream_learns_first_says_so_and_then_hands_values_to_its_detector():
    state, left = learned("ratings", None, [0.0] * 7, LIVE, SMALL)
    assert state["detector"] is None and left == []
    assert references.learning({"ratings": state}, SMALL) == {"ratings": (7, 10)}
    state, left = learned("ratings", state, [0.0] * 5, LIVE, SMALL)
    assert state["detector"]["p0"] > 0 and len(left) == 2
    assert references.learning({"ratings": state}, SMALL) == {}


def test_a_reference_restarts_with_the_prompt_and_not_with_the_index():
    before, after, reindexed = map(references.owners, (LIVE, REPROMPTED, REINDEXED))
    assert before["answers"] != after["answers"]
    assert (before["retrieval"], before["questions"]) == (after["retrieval"], after["questions"])
    assert before == reindexed


def test_the_parents_detector_watches_a_new_prompt_while_its_reference_is_learnt():
    state, _ = learned("grounding", None, [0.0] * 10, LIVE, SMALL)
    state, left = learned("grounding", state, [1.0] * 3, REPROMPTED, SMALL)
    assert (len(state["reference"]), left) == (3, [1.0] * 3)
    state, left = learned("grounding", state, [1.0] * 8, REPROMPTED, SMALL)
    assert state["reference"] is None and left == [1.0]
    assert state["detector"]["p0"] > 0.9


def test_what_is_in_alarm_does_not_become_what_is_usual():
    state, _ = learned("grounding", None, [0.0] * 10, LIVE, SMALL)
    state["detector"]["alarm"] = True
    p0 = state["detector"]["p0"]
    state, _ = learned("grounding", state, [1.0] * 12, REPROMPTED, SMALL)
    assert state["detector"]["p0"] == p0


def test_only_the_detector_that_was_acted_on_starts_again(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    seq = book.open_remedy("wiki", "retrain", "labels", {"signals": ["labels"]})
    book.settle(seq, "acted", "promoted")
    detector = as_json(update(fresh_detector(0.1, 100.0), 1.0))
    states = {name: {"detector": detector} for name in ("labels", "ratings")}
    after = watch.acted_on(book, "wiki", states)
    assert after["labels"]["detector"]["events"] == 0 and after["labels"]["acted"] == seq
    assert after["ratings"]["detector"] == detector
    again = references.restarted(after["labels"] | {"detector": detector}, seq)
    assert again["detector"] == detector, "one act restarts it once"


def test_the_change_point_covers_a_deploy_by_counting_events():
    state = {"deployed": 400, "detector": {"alarm": True, "since": 420}}
    assert references.covers_deploy(state, SMALL)
    assert not references.covers_deploy(state | {"detector": {"alarm": True, "since": 200}}, SMALL)
    assert not references.covers_deploy(state | {"detector": {"alarm": False, "since": 420}}, SMALL)
    assert not references.covers_deploy(state | {"deployed": None}, SMALL), "the detector saw no deploy"


def test_a_quiet_window_joins_the_reference_and_one_out_of_line_does_not():
    state = {"reference": [1, 2], "pending": [3, 4], "windows": 0, "detector": {}}
    quiet = Signal("questions", 0.1, False, "", {"p": 0.9, "state": {}, "window": 2})
    moved = Signal("questions", 0.99, False, "", {"p": 0.01, "state": {}, "window": 2})
    assert references.tested(state, quiet, SMALL, 0.0)["reference"] == [1, 2, 3, 4]
    after = references.tested(state, moved, SMALL, 0.0)
    assert (after["reference"], after["pending"], after["windows"]) == ([1, 2], [], 1)


def test_question_windows_are_disjoint_and_wait_until_they_are_full():
    rows = [{"id": number, "embedding": b"x"} for number in range(12)]
    reference, window, state = references.question_windows(None, rows, SMALL)
    assert (reference, window) == (None, None)
    assert (state["reference"], state["pending"]) == (list(range(10)), [10, 11])


def test_the_budget_is_stated_and_shared_by_every_signal():
    said = references.budget(MonitorSettings())
    assert f"any false alarm among {references.SIGNALS} signals" in said and "5%" in said
    assert references.bar(MonitorSettings()) == references.SIGNALS * 10_000 / 0.05
    assert restart(watch_p(references.question_bar(SMALL))).threshold == references.SIGNALS * 2000 / 0.05


def test_the_worst_user_of_bad_ratings_is_seen_only_when_there_are_enough():
    bad = [{"rating": -1, "user": "one"}] * 4 + [{"rating": -1, "user": "two"}]
    assert watch.users_share(bad) == 0.8
    assert watch.users_share(bad[:4]) == 0.0
    assert watch.users_share([{"rating": -1, "user": None}] * 9) == 0.0, "without a user it is nobody's in particular"


def test_deleted_text_is_looked_for_only_in_answers_given_after_it_was_gone():
    rows = [{"cited": ["a"]}, {"cited": ["b", "gone"]}, {"cited": None}]
    assert watch.cited_deleted(rows, frozenset({"gone"})) == {"cited": 1, "answers": 3}


def test_every_request_knows_the_user_before_it():
    rows = watch.with_user_before([{"user": "a"}, {"user": "a"}, {"user": None}])
    assert [row["user_before"] for row in rows] == [None, "a", "a"]


def test_reviewed_feedback_is_a_label_and_counts_until_a_model_learnt_it(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    said = {"question": "How long?", "answer": "Ten days."}
    edited = book.add_feedback("wiki", "rel", "r1", edit="Twelve days.", **said)
    praised = book.add_feedback("wiki", "rel", "r2", rating=1, **said)
    dropped = book.add_feedback("wiki", "rel", "r3", rating=-1, **said)
    for seq, verdict in ((edited, "accepted"), (praised, "accepted"), (dropped, "discarded")):
        feedback.review_feedback(book, seq, verdict, "Ann")
    found = labels(book, "wiki")
    assert [(label.seq, label.wrong, label.right) for label in found] == [
        (edited, True, "Twelve days."),
        (praised, False, "Ten days."),
    ]
    assert untrained(book, LIVE, found) == (2, 1)


def test_worse_windows_are_counted_from_the_newest_back():
    state = {"detector": {"p0": 0.2}}
    chosen = MonitorSettings(window_labels=2)
    judged = [type("L", (), {"wrong": wrong}) for wrong in (1, 1, 0, 0, 1, 1, 1, 0)]
    assert watch.worse_windows(judged, state, chosen) == 2


def concluded(*alarmed: Signal, asked=(), deployed: int = 0, **more) -> Evidence:
    states = {
        name: {"deployed": deployed, "detector": {"alarm": any(s.name == name for s in alarmed), "since": 100}}
        for name in ("labels", "grounding", "abstention", "ratings", "format", "leaks")
    }
    stale = watch.Staleness((), (), (), "f")
    return watch.concluded(alarmed, states, stale, 60.0, LIVE, list(asked), [], SMALL, **more)


def alarm(name: str, rate: float = 0.5, p0: float = 0.1) -> Signal:
    return Signal(name, 1.0, True, "", {"rate": rate, "state": {"p0": p0}})


def test_signals_become_the_evidence_of_the_table():
    assert concluded(alarm("labels")).labelled_quality_down
    assert concluded(alarm("grounding")).quality_alarm and concluded(alarm("grounding")).loss == 0.4
    assert concluded(alarm("top score")).retrieval_term_down
    assert concluded(alarm("format")).hard_broken == ("answers carry marks of a template",)
    assert concluded(alarm("embedder")).version_mismatch and concluded(alarm("anchors")).judge_moved
    assert concluded(alarm("grounding"), deployed=120).change_covers_deploy
    assert not concluded(alarm("grounding"), deployed=900).change_covers_deploy
    assert concluded() == Evidence(budget=references.budget(SMALL), seconds_since_promotion=60.0)


def test_requests_that_break_are_parse_failures_and_those_that_wait_are_not():
    def rows(status):
        return [{"release": LIVE.id, "status": 200}] * 20 + [{"release": LIVE.id, "status": status}] * 5

    assert concluded(asked=rows(500)).parse_failures == 0.2
    assert concluded(asked=rows(503)).parse_failures == 0.0
