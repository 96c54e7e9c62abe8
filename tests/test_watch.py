"""What the monitor remembers: a reference learnt once, then only new values; and what it makes of a run's rows."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from data import feedback, reviews
from data.records import Chunk, Model, Prompt, as_json
from data.requests import Logged, RequestLog
from tasks import references, watch
from tasks.edetector import restart, update, watch_p
from tasks.edetector import watch as fresh_detector
from tasks.evidence import Evidence
from tasks.labels import labels, untrained
from tasks.references import MonitorSettings, learned
from tasks.signals import Signal
from tests.ledgers import go_live, new_ledger, release
from tests.test_streams import ROW

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


def test_what_must_never_be_has_no_slack():
    rates = [learned(name, None, [0.0] * 10, LIVE, SMALL)[0]["detector"]["p0"] for name in ("leaks", "repetition")]
    assert rates[1] > rates[0] + 0.5 * SMALL.slack


def test_the_parents_detector_watches_a_new_prompt_while_its_reference_is_learnt():
    state, _ = learned("grounding", None, [0.0] * 10, LIVE, SMALL)
    state, left = learned("grounding", state, [1.0] * 3, REPROMPTED, SMALL)
    assert (len(state["reference"]), left) == (3, [1.0] * 3)
    state, left = learned("grounding", state, [1.0] * 8, REPROMPTED, SMALL)
    assert state["reference"] is None and left == [1.0]
    assert state["detector"]["p0"] > 0.9


def test_what_alarms_does_not_become_what_is_usual_however_busy_the_assistant():
    chosen = MonitorSettings(reference=40)
    state, _ = learned("grounding", None, [0.0] * 40, LIVE, chosen)
    p0 = state["detector"]["p0"]
    state, left = learned("grounding", state, [1.0] * 50, REPROMPTED, chosen)
    assert state["detector"]["p0"] == p0 and left == [1.0] * 50
    assert state["reference"] == []


def test_an_alarm_ends_with_the_release_it_was_about():
    state, _ = learned("format", None, [0.0] * 10, LIVE, SMALL, promoted=100.0)
    state["detector"]["alarm"] = True
    same, _ = learned("format", state, [0.0], REINDEXED, SMALL, promoted=200.0)
    assert same["detector"]["alarm"] and same["promoted"] == 100.0
    after, left = learned("format", state, [0.0], REPROMPTED, SMALL, [1.0] * 5, 200.0)
    assert not after["detector"]["alarm"] and after["promoted"] == 200.0
    assert (after["deployed"], after["began"]) == (0, None)
    assert left == [0.0] and after["reference"] == [0.0], "what the release before said is not its own"


def test_the_state_of_an_earlier_version_is_learnt_anew():
    old = {"owner": "o", "reference": [0.0], "detector": None}
    state, _ = learned("ratings", old, [0.0] * 10, LIVE, SMALL)
    assert state["detector"] and state["reference"] is None
    rows = [{"id": 1, "embedding": b"x"}]
    windows = {"reference": [], "pending": [], "windows": 0, "detector": as_json(watch_p(7.0))}
    kept = references.question_windows(windows, rows, SMALL)[2]
    assert kept["detector"]["threshold"] == references.question_bar(SMALL)


def test_only_the_detector_that_was_acted_on_starts_again(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    seq = book.open_remedy("wiki", "retrain", "labels", {"signals": ["labels"]})
    book.settle(seq, "acted", "promoted")
    detector = as_json(update(fresh_detector(0.1, 100.0), 1.0))
    states = {name: {"detector": detector} for name in ("labels", "ratings")}
    after = watch.acted_on(book, "wiki", states)
    assert after["labels"]["detector"]["events"] == 0 and after["labels"]["acted"] == seq
    assert after["ratings"]["detector"] == detector
    again = watch.acted_on(book, "wiki", {"labels": after["labels"] | {"detector": detector}})
    assert again["labels"]["detector"] == detector, "one act restarts it once"


def test_acting_on_what_has_no_detector_restarts_nothing(tmp_path):
    book = new_ledger(tmp_path, "wiki")
    book.settle(book.open_remedy("wiki", "rollback", "x", {"signals": ["probes"]}), "acted", "done")
    assert watch.acted_on(book, "wiki", {"probes": {"key": "k"}})["probes"]["key"] == "k"


def test_the_change_point_covers_a_deploy_by_counting_events():
    state = {"deployed": 400, "detector": {"alarm": True, "since": 420}}
    assert references.covers_deploy(state, SMALL)
    assert not references.covers_deploy(state | {"detector": {"alarm": True, "since": 200}}, SMALL)
    assert not references.covers_deploy(state | {"detector": {"alarm": False, "since": 420}}, SMALL)
    assert not references.covers_deploy(state | {"deployed": None}, SMALL), "the detector saw no deploy"


def test_a_deploy_is_where_its_first_event_is_and_not_where_the_run_began():
    state, _ = learned("grounding", None, [0.0] * 10, LIVE, SMALL)
    state, left = learned("grounding", state, [1.0] * 3, REPROMPTED, SMALL, [0.0] * 70)
    assert state["deployed"] == 70 and left == [1.0] * 3
    state, _ = learned("grounding", state, [0.0], replace(REPROMPTED, index=REINDEXED.index), SMALL)
    assert state["deployed"] == 70, "an index-only release is no other owner"


def test_the_trouble_began_when_its_first_event_was_seen():
    state, _ = learned("grounding", None, [0.0] * 10, LIVE, SMALL)
    for now, since in ((1.0, 40), (2.0, 41), (3.0, 41)):
        seen = {"rate": 0.0, "n": 1, "since": since, "state": state["detector"] | {"since": since}}
        state = references.watched(state, Signal("grounding", 0.1, False, "", seen), now)
    assert state["began"] == 2.0


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


def asked_often(tmp_path, monkeypatch, questions, state=None):
    """The question windows over a log with these questions, reference first, or those that `state` knows."""
    log = RequestLog(f"sqlite:///{tmp_path}/log-{questions[0]}-{questions[-1]}.db")
    monkeypatch.setattr(references, "RequestLog", lambda _: log)
    vector = np.ones(4, "<f2").tobytes()
    for number, question in enumerate(questions):
        log.write(Logged(f"r{number}", 0.0, "wiki", "rel", "live", question=question, embedding=vector))
    log.flush()
    found = references.question_windows(
        state, [] if state else log.window("wiki"), MonitorSettings(reference=30, window=25)
    )
    log.close()
    return found


def test_one_question_asked_again_and_again_is_no_window(tmp_path, monkeypatch):
    many = [f"question {number}" for number in range(30)]
    reference, window, _ = asked_often(tmp_path, monkeypatch, many + [f"other {number}" for number in range(25)])
    assert len(reference.texts) == 30 and len(window.texts) == 25
    reference, window, state = asked_often(tmp_path, monkeypatch, many + ["the same"] * 25)
    assert window is None and (len(state["reference"]), state["pending"]) == (30, [])
    reference, window, state = asked_often(tmp_path, monkeypatch, ["the same"] * 30 + many[:25])
    assert window is None and (state["reference"], state["pending"]) == ([], [])


def test_a_window_waits_while_its_reference_is_learnt_anew(tmp_path, monkeypatch):
    state = {"reference": list(range(1, 21)), "pending": list(range(21, 51)), "windows": 3, "detector": None}
    found = asked_often(tmp_path, monkeypatch, [f"question {number}" for number in range(50)], state)
    assert found[:2] == (None, None) and len(found[2]["pending"]) == 30


def test_the_budget_is_stated_and_shared_by_every_signal():
    said = references.budget(MonitorSettings())
    assert f"any false alarm among {references.SIGNALS} signals" in said and "5%" in said
    assert references.bar(MonitorSettings()) == references.SIGNALS * 10_000 / 0.05
    assert restart(watch_p(references.question_bar(SMALL))).threshold == references.SIGNALS * 2000 / 0.05


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


def concluded(*alarmed: Signal, asked=(), deployed: int = 0, began: float = 500.0) -> Evidence:
    states = {
        name: {"deployed": deployed, "detector": {"alarm": any(s.name == name for s in alarmed), "since": 100}}
        | {"promoted": 400.0, "began": began}
        for name in ("labels", "grounding", "abstention", "ratings", "format", "leaks", "unmeasured")
    }
    stale = watch.Staleness((), (), (), "f")
    return watch.concluded(alarmed, states, stale, 1000.0, LIVE, list(asked), [], SMALL)


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
    assert concluded() == Evidence(budget=references.budget(SMALL))


def test_time_is_from_the_release_that_owns_the_stream_to_the_beginning_of_its_trouble():
    assert concluded(alarm("format")).seconds_since_promotion == 100.0
    assert concluded(alarm("labels")).seconds_since_promotion == 100.0
    assert concluded(alarm("format"), began=300.0).seconds_since_promotion is None


def test_a_few_probes_without_a_hit_are_no_broken_instrument():
    def probed(n):
        return Signal("probes", 1.0, False, "", {"rate": 0.0, "n": n})

    assert concluded(probed(60)).below_chance and not concluded(probed(2)).below_chance


def test_requests_that_break_are_parse_failures_and_those_that_wait_are_not():
    def rows(status):
        ok = {"release": LIVE.id, "status": 200, "at": 1100.0}
        return [ok] * 20 + [ok | {"status": status}] * 5

    assert concluded(asked=rows(500)).parse_failures == 0.2
    assert concluded(asked=rows(500)).seconds_since_promotion == 100.0
    assert concluded(asked=rows(503)).parse_failures == 0.0


def test_only_answers_with_a_mark_are_held_against_their_passages(monkeypatch):
    class Held:
        def chunk(self, chunk):
            return Chunk("a", "d", "D", "s", "h", "The key: [secret]") if chunk == "a" else None

    monkeypatch.setattr("data.store.open_index", lambda _: Held())
    marked = ROW | {"answer": "It is [secret].", "chunks": ["a", "gone"]}
    rows = watch.with_passages(LIVE, [ROW, marked])
    assert [row["passages"] for row in rows] == ["", "The key: [secret]"]


def test_a_replay_takes_the_questions_of_the_log_and_is_tried_again_while_there_are_too_few(tmp_path, monkeypatch):
    log, seen = RequestLog(f"sqlite:///{tmp_path}/log.db"), []
    for number in range(6):
        log.write(Logged(f"r{number}", 0.0, "wiki", "rel", "live", question=f"question {number}"))
    log.flush()
    monkeypatch.setattr(watch, "replay", lambda _book, _live, asked, *_: seen.append(list(asked)) or {})
    evidence = Evidence(signals=(alarm("labels"), alarm("latency")))
    state = watch.replayed(None, log, LIVE, [], None, evidence, SMALL)
    watch.replayed(None, log, LIVE, [], state, evidence, SMALL)
    log.close()
    assert len(seen) == 2 and seen[1] == [f"question {number}" for number in range(6)]
    done = state | {"figures": {"model": {}}}
    quieter = Evidence(signals=(alarm("labels"),))
    assert watch.replayed(None, None, LIVE, [], done, quieter, SMALL) is done, "latency is none of its business"


def test_probes_leave_out_sections_that_are_buried_whole(monkeypatch, tmp_path):
    chunks = [
        Chunk(name, "d", "D", name, section, name) for name, section in (("a", "one"), ("b", "one"), ("c", "two"))
    ]
    held = SimpleNamespace(chunks=lambda: chunks)
    made = [SimpleNamespace(question=f"about {section}", section_hash=section) for section in ("one", "two")]
    tried = []
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("serving.engine.models.embedder_folder", lambda: tmp_path)
    monkeypatch.setattr("data.embedding.load", lambda _: SimpleNamespace(sha256=LIVE.index.embedder))
    monkeypatch.setattr("data.store.open_index", lambda _: held)
    monkeypatch.setattr("tasks.retrieval.probes", lambda *_: made)
    monkeypatch.setattr("serving.rag.retrieve_many", lambda asked, *_: tried.append(asked) or [()] * len(asked))
    state, _ = watch.probe(LIVE, frozenset({"a", "c"}), None, SMALL)
    assert tried == [["about one"]]
    assert watch.probe(LIVE, frozenset({"a", "c"}), state, SMALL) == (state, None)
    assert watch.probe(LIVE, frozenset({"a", "b", "c"}), state, SMALL)[1] is None


def test_a_run_keeps_the_share_of_probes_from_before_an_alarm_and_survives_an_old_ledger(tmp_path, monkeypatch):
    book, log = new_ledger(tmp_path, "wiki"), RequestLog(f"sqlite:///{tmp_path}/log.db")
    go_live(book, LIVE)
    book.store_signals("wiki", {"ratings": {"owner": "o", "reference": [0.0], "detector": None}})
    log.write(Logged("r1", 0.0, "wiki", LIVE.id, "live", question="How long?", answer="Ten days."))
    log.flush()
    monkeypatch.setattr(watch, "Ledger", lambda _: book)
    monkeypatch.setattr(watch, "RequestLog", lambda _: log)
    state = {"key": "k", "embedder": LIVE.index.embedder, "rate": 0.95}
    kept = []
    for hit in (0.0, 1.0):
        monkeypatch.setattr(watch, "probe", lambda *_, hit=hit: (state, {"hits": [hit] * 60, "reference": 0.95}))
        evidence, states = watch.watch("wiki", watch.Staleness(fingerprint="f"), SMALL)
        kept.append(states["probes"]["rate"])
        assert evidence.below_chance == (hit == 0.0)
    log.close()
    assert kept == [0.95, 1.0]
    assert states["latency"]["reference"] == [] and states["question length"]["reference"] == [2]


def test_the_evidence_says_whether_the_live_model_can_be_tuned_and_how_many_labels_came_back(tmp_path, monkeypatch):
    elsewhere = replace(LIVE, model=Model("e" * 64, "http://host/v1#m", "upstream", "m"))
    monkeypatch.setattr(watch, "probe", lambda *_: ({"key": "k", "embedder": "", "rate": None}, None))
    monkeypatch.setattr(watch, "RequestLog", lambda _, log=RequestLog(f"sqlite:///{tmp_path}/log.db"): log)
    seen = []
    for live in (LIVE, elsewhere):
        book = new_ledger(tmp_path, "wiki")
        go_live(book, live)
        answers = [{"question": q, "references": [], "answer": "30 days", "arm": live.id} for q in ("one", "two")]
        reviews.ask_labels(book, "wiki", answers)
        reviews.settle(book, reviews.items(book)[0].number, "discarded", "eve")
        monkeypatch.setattr(watch, "Ledger", lambda _, book=book: book)
        evidence, _ = watch.watch("wiki", watch.Staleness(fingerprint="f"), SMALL)
        seen.append((evidence.tunable, evidence.settled_labels))
    assert seen == [(True, 1), (False, 1)]


def test_people_are_told_of_every_signal_and_of_what_was_not_looked_at_without_its_alarm():
    loud = Signal("staleness", 1.0, True, "3 sections changed.")
    stream = Signal("latency", 0.2, False, "latency is in line.", {})
    first = references.told({}, (loud, stream), {"latency": {"detector": {}}}, 100.4)
    assert first["staleness"] == {
        "group": "documents", "alarm": True, "sentence": "3 sections changed.", "trail": [[100, 1.0]]
    }  # fmt: skip
    assert first["latency"] == {"group": "service", "alarm": False, "sentence": "latency is in line."}
    later = references.told(first, (stream,), {"latency": {"detector": {}}}, 200.0)
    assert (later["staleness"]["alarm"], later["staleness"]["trail"]) == (False, [[100, 1.0]])
    for run in range(references.TRAIL + 5):
        later = references.told(later, (loud,), {}, float(run))
    assert len(later["staleness"]["trail"]) == references.TRAIL
