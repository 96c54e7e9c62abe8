"""An evaluation: what is asked of which kind of change, what is stored, and when it is made anew."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import golden_sets
from data.records import (
    Answer,
    Chunk,
    Generation,
    GoldenQuestion,
    IndexVersion,
    Model,
    Prompt,
    Release,
    Shot,
    Snapshot,
)
from serving import rag
from tasks import evaluate, gate, metrics
from tasks.arm import time_both
from tasks.evaluate import Suite, voting
from tasks.gate import GateSettings, Scores
from tasks.intervals import pair

GOLDEN = [GoldenQuestion(f"q{at}", f"When {at}?", ("noon",), f"d{at // 4}", "S", "h") for at in range(80)]


class Engine:
    version = "fake 1"


class Arm:
    """A release that answers every question at noon, and gives in to attacks if its model is weak."""

    opened: int = 0

    def __init__(self, release):
        self.release, self.engine = release, Engine()

    @classmethod
    def open(cls, release, opened, engine=None):
        cls.opened += 1
        return cls(release)

    def answer(self, golden, left_out, tombstones, name):
        made = Generation("noon", 9, 1, "stop", 0.1, 0.1)
        return [Answer(question.question, "noon", False, (), (), made) for question in golden]

    def score(self, golden, answers, given_passage):
        ids, clusters = (tuple(getattr(q, of) for q in golden) for of in ("id", "document"))
        rows = [{"id": question.id} for question in golden]
        return Scores(ids, clusters, {"correct": [1.0] * len(golden), "abstention": [None] * len(golden)}), rows

    def attacked(self):
        held = float(self.release.model.sha256 == "s" * 64)
        ids = tuple(f"attack-{at}" for at in range(75))
        return Scores(ids, tuple(f"family {at % 15}" for at in range(75)), {"safety": [held] * 75}), [{"id": ids[0]}]

    def probe(self, *_):
        return [1.0] * 60


class Ledger:
    """Nothing was ever deleted, unless a test says so."""

    buried = frozenset()

    def __init__(self, url):
        pass

    def tombstones(self, assistant):
        return self.buried


@pytest.fixture
def arms(monkeypatch, tmp_path):
    """Evaluations in a folder of their own, on GOLDEN, with arms that need no model."""
    from settings import settings

    monkeypatch.setattr(Arm, "opened", 0)
    monkeypatch.setattr(evaluate, "Arm", Arm)
    monkeypatch.setattr(evaluate, "Ledger", Ledger)
    monkeypatch.setattr(evaluate, "settings", lambda: settings().model_copy(update={"home": tmp_path}))
    monkeypatch.setattr(evaluate, "sound_files", lambda candidate: {"artifact verified": None})
    monkeypatch.setattr(evaluate, "sound_answers", lambda answers, arm, tombstones: {"answers are text": None})
    monkeypatch.setattr(evaluate, "changed_sections", lambda new, old: set())
    monkeypatch.setattr(evaluate, "questions_for", lambda snapshot, *asked: (voting(snapshot, *asked[2:]), set()))
    monkeypatch.setattr(evaluate.snapshots, "golden", lambda snapshot: GOLDEN)
    monkeypatch.setattr(evaluate.golden_sets, "record", lambda ledger, assistant, golden: "golden-1")
    monkeypatch.setattr(evaluate, "time_both", lambda *given: {})
    monkeypatch.setattr(evaluate, "behaviour", lambda arm, golden, most: {"order_invariance": [1.0] * len(golden)})
    return Arm


def release(model, prompt_version=1):
    index = IndexVersion("a", "uri", "t", prompt_version, str(prompt_version), "emb", "chunk", 1, 1, "snap")
    return Release("a", Model(model * 64, "m.gguf", "openvino", "b", adapter="x"), index)


SNAPSHOT = Snapshot("s", "uri", "a", 20, 20, 0, 80, 0, 0, 0, 0)


def stored(kind, candidate="s", champion="t"):
    return evaluate.evaluate(release(candidate, 2), release(champion), kind, SNAPSHOT, Suite())


def declining(monkeypatch, voting):
    """What is asked of a re-index where these questions vote, and the scores of a release that always abstains."""
    monkeypatch.setattr(evaluate.snapshots, "golden", lambda snapshot: voting)
    asked, left_out = evaluate.questions_for(SNAPSHOT, "reindex", Suite())
    answer = Answer("?", "I do not know.", True, (), (), Generation("", 9, 1, "stop", 0.1, 0.1))
    scored = metrics.score([metrics.Item(q.question, answer, q) for q in asked], ["correct", "abstention"])
    ids, clusters = (tuple(getattr(q, of) for q in asked) for of in ("id", "document"))
    return left_out, Scores(ids, clusters, scored)


def test_questions_with_their_section_left_out_vote_on_abstention_alone(monkeypatch):
    left_out, scores = declining(monkeypatch, GOLDEN)
    voting, abstaining = (pair(name, scores, scores) for name in ("correct", "abstention"))
    assert voting.questions == [question.id for question in GOLDEN] and set(voting.candidate) == {0.0}
    assert set(abstaining.questions) == left_out and len(left_out) == 60


def test_a_re_index_that_few_questions_can_vote_on_is_judged_on_probes_and_not_held_on_abstention(monkeypatch):
    left_out, scores = declining(monkeypatch, GOLDEN[::2])
    decision = gate.decide(scores, scores, {"index whole": None}, kind="index-only", probes=[1.0] * 60)
    assert len(left_out) == 40 and (decision.verdict, decision.judged) == ("promote", "probes")


def test_a_tuned_release_that_gives_in_to_attacks_is_rejected_on_the_stored_scores(arms):
    weak, firm = stored("tuned", "w", "s"), stored("tuned", "s", "t")
    assert evaluate.decide(weak, "tuned", GateSettings()).verdict == "reject"
    assert "safety" in evaluate.decide(weak, "tuned", GateSettings()).reason
    assert evaluate.decide(weak, "tuned", GateSettings(guardrails=("grounding", "latency"))).verdict == "promote"
    decision = evaluate.decide(firm, "tuned", GateSettings())
    assert decision.verdict == "promote" and decision.metrics["safety"] == 1.0
    body = json.loads(Path(firm.uri).read_text())
    assert firm.questions == len(body["candidate"]["metrics"]["correct"]) - 75 == 80
    assert body["attacks"]["champion"] == [{"id": "attack-0"}]


def test_the_seconds_of_an_answer_begin_with_its_retrieval(monkeypatch):
    clock = [0.0]

    class Slow:
        def __init__(self, model, seconds):
            self.release, self.seconds = release(model), seconds
            self.index, self.embedder, self.engine = self, None, self

        def generate(self, prompts, decoding):
            clock[0] += 1.0
            return [None]

    def retrieve(index, *_):
        clock[0] += index.seconds
        return ()

    monkeypatch.setattr("tasks.arm.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(rag, "retrieve", retrieve)
    monkeypatch.setattr(rag, "finish", lambda *_: SimpleNamespace(text="noon"))
    slow = {"candidate": Slow("s", 3.0), "champion": Slow("t", 0.5)}
    scores = {name: Scores(("q0",), ("d0",)) for name in slow}
    rows = {name: [{"id": "q0", "answer": "noon"}] for name in slow}
    assert time_both(slow, scores, rows, GOLDEN[:1], frozenset(), 1) == {"candidate": 1.0, "champion": 1.0}
    assert [scores[name].metrics["latency"] for name in slow] == [[4.0], [1.5]]


def test_a_candidate_whose_files_were_broken_is_evaluated_again_when_they_are_whole(arms, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(evaluate, "sound_files", lambda candidate: {"artifact verified": "cannot be read"})
        assert evaluate.decide(stored("tuned"), "tuned", GateSettings()).verdict == "reject"
    assert evaluate.decide(stored("tuned"), "tuned", GateSettings()).verdict == "promote"


def test_a_new_index_is_not_attacked_because_it_cannot_change_those_answers(arms):
    body = json.loads(Path(stored("reindex", "s", "s").uri).read_text())
    assert body["attacks"] == {} and "safety" not in body["candidate"]["metrics"]


def test_the_same_evaluation_is_read_and_one_with_other_payloads_is_made_anew(arms, monkeypatch):
    first = stored("tuned")
    assert stored("tuned") == first and arms.opened == 2
    monkeypatch.setattr("tasks.metrics.safety.payloads", lambda: "other")
    monkeypatch.setattr(evaluate, "metrics_hash", evaluate.metrics_hash.__wrapped__)
    assert stored("tuned").uri != first.uri and arms.opened == 4


def test_answers_to_sealed_questions_are_scored_and_neither_stored_nor_in_any_figure_beside_the_verdict(arms):
    firm = stored("tuned")
    body, apart = json.loads(Path(firm.uri).read_text()), golden_sets.sealed(GOLDEN)
    assert 0 < len(apart) < 40 and set(body["sealed"]) == apart
    assert apart <= set(body["candidate"]["questions"])
    for rows in body["rows"].values():
        assert {row["id"] for row in rows} == {q.id for q in GOLDEN} - apart
    scores = body["candidate"]
    for at, question in enumerate(scores["questions"]):
        if question in apart:
            scores["metrics"]["correct"][at] = 0.0
    Path(firm.uri).write_text(json.dumps(body))
    decision = evaluate.decide(firm, "tuned", GateSettings())
    assert decision.intervals[0].n == 80 and decision.intervals[0].mean == pytest.approx(-len(apart) / 80)
    assert decision.metrics["correct"] == 1.0
    assert f"{len(apart)} of 80 questions are sealed" in " ".join(decision.notes)


def test_what_is_sealed_is_decided_with_the_questions_that_were_set_aside(arms, monkeypatch):
    asked = [replace(q, section=f"S{at % 4}") for at, q in enumerate(GOLDEN)]
    aged = [replace(q, state="aged") if at >= 40 else q for at, q in enumerate(asked)]
    monkeypatch.setattr(evaluate.snapshots, "golden", lambda snapshot: aged)
    monkeypatch.setattr(evaluate, "questions_for", lambda *asked: (aged[:40], set()))
    monkeypatch.setattr("data.store.open_index", lambda version: SimpleNamespace(chunks=lambda: []))
    apart = {q.id for q in aged[:40]} & golden_sets.sealed(asked)
    assert set(json.loads(Path(stored("tuned").uri).read_text())["sealed"]) == apart
    shown = evaluate.smoke_questions(SNAPSHOT, release("s"), most=200)
    assert set(shown) == {q.question for q in aged[:40] if q.id not in apart}


def test_a_broken_hard_constraint_names_no_question():
    said = Answer("Who pays?", "", False, (), (), Generation("", 9, 1, "stop", 0.1, 0.1))
    index = SimpleNamespace(ids=lambda: {"c1"})
    found = evaluate.sound_answers([said, said, replace(said, text="Ann.")], SimpleNamespace(index=index), frozenset())
    assert found == {
        "answers are text": "2 of 3 answers are empty",
        "citations resolve": None,
        "no deleted text": None,
    }


@pytest.mark.parametrize("teaches", ["candidate", "champion"])
def test_a_golden_question_that_a_worked_example_of_either_arm_asks_does_not_vote(arms, teaches):
    example = Shot("when  7", "noon", Chunk("c", "d", "D", "S", "h", "At noon."), 1)
    pair_of = {"candidate": release("s", 2), "champion": release("s")}
    pair_of[teaches] = replace(pair_of[teaches], prompt=Prompt(shots=(example,)))
    found = evaluate.evaluate(*pair_of.values(), "reprompt", SNAPSHOT, Suite())
    for arm in pair_of:
        asked = set(json.loads(Path(found.uri).read_text())[arm]["questions"])
        assert {question.id for question in GOLDEN} - asked == {"q7"}
    assert "1 of the golden questions do not vote" in " ".join(evaluate.decide(found, "reprompt", GateSettings()).notes)


def test_an_evaluation_is_made_anew_when_a_worked_example_is_shown_no_more(arms, monkeypatch):
    example = Shot("Why?", "noon", Chunk("c", "d", "D", "S", "h", "At noon."), 7)
    taught = replace(release("s", 2), prompt=Prompt(shots=(example,)))
    asked = (taught, release("s"), "reprompt", SNAPSHOT, Suite())
    first = evaluate.evaluate(*asked)
    monkeypatch.setattr(Ledger, "buried", frozenset({"feedback 8"}))
    assert evaluate.evaluate(*asked) == first
    monkeypatch.setattr(Ledger, "buried", frozenset({"feedback 7"}))
    again = evaluate.evaluate(*asked)
    assert again.uri != first.uri and again.release == first.release == taught.id


def test_smoke_and_canary_ask_no_sealed_question(monkeypatch):
    monkeypatch.setattr(evaluate.snapshots, "golden", lambda snapshot: GOLDEN)
    monkeypatch.setattr("data.store.open_index", lambda version: SimpleNamespace(chunks=lambda: []))
    asked = set(evaluate.smoke_questions(SNAPSHOT, release("s"), most=200))
    assert asked == {q.question for q in golden_sets.open_part(GOLDEN)} and len(asked) < 80
