"""What the lifecycle flow decides by itself, its steps replaced."""

from dataclasses import replace

import pytest

from data import reviews
from data.records import Chunk, Decision, Prompt, Retrieval, Reuse, Shot, Snapshot, Sources, as_json
from flows import lifecycle
from serving.engine.bases import Base
from tests.ledgers import go_live, new_ledger, release

SNAPSHOT = Snapshot("snap", "uri", "wiki", *[0] * 8)
OWN = lifecycle.GateSettings(margin=0.1, approval_hours=24)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """`compared` on three candidates with the verdicts and shares of correct answers given."""
    book = new_ledger(tmp_path, "wiki")
    shown = []
    monkeypatch.setattr(lifecycle, "ledger", lambda: book)
    monkeypatch.setattr(lifecycle, "mirror", lambda *_, **__: None)
    monkeypatch.setattr(lifecycle.report, "bases", lambda *given: shown.append(given[3]))

    def compare(*verdicts):
        candidates = [release(model=letter) for letter in "abc"]
        decisions = iter(verdicts)

        def gated(candidate, live, kind, snapshot, gates):
            verdict, correct = next(decisions)
            return Decision(verdict, "", candidate.id, metrics={"correct": correct})

        monkeypatch.setattr(lifecycle, "gated", gated)
        best = lifecycle.compared(candidates, [None] * 3, SNAPSHOT, lifecycle.GateSettings())
        assert [decision.release for decision in shown[-1]] == [candidate.id for candidate in candidates]
        assert {book.release(candidate.id).id for candidate in candidates} == {c.id for c in candidates}
        return "abc"[candidates.index(best)]

    return compare


def test_of_several_bases_the_accepted_one_with_most_correct_answers_is_taken(judged):
    assert judged(("promote", 0.5), ("promote", 0.6), ("reject", 0.9)) == "b"


def test_of_several_bases_none_accepted_the_first_is_taken_and_its_refusal_told(judged):
    assert judged(("hold", 0.5), ("reject", 0.6), ("hold", 0.9)) == "a"


ELSEWHERE = "http://10.0.0.5:8000/v1#qwen3"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The whole flow for an assistant with examples, its steps replaced: what it released, and how often it trained."""
    book, done = new_ledger(tmp_path, "wiki"), []
    snapshot = replace(SNAPSHOT, examples=100)
    embedded = Base("folder", "b" * 64, "llama", "chatml", release(model="e").model)
    monkeypatch.setattr(lifecycle, "ledger", lambda: book)
    monkeypatch.setattr(lifecycle.bases, "embedded", lambda: embedded)
    monkeypatch.setattr(lifecycle, "prepared", lambda sources: snapshot)
    monkeypatch.setattr(lifecycle, "index_snapshot", lambda *_: release().index)
    monkeypatch.setattr(lifecycle, "prepare_and_index", lambda name, trained, _: (snapshot, release().index))
    monkeypatch.setattr(lifecycle, "compared", lambda candidates, *_: candidates[-1])

    def finetune_model(*_):
        done.append("trained")
        return replace(release(model="t").model, adapter="a")

    def released(candidate, kind, snapshot, gates):
        done.append((candidate.model.uri, candidate.prompt.chat, kind))
        go_live(book, candidate)
        return Decision("bootstrap" if kind == "bootstrap" else "promote", "", candidate.id)

    monkeypatch.setattr(lifecycle, "finetune_model", finetune_model)
    monkeypatch.setattr(lifecycle, "release_candidate", released)

    def run(*bases, **told):
        done.clear()
        lifecycle.lifecycle.fn(Sources("wiki", "docs"), base_models=list(bases), **told)
        return list(done)

    run.book = book
    return run


def test_a_model_served_elsewhere_is_released_with_the_index_alone_and_never_trained(run):
    assert run(ELSEWHERE) == [(ELSEWHERE, "messages", "bootstrap")]
    assert run(ELSEWHERE) == [(ELSEWHERE, "messages", "reindex")]


def test_a_model_served_elsewhere_is_offered_with_the_prompt_and_settings_that_are_given(run):
    shot = Shot("When?", "30 days", Chunk("c1", "bin.md", "Bin", "Limits", "h", "After 30 days."), 1)
    run(ELSEWHERE, prompt=Prompt(shots=(shot,)))
    told = {"prompt": Prompt(system="Be brief."), "retrieval": Retrieval(top_k=2), "reuse": Reuse()}
    assert run(ELSEWHERE, **told) == [(ELSEWHERE, "messages", "reprompt")]
    live = run.book.live()["wiki"].live
    assert live.prompt == Prompt(system="Be brief.", chat="messages", shots=(shot,)), "nothing learnt the shots"
    assert (live.retrieval, live.reuse) == (Retrieval(top_k=2), Reuse())


def test_an_assistant_without_examples_takes_up_the_reuse_that_is_given(run, monkeypatch):
    monkeypatch.setattr(lifecycle, "prepared", lambda sources: SNAPSHOT)
    run(None)
    assert run(None, reuse=Reuse()) == [("m.gguf", "chatml", "reindex")]
    assert run.book.live()["wiki"].live.reuse == Reuse()


@pytest.mark.parametrize(("verdict", "waiting"), [("promote", 0), ("reject", 0), ("hold", 1)])
def test_answers_wait_for_a_label_only_where_the_candidate_waits_too(tmp_path, monkeypatch, verdict, waiting):
    book, live, candidate = new_ledger(tmp_path, "wiki"), release(model="a"), release(model="c")
    go_live(book, live)
    book.add_release(candidate, "tuned", live.id, as_json(SNAPSHOT))
    answer = {"question": "When?", "references": ["noon"], "answer": "night", "arm": candidate.id}
    for module, name, found in (
        (lifecycle, "ledger", book),
        (lifecycle, "evaluate_release", None),
        (lifecycle, "decide_gate", Decision(verdict, "", candidate.id, live.id)),
        (lifecycle.precedents, "decided", None),
        (lifecycle.precedents, "tuned_decisions", 0),
        (lifecycle.precedents, "looks_before", ()),
        (lifecycle.precedents, "untuned", None),
        (lifecycle.objection, "heard", lifecycle.objection.Objection("", None, (answer,))),
        (lifecycle.report, "gate", None),
    ):
        monkeypatch.setattr(module, name, lambda *_, found=found: found)
    lifecycle.gated(candidate, live, "tuned", SNAPSHOT, OWN)
    assert len(reviews.items(book, "wiki", reviews.LABEL)) == waiting


def test_a_model_served_elsewhere_challenges_what_is_live_as_it_is(run):
    assert run(None) == [("m.gguf", "chatml", "bootstrap"), "trained", ("m.gguf", "chatml", "tuned")]
    assert run(ELSEWHERE) == [(ELSEWHERE, "messages", "tuned")]
    assert run(None, ELSEWHERE) == ["trained", (ELSEWHERE, "messages", "tuned")]


def test_what_is_live_is_no_challenger_of_itself(judged, tmp_path, monkeypatch):
    book = new_ledger(tmp_path, "wiki")
    go_live(book, release(model="a"))
    monkeypatch.setattr(lifecycle, "ledger", lambda: book)
    asked = []

    def gated(candidate, *_):
        asked.append(candidate.model.sha256[0])
        return Decision("hold", "", candidate.id, metrics={"correct": 0.5})

    monkeypatch.setattr(lifecycle, "gated", gated)
    candidates = [release(model=letter) for letter in "ab"]
    best = lifecycle.compared(candidates, [None] * 2, SNAPSHOT, lifecycle.GateSettings())
    assert asked == ["b"] and best == candidates[0]


def test_every_prepare_of_a_run_is_told_what_is_live_and_not_only_what_was_prepared_last(tmp_path, monkeypatch):
    book, told = new_ledger(tmp_path, "wiki"), []
    go_live(book, release())
    book.register(Sources("wiki", "docs"), as_json(SNAPSHOT))
    monkeypatch.setattr(lifecycle, "ledger", lambda: book)
    monkeypatch.setattr(lifecycle.snapshots, "complete", lambda folder: folder.name)
    monkeypatch.setattr(lifecycle.feedback, "read", lambda *_: ())
    monkeypatch.setattr(lifecycle.feedback, "ask_reviews", lambda *_: None)
    monkeypatch.setattr(
        lifecycle, "prepare_snapshot", lambda _, previous, *__, live, **___: told.append((previous, live))
    )
    lifecycle.prepared(Sources("wiki", "docs"))
    assert told == [(SNAPSHOT, release().index.snapshot)]


def test_a_release_judged_against_a_champion_that_was_replaced_while_it_waited_is_held_before_it_is_warmed(
    tmp_path, monkeypatch
):
    book, candidate = new_ledger(tmp_path, "wiki"), release(model="c")
    go_live(book, release(model="a"))
    judged = Decision("promote", "Not worse.", candidate.id, release(model="a").id, look=1)

    def approved(book, decision, hours):
        go_live(book, release(model="a", index="new"))
        return decision

    sent: list[str] = []
    monkeypatch.setattr(lifecycle, "mirror", lambda *_, **__: None)
    monkeypatch.setattr(lifecycle.events, "emit", lambda event, *_, **__: sent.append(event))
    monkeypatch.setattr(lifecycle, "warm", lambda _: pytest.fail("warmed"))
    monkeypatch.setattr(lifecycle, "ledger", lambda: book)
    monkeypatch.setattr(lifecycle, "gated", lambda *_: judged)
    monkeypatch.setattr(lifecycle.approval, "approved", approved)
    monkeypatch.setattr(lifecycle.report, "gate", lambda *_: None)
    monkeypatch.setattr(lifecycle.precedents, "untuned", lambda *_: None)
    assert lifecycle.release.fn(candidate, "tuned", SNAPSHOT, OWN).name == "Held"
    assert sent == ["perennial.release.held"]
    said = book.gate_decision(candidate.id)
    assert said["verdict"] == "hold" and said["body"]["look"] == 0 and "Another release went live" in said["reason"]
