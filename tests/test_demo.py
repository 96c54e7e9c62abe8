"""What the demo waits for, how it judges its acts, and that it takes away nothing but its own."""

import json
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from data.records import Decision, Example, as_json
from flows import demo, people, stage
from flows.demo import Act
from flows.people import Reply
from flows.stage import NAME, NotSo, Scene
from settings import settings
from tests.ledgers import go_live, new_ledger, release

LIVE = release(NAME)


@pytest.fixture
def book(tmp_path):
    """A ledger in which the demo's assistant is live, beside another one."""
    found = new_ledger(tmp_path, NAME, "wiki")
    go_live(found, LIVE)
    go_live(found, release("wiki"))
    return found


@pytest.fixture
def monitor(book, monkeypatch):
    """The monitor's run replaced: what it does to the ledger is given."""

    def does(*acts):
        def run(chosen):
            for act in acts:
                act(book)
            return "http://prefect/run"

        monkeypatch.setattr(stage, "monitor_now", run)

    return does


def diagnosed(kind: str):
    return lambda book: book.decide(NAME, "diagnosis", LIVE.id, kind, f"because of {kind}", {"row": "3"})


def asked(kind: str, state: str = "acted"):
    def act(book):
        book.settle(book.open_remedy(NAME, kind, f"cause {len(book.outbox())}", {}), state, "a note")

    return act


def alerted(book):
    book.decide(NAME, "alert", LIVE.id, "told", "what", {"why": "The documents lack it.", "channels": {}})


def reply(text: str, right: str = "ten days", release: str = LIVE.id, cited=(), gone: str = "") -> Reply:
    return Reply("How long?", (right,), text, "r1", release, tuple(gone for _ in cited))


# --- performing -------------------------------------------------------------------------------


def test_an_act_that_fails_is_told_and_the_others_are_still_played(book, capsys):
    def fails(scene):
        raise NotSo("nothing came of it")

    def unreachable(scene):
        raise httpx.ConnectError("refused")

    acts = [("one", "e", fails), ("two", "e", unreachable), ("three", "e", lambda scene: ("it went", "http://link"))]
    done = demo.perform(Scene(book, None), acts)
    assert [act.held for act in done] == [False, False, True]
    shown = demo.table(done)
    assert "NotSo: nothing came of it" in shown and "http://link" in shown and shown.count(" NO ") == 2
    assert "NOT AS TOLD" in capsys.readouterr().out


@pytest.mark.parametrize(("held", "down", "code"), [(True, [], 0), (False, [], 1), (True, ["ray"], 1)])
def test_the_exit_code_says_whether_all_went_as_told_and_the_stack_is_well(monkeypatch, book, held, down, code):
    looks = iter([[], down])
    monkeypatch.setattr(demo, "unwell", lambda: next(looks))
    monkeypatch.setattr(demo.stack, "health", dict)
    monkeypatch.setattr(stage, "by_hand", lambda: stage.contextmanager(lambda: iter([None]))())
    monkeypatch.setattr(stage, "assistant", lambda _: stage.contextmanager(lambda: iter([Scene(book, None)]))())
    monkeypatch.setattr(demo, "perform", lambda _: [Act("a", "e", "h", held, 1.0, "")])
    assert demo.main() == code


def test_a_wait_ends(monkeypatch):
    seen = iter([None, 0, "there"])
    assert stage.wait_for(lambda: next(seen), 5, 0.001) == "there"
    with pytest.raises(NotSo, match="within 0 s"):
        stage.wait_for(lambda: None, 0.01, 0.001)


def test_the_settings_are_shown_by_what_is_not_usual():
    assert demo.shown(demo.GATES) == "GateSettings(margin=0.1)"
    assert "rollback_hours=0.01" in demo.shown(demo.TABLE) and "cost_retrain" not in demo.shown(demo.TABLE)


# --- judging ----------------------------------------------------------------------------------


def test_a_remedy_counts_when_it_was_asked_for_now_and_acted_on(book, monitor):
    asked("reindex")(book)
    monitor(diagnosed("reindex"), asked("reindex"))
    assert stage.healed(book, "reindex", demo.LABELS)["seq"] == 2
    for acts, why in (
        ((diagnosed("nothing"),), "no reindex was asked for, but nothing: because of nothing"),
        ((diagnosed("retrain"), asked("retrain")), "no reindex was asked for, but retrain"),
        ((diagnosed("reindex"), asked("reindex", "refused")), "reindex ended refused: a note"),
    ):
        monitor(*acts)
        with pytest.raises(NotSo, match=why):
            stage.healed(book, "reindex", demo.LABELS)


@pytest.mark.parametrize(
    ("acts", "problem"),
    [
        ((alerted,), ""),
        ((alerted, asked("retrain")), "more than an alert happened"),
        ((alerted, lambda book: go_live(book, release(NAME, model="c"))), "more than an alert happened"),
        ((), "nothing came of it"),
    ],
)
def test_an_unknown_topic_is_an_alert_and_nothing_else(book, monitor, monkeypatch, acts, problem):
    monkeypatch.setattr(demo, "ask_all", lambda *_: [])
    monkeypatch.setattr(demo, "wait_for", lambda what, _: stage.wait_for(what, 0.01, 0.001))
    monkeypatch.setattr(demo.time, "sleep", lambda _: None)
    monitor(*acts)
    if problem:
        with pytest.raises(NotSo, match=problem):
            demo.unknown_topic(Scene(book, None))
    else:
        assert demo.unknown_topic(Scene(book, None)) == (
            "alert: The documents lack it. Told by Prefect alone",
            "http://prefect/run",
        )


@pytest.mark.parametrize(
    ("verdict", "seen", "problem"),
    [
        ("rolledback", [reply("x")], ""),
        ("promote", [reply("x")], "promote: slow"),
        ("rolledback", [reply("x"), None], "1 of 2 questions meanwhile failed"),
        ("rolledback", [], "0 of 0"),
    ],
)
def test_a_bad_deploy_is_rolled_back_with_no_question_failed(book, monkeypatch, verdict, seen, problem):
    deployed = []

    def deploy(candidate):
        deployed.append(candidate)
        return Decision(verdict, "slow", candidate.id), "http://run"

    monkeypatch.setattr(stage, "deploy", deploy)
    monkeypatch.setattr(people, "asking", lambda *_: stage.contextmanager(lambda: iter([seen]))())
    if problem:
        with pytest.raises(NotSo, match=problem):
            demo.bad_deploy_rolled_back(Scene(book, None))
    else:
        assert demo.bad_deploy_rolled_back(Scene(book, None))[1] == "http://run"
    assert book.gate_decision(deployed[0].id)["verdict"] == "promote" and deployed[0].model == LIVE.model


@pytest.mark.parametrize(("verdict", "held"), [("reject", True), ("hold", False), ("promote", False)])
def test_a_poisoned_candidate_has_to_be_rejected(book, monkeypatch, verdict, held):
    monkeypatch.setattr(stage, "poison", lambda _: (Decision(verdict, "why", "rel-x"), "http://run"))
    if held:
        assert demo.poison_refused(Scene(book, None))[0] == "reject: why"
    else:
        with pytest.raises(NotSo, match=f"{verdict}: why"):
            demo.poison_refused(Scene(book, None))


@pytest.mark.parametrize(
    ("shares", "retrained", "problem"),
    [
        ((0.9, 0.4, 0.5, 0.8, 0.6), True, ""),
        ((0.9, 0.9, 0.9), True, "answered as well as the usual one"),
        ((0.9, 0.4, 0.5, 0.4, 0.5), True, "other style 40% -> 40%"),
        ((0.9, 0.4, 0.5, 0.8, 0.2), True, "50% -> 20% elsewhere"),
        ((0.9, 0.4, 0.5, 0.8, 0.6), False, "no new model is live"),
    ],
)
def test_quality_has_to_fall_and_to_come_back_by_a_new_model(book, monkeypatch, tmp_path, shares, retrained, problem):
    shares = list(shares)

    def answer(name, questions):
        right = round(shares.pop(0) * len(questions))
        return [reply("ten days" if n < right else "no idea") for n in range(len(questions))]

    def healed(*_):
        if retrained:
            go_live(book, release(NAME, model="c"))
        return {"claimed_by": "run-1", "note": ""}

    scene = Scene(book, stage.SAMPLE / "documents")
    monkeypatch.setattr(demo, "ask_all", answer)
    monkeypatch.setattr(demo, "ask", lambda *_: reply("ten days", release=scene.live.id))
    monkeypatch.setattr(people, "label", lambda *_: None)
    monkeypatch.setattr(stage, "monitor_now", lambda _: "")
    monkeypatch.setattr(demo, "healed", healed)
    if problem:
        with pytest.raises(NotSo, match=problem):
            demo.style_changes(scene)
    else:
        happened, link = demo.style_changes(scene)
        assert happened == "usual 90% right; other style 40% -> 80% where corrected, 50% -> 60% elsewhere"
        assert link.endswith("/run-1")


@pytest.mark.parametrize(
    ("cited", "indexed", "problem"),
    [
        ((["gone"], []), True, ""),
        ((["gone"], ["gone"]), True, "cited 1 -> 1 times"),
        ((["gone"], []), False, "no new index is live"),
    ],
)
def test_changed_documents_have_to_be_answered_from_and_deleted_ones_not_cited(
    book, monkeypatch, tmp_path, cited, indexed, problem
):
    gone = (stage.SAMPLE / "edition2_removed.txt").read_text().split()[0]
    for page in (*demo.EDITED, gone):
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("the first edition")
    scene = Scene(book, tmp_path)
    rounds = iter(
        [[reply("no idea")], [reply("x", cited=cited[0], gone=gone)], [reply("ten days")],
         [reply("x", cited=cited[1], gone=gone)]]
    )  # fmt: skip

    def healed(*_):
        assert not (tmp_path / gone).exists()
        assert all((tmp_path / page).read_text() != "the first edition" for page in demo.EDITED)
        if indexed:
            go_live(book, release(NAME, index="new"))
        return {"claimed_by": "run-1"}

    monkeypatch.setattr(demo, "ask_all", lambda *_: next(rounds))
    monkeypatch.setattr(demo, "ask", lambda *_: reply("ten days", release=scene.live.id))
    monkeypatch.setattr(demo, "healed", healed)
    if problem:
        with pytest.raises(NotSo, match=problem):
            demo.documents_change(scene)
    else:
        assert demo.documents_change(scene)[0] == (
            "0% -> 100% right by the new edition; the deleted page cited 1 -> 0 times"
        )


# --- the stage --------------------------------------------------------------------------------


def test_the_questions_on_stage_are_enough_and_their_documents_are_there():
    scene = Scene(None, stage.SAMPLE / "documents")
    assert len(scene.answerable("examples.jsonl")) == 360
    assert len(stage.some(scene.answerable("stream2.jsonl"), demo.CORRECTED + demo.OTHERS)) == 200
    assert scene.answerable("examples.jsonl")[:5] != stage.some(scene.answerable("examples.jsonl"), 5)
    golden = [json.loads(line) for line in stage.golden_questions()]
    assert (sum(bool(one["answers"]) for one in golden), sum(not one["answers"] for one in golden)) == (120, 40)
    assert Scene(None, stage.SAMPLE / "nowhere").answerable("examples.jsonl") == []


def test_the_pages_that_change_have_new_answers_and_the_deleted_one_is_asked_about():
    gone = (stage.SAMPLE / "edition2_removed.txt").read_text().split()[0]
    about = {one.document for one in stage.examples("edition2_questions.jsonl")}
    assert about.issuperset(demo.EDITED) and all((stage.SAMPLE / "edition2" / page).exists() for page in demo.EDITED)
    assert [one for one in stage.examples("examples.jsonl") if one.document == gone]
    assert (stage.SAMPLE / "documents" / gone).exists()


def test_removing_the_demo_takes_nothing_of_another_assistant(book, tmp_path, monkeypatch):
    tuned, cooled = replace(release(NAME, model="c")), []
    go_live(book, tuned)
    waiting = book.open_remedy(NAME, "reindex", "edit", {})
    monkeypatch.setattr(stage.removal.registry, "forget", lambda name: 0)
    monkeypatch.setattr(stage, "cool", cooled.append)
    (tmp_path / NAME).mkdir()
    before = as_json(release("wiki"))
    stage.remove(book, tmp_path / NAME)
    assert [row["name"] for row in book.assistants()] == ["wiki"] and not (tmp_path / NAME).exists()
    assert book.outbox() == [] and waiting and book.decisions(NAME) == []
    assert as_json(book.live()["wiki"].live) == before
    assert cooled == [{tuned.model.sha256}], "the other assistant's artifact stays warm"
    stage.remove(book, tmp_path / NAME)


def test_the_monitors_schedule_comes_back_whatever_happens(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stage, "schedule", said.append)
    monkeypatch.setattr(stage, "settings", lambda: SimpleNamespace(home=tmp_path))
    (tmp_path / "deployed").write_text("sha")
    with pytest.raises(KeyboardInterrupt), stage.by_hand():
        assert not (tmp_path / "deployed").exists(), "a killed demo leaves it to the next start to deploy the schedule"
        raise KeyboardInterrupt
    assert said == [False, True] and (tmp_path / "deployed").read_text() == "sha"


def test_a_demo_after_one_that_was_killed_runs_and_brings_the_schedule_back(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stage, "schedule", said.append)
    monkeypatch.setattr(stage, "settings", lambda: SimpleNamespace(home=tmp_path))
    with stage.by_hand():
        pass
    assert said == [False, True] and not (tmp_path / "deployed").exists(), "the next start still deploys everything"


def test_the_poisoned_candidate_is_trained_for_the_demos_own_assistant_and_goes_with_it(book, tmp_path, monkeypatch):
    go_live(book, release(NAME))
    trained = []
    monkeypatch.setattr(stage, "Ledger", lambda _: book)
    monkeypatch.setattr("tasks.prepare.prepare", lambda sources: trained.append(sources.assistant))
    monkeypatch.setattr(stage, "finetune_model", lambda *_: release(NAME, model="c").model)
    monkeypatch.setattr(stage, "known_snapshot", lambda name: None)
    monkeypatch.setattr(stage, "release_candidate", lambda candidate, *_: candidate.assistant)
    assert stage.poison.fn(str(tmp_path / "documents"))[0] == NAME and trained == [NAME]


def test_without_a_tuned_handbook_there_is_nothing_to_begin_with(book):
    with pytest.raises(SystemExit, match="make run first"), stage.assistant(book):
        pass


# --- people -----------------------------------------------------------------------------------


def test_an_answer_is_right_when_a_right_one_stands_in_it_as_whole_words():
    assert reply("It is ten days [1].").correct and reply("It is Ten days").correct
    assert not reply("often daysie").correct and not reply("").correct
    assert people.share_correct([reply("ten days"), reply("no")]) == 0.5


def test_people_rate_every_answer_correct_the_wrong_ones_and_a_reviewer_accepts(book, monkeypatch):
    posted = []

    def post(path, body):
        posted.append(body)
        said = {name: body.get(name) for name in ("rating", "edit", "user")}
        book.add_feedback(NAME, LIVE.id, body["response_id"], **said, question="How long?", answer="x")

    monkeypatch.setattr(people, "post", post)
    assert people.label(book, NAME, [reply("ten days"), reply("no")]) == 2
    assert [body["rating"] for body in posted] == [1, -1]
    assert "edit" not in posted[0] and posted[1]["edit"] == "ten days"
    from tasks.labels import labels

    assert [(label.wrong, label.right) for label in labels(book, NAME)] == [(False, "x"), (True, "ten days")]
    assert people.label(book, NAME, [reply("no")]) == 1, "what was labelled before is not labelled again"


def test_somebody_asking_meanwhile_notes_what_was_not_answered(monkeypatch):
    turns = iter([reply("x"), httpx.ConnectError("gone"), reply("y")])

    def ask(*_):
        turn = next(turns, reply("z"))
        if isinstance(turn, Exception):
            raise turn
        return turn

    monkeypatch.setattr(people, "ask", ask)
    monkeypatch.setattr(people, "PAUSE_S", 0.001)
    with people.asking(NAME, "What is QB-244?") as seen:
        stage.wait_for(lambda: len(seen) >= 3, 5, 0.001)
    assert [one is None for one in seen[:3]] == [False, True, False]


def test_the_address_of_a_run_is_the_uis():
    assert stage.run_link("42") == f"{settings().prefect.removesuffix('/api')}/runs/flow-run/42"
    assert isinstance(stage.examples("golden.jsonl")[0], Example)
