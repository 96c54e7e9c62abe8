"""The flows and the command of split tests: a candidate becomes an arm, a verdict becomes a promotion or an end."""

import json
from types import SimpleNamespace

import pytest
from prefect.states import Completed, Failed

from data import splits
from data.lease import lease
from data.ledger import NotAccepted
from data.records import Decision, Prompt, Retrieval, Snapshot, as_json
from data.requests import Logged, RequestLog
from flows import lifecycle, split
from tasks.split import Plan
from tests.ledgers import accept, go_live, new_ledger, release

LIVE = release()
SNAPSHOT = as_json(Snapshot("snap", "uri", "wiki", *[0] * 8))
TEXT = {"system": "Answer briefly."}


class Place:
    """A live release; the steps of the lifecycle do what `verdict`, `silent` and `canary` say."""

    def __init__(self, folder, monkeypatch):
        self.book, self.verdict, self.silent, self.canary = new_ledger(folder, "wiki"), "promote", "", "held"
        self.done, self.told, self.judged = [], [], []
        self.prompt = folder / "prompt.json"
        self.prompt.write_text(json.dumps(TEXT))
        go_live(self.book, LIVE)
        self.book.relocate(LIVE)
        with self.book.write() as c:
            c.exec_driver_sql("UPDATE releases SET snapshot = ?", (json.dumps(SNAPSHOT),))
        chosen = SimpleNamespace(requests=f"sqlite:///{folder}/requests.db", retention_days=30)
        self.log = RequestLog(chosen.requests)
        for module in (split, lifecycle):
            monkeypatch.setattr(module, "ledger", lambda: self.book)
        monkeypatch.setattr(split, "settings", lambda: chosen)
        monkeypatch.setattr(lifecycle, "mirror", lambda *_, **__: None)
        monkeypatch.setattr(lifecycle, "gated", self.gated)
        monkeypatch.setattr(lifecycle, "warm", lambda candidate: self.done.append("warm"))
        monkeypatch.setattr(lifecycle, "smoke", self.smoke)
        monkeypatch.setattr(lifecycle, "release", self.release)
        monkeypatch.setattr(split.evaluate, "smoke_questions", lambda *_: ["how long?"])
        monkeypatch.setattr(split.events, "emit", lambda event, *_, **about: self.told.append(event))
        monkeypatch.setattr(split.report, "split", lambda *said: self.told.append(said[1]))
        monkeypatch.setattr(split.report, "alert", lambda *said: self.told.append(said[1]))

    def gated(self, candidate, live, kind, snapshot, gates):
        self.done.append("gate")
        self.judged.append((candidate, kind))
        decision = Decision(self.verdict, "as the gate says", candidate.id, live.id)
        self.book.decide_gate("wiki", decision)
        return decision

    def smoke(self, candidate, question):
        self.done.append("smoke")
        self.book.decide("wiki", "smoke", candidate.id, "silent" if self.silent else "answered", "", {})
        return self.silent

    def release(self, candidate, kind, snapshot, gates, return_state=False):
        """`lifecycle.release` from the canary on."""
        self.done.append(f"release {kind}")
        if self.canary == "lost":
            return Failed(message="Ray is away")
        if self.canary == "held":
            self.book.decide("wiki", "canary", candidate.id, "held", "", {})
            self.book.promote("wiki", candidate.id, self.book.assistant("wiki")["live_seq"])
        verdict = "promote" if self.canary == "held" else "rolledback"
        return Completed(data=Decision(verdict, "an empty answer", candidate.id))

    def start(self, **given):
        return split.start.fn("wiki", **({"prompt": str(self.prompt)} | given))

    def running(self):
        return splits.running(self.book)

    def say(self, likes: str, users: int = 20):
        """Users rate both arms, and like one of them."""
        (test,) = self.running()
        for n in range(users):
            for arm, served in (("a", test.a), ("b", test.b)):
                user = f"{arm}{n}"
                row = Logged(f"r-{user}", test.started, "wiki", served, arm, user=user, question="q", answer="w")
                self.log.write(row)
                self.book.add_feedback("wiki", served, row.response, 1 if arm == likes else -1, user=user)
        with self.book.write() as c:  # a day ago, so that nobody has to wait
            c.exec_driver_sql("UPDATE feedback SET at = at - 90000")
        self.log.flush()

    def verdicts(self):
        return [row["verdict"] for row in self.book.decisions("wiki", "split")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    made = Place(tmp_path, monkeypatch)
    yield made
    made.log.close()


# --- start ------------------------------------------------------------------------------------


def test_another_prompt_is_gated_warmed_and_answers_before_it_gets_users(place):
    state = place.start(share=0.3)
    (test,) = place.running()
    assert place.done == ["gate", "warm", "smoke"] and state.name == "Started"
    ((candidate, kind),) = place.judged
    assert (candidate.prompt, kind) == (Prompt(**TEXT), "reprompt") and candidate.index == LIVE.index
    assert (test.a, test.b, test.share) == (LIVE.id, candidate.id, 0.3)
    assert place.book.assistant("wiki")["live_release"] == LIVE.id, "the pointer has not moved"
    assert Plan.of(test.plan) == Plan()


@pytest.mark.parametrize("verdict", ["reject", "hold"])
def test_a_candidate_that_the_gate_did_not_accept_gets_no_users(place, verdict):
    place.verdict = verdict
    assert place.start().name in ("Rejected", "Held")
    assert place.running() == [] and place.done == ["gate"]


def test_a_candidate_that_does_not_answer_gets_no_users(place):
    place.silent = "status 500"
    with pytest.raises(RuntimeError, match="does not answer: status 500"):
        place.start()
    assert place.running() == []


def test_a_prompt_keeps_the_chat_format_of_the_model(place):
    other = release(model="c")
    other = type(other).of(as_json(other) | {"prompt": as_json(Prompt(system="Other.", chat="llama"))})
    place.book.add_release(other, "tuned", None, SNAPSHOT)
    made = split.challenger(place.book, LIVE, other.id, None, None)
    assert made.prompt == Prompt(system="Other.", chat=LIVE.prompt.chat) and made.model == LIVE.model


def test_settings_and_releases_can_be_compared_always_over_the_live_index(place):
    place.start(prompt=None, retrieval=Retrieval(top_k=5))
    old = release(model="c", index="of last week")
    place.book.add_release(old, "tuned", None, SNAPSHOT)
    made = split.challenger(place.book, LIVE, None, None, old.id)
    assert place.judged[0][0].retrieval.top_k == 5
    assert (made.model, made.index) == (old.model, LIVE.index)


def test_what_is_live_already_is_not_compared_with_itself(place):
    with pytest.raises(ValueError, match="is live already"):
        place.start(prompt=None)


def test_a_release_that_was_live_before_needs_no_second_gate(place):
    go_live(place.book, release(model="c"))
    with place.book.write() as c:
        c.exec_driver_sql("UPDATE releases SET snapshot = ?", (json.dumps(SNAPSHOT),))
    place.start(prompt=None, release=LIVE.id)
    assert place.done == ["warm", "smoke"] and place.running()[0].b == LIVE.id


def test_a_second_test_is_refused_before_anything_is_judged(place):
    place.start()
    done = list(place.done)
    place.prompt.write_text(json.dumps({"system": "Answer at length."}))
    with pytest.raises(ValueError, match="is running"):
        place.start()
    assert place.done == done


def test_a_test_longer_than_the_request_log_is_kept_is_refused(place):
    with pytest.raises(ValueError, match="longer than requests are kept"):
        place.start(plan=Plan(days=30))


# --- look -------------------------------------------------------------------------------------


def test_a_better_b_goes_live_through_release_and_the_figures_are_on_record(place):
    place.start()
    test = place.running()[0]
    place.say(likes="b")
    assert split.look.fn().data == {"wiki": "b went live"}
    assert place.done[-1] == "release reprompt" and place.running() == []
    assert place.book.assistant("wiki")["live_release"] == test.b and place.verdicts() == ["b", "started"]
    body = place.book.decisions("wiki", "split")[0]["body"]
    assert body["judged"]["ahead"] == "b" and body["scores"] == {"rating": 40}
    assert body["judged"]["lower"] > 0 and body["judged"]["users"]["a"] > 10 and body["planned"]


def test_a_better_a_ends_the_test_and_nothing_is_released(place):
    place.start()
    place.say(likes="a")
    assert split.look.fn().data == {"wiki": "a"}
    assert place.running() == [] and place.verdicts() == ["a", "started"] and "release reprompt" not in place.done
    assert split.look.fn().data == {}


def test_an_undecided_test_goes_on(place):
    place.start()
    place.say(likes="b", users=5)
    assert split.look.fn().data == {"wiki": "goes on"} and place.running()


def test_a_better_b_that_breaks_in_its_canary_is_refused_and_told(place):
    place.start()
    place.say(likes="b")
    place.canary = "broken"
    assert split.look.fn().data == {"wiki": "refused"}
    assert place.running() == [] and place.verdicts() == ["refused", "b", "started"]
    assert place.book.assistant("wiki")["live_release"] == LIVE.id
    assert any("b was better, but it was not released: an empty answer" in told for told in place.told)


def test_a_promotion_that_broke_off_is_tried_again_without_a_second_verdict(place):
    place.start()
    place.say(likes="b")
    place.canary = "lost"
    assert split.look.fn().data == {"wiki": "b is not live yet: Ray is away"}
    assert place.running()[0].verdict == "b"
    split.look.fn()
    assert [told for told in place.told if "tried again" in told] == [
        "b is not live yet: Ray is away; it is tried again"
    ]
    place.canary = "held"
    assert split.look.fn().data == {"wiki": "b went live"}
    assert place.verdicts() == ["delayed", "b", "started"]


def test_a_better_b_that_never_gets_live_is_refused_when_the_days_are_over(place):
    place.start()
    place.say(likes="b")
    place.canary = "lost"
    split.look.fn()
    with place.book.write() as c:
        c.exec_driver_sql("UPDATE splits SET started = started - 14 * 86400")
    assert split.look.fn().data == {"wiki": "refused"} and place.running() == []
    assert place.verdicts() == ["refused", "delayed", "b", "started"] and "Ray is away" in place.told[-1]


def test_a_better_b_that_a_person_stops_on_its_way_stays_stopped(place, monkeypatch):
    def stopped(candidate, *_, return_state):
        split.end(place.book, "wiki", "eve")
        return Failed(message="the live pointer moved")

    place.start()
    place.say(likes="b")
    monkeypatch.setattr(lifecycle, "release", stopped)
    assert split.look.fn().data == {"wiki": "ended"}
    assert place.verdicts() == ["stopped", "b", "started"] and not any("tried again" in told for told in place.told)


def test_a_better_b_is_judged_as_what_it_is_against_what_is_live(place):
    go_live(place.book, release(model="c"))
    with place.book.write() as c:
        c.exec_driver_sql("UPDATE releases SET kind = 'bootstrap', snapshot = ?", (json.dumps(SNAPSHOT),))
    place.start(prompt=None, release=LIVE.id)
    place.say(likes="b")
    split.look.fn()
    assert place.done[-1] == "release tuned"


def test_one_look_at_a_time(place):
    with lease("split"):
        assert split.look.fn().name == "Busy"
    assert split.look.fn().name == "Looked"


def test_a_paused_assistant_is_left_alone(place):
    place.start()
    place.say(likes="b")
    place.book.pause("wiki", True)
    assert split.look.fn().data == {"wiki": "paused"} and place.running()[0].verdict == ""


# --- by hand ----------------------------------------------------------------------------------


def test_a_person_ends_a_test_at_any_time_and_is_named(place, capsys):
    place.start()
    split.run(place.book, split.arguments(["status"]))
    assert "runs: b is at +0.0 points" in capsys.readouterr().out
    given = ["end", "--assistant", "wiki", "--who", "eve", "--why", "users complained"]
    split.run(place.book, split.arguments(given))
    assert place.running() == [] and place.book.live()["wiki"].b is None
    assert place.book.decisions("wiki", "split")[0]["reason"].startswith("stopped by eve: users complained")
    split.run(place.book, split.arguments(["status", "--assistant", "wiki"]))
    assert "stopped: stopped by eve" in capsys.readouterr().out
    with pytest.raises(LookupError, match="no split test of 'wiki' runs"):
        split.run(place.book, split.arguments(given))


def test_the_command_hands_over_what_was_asked_for(place, monkeypatch):
    asked = []

    def start(*given, return_state):
        asked.append(given)
        return Completed(message="started", data={})

    monkeypatch.setattr(split, "start", start)
    words = ["start", "--assistant", "wiki", "--retrieval", '{"top_k": 4}', "--share", "0.2", "--difference", "0.05"]
    split.run(place.book, split.arguments(words))
    assert asked == [("wiki", None, Retrieval(top_k=4), None, 0.2, Plan(difference=0.05))]


def test_an_assistant_that_is_not_there_is_named_with_the_known_ones(place):
    with pytest.raises(KeyError, match="known: wiki"):
        split.start.fn("wikki", prompt=str(place.prompt))


def test_the_ledger_refuses_what_the_flow_would_have_let_through(place):
    accept(place.book, release(model="d"))
    place.book.decide("wiki", "gate", release(model="d").id, "reject", "", {})
    with pytest.raises(NotAccepted):
        splits.start(place.book, "wiki", LIVE.id, release(model="d").id, 0.5, {})
