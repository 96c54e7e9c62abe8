"""Feedback in the ledger: appended, read with what it was about, reviewed, withdrawn, and traced to models."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from data import feedback
from data.feedback import Place, read, review_feedback, withdraw
from data.ledger import Ledger, migrate
from data.records import Chunk, Model, Prompt, Shot
from data.snapshots import Writer
from data.trainings import record_training, shown_in, trained_on
from tests.ledgers import accept, go_live, new_ledger, release

COUNTS = ("documents", "sections", "examples", "golden", "aged", "quarantined", "duplicates", "leaked")
PLACES = {"c1": Place("a.md", "Trial"), "c2": Place("a.md", "Trial"), "c3": Place("b.md", "Price")}


@pytest.fixture
def ledger(tmp_path):
    return new_ledger(tmp_path, "wiki", "other")


def add(ledger, assistant="wiki", edit="21 days", rating=-1, user="ann", owner="key-1", **more):
    about = {"question": "How long?", "answer": "9 days", "chunks": ("c1", "c2", "c3")} | more
    return ledger.add_feedback(assistant, release().id, f"r{edit}", rating, edit, None, user, owner, **about)


def snapshot(folder, *seqs, name="snap-1", left_out=()):
    """A snapshot that was trained on feedback `seqs`; of no documents."""
    writer = Writer(folder)
    writer.add("feedback", ({"seq": seq, "kind": "example", "item": "i"} for seq in seqs))
    writer.add("feedback_left_out", left_out)
    writer.finish("feedback", "feedback_left_out")
    return writer.close(name, {}, assistant="wiki", **dict.fromkeys(COUNTS, 0))


def rows(ledger, assistant="wiki"):
    return read(ledger, assistant, find=lambda *_: PLACES)


def test_a_row_comes_back_with_its_owner_its_question_and_the_sections_shown(ledger):
    assert add(ledger) == 1
    (one,) = rows(ledger)
    assert (one.seq, one.owner, one.question, one.answer, one.edit) == (1, "key-1", "How long?", "9 days", "21 days")
    assert one.places == (Place("a.md", "Trial"), Place("b.md", "Price")) and not one.reviewed and not one.withdrawn
    assert rows(ledger, "other") == ()


def test_what_a_tenants_people_said_is_kept_and_never_read_for_training(ledger):
    add(ledger, edit="21 days")
    add(ledger, edit="our contract says 90 days", tenant="acme")
    assert [row["tenant"] for row in ledger.feedback("wiki")] == ["", "acme"]
    assert [one.edit for one in rows(ledger)] == ["21 days"]


def test_no_personal_data_is_read_even_from_rows_stored_with_it(ledger):
    add(ledger, edit="ask ann.berg@example-mail.com or support@example-mail.com", question="I am a@b.org, when?")
    (one,) = rows(ledger)
    assert one.edit == "ask [email] or support@example-mail.com" and one.question == "I am [email], when?"


def test_a_row_from_before_rows_held_the_question_looks_in_the_request_log(ledger):
    add(ledger, question=None, answer=None, chunks=())
    log = SimpleNamespace(find=lambda response: {"question": "Why?", "answer": "So.", "chunks": ["c3"]})
    (one,) = read(ledger, "wiki", log, lambda *_: PLACES)
    assert (one.question, one.answer, one.places) == ("Why?", "So.", (Place("b.md", "Price"),))
    assert rows(ledger)[0].question == ""


def test_a_review_says_who_and_when_and_the_last_one_counts(ledger):
    seq = add(ledger)
    review_feedback(ledger, seq, "accepted", "eve")
    review_feedback(ledger, seq, "corrected", "dan", "22 days, ask a@b.org")
    (one,) = rows(ledger)
    assert (one.verdict, one.reviewer, one.correction) == ("corrected", "dan", "22 days, ask [email]") and one.reviewed
    (row,) = ledger.reviews("wiki", "settled")
    assert row["settled_at"] > 0 and row["body"]["earlier"][0]["reviewer"] == "eve"


@pytest.mark.parametrize(
    "seq, verdict, reviewer, answer, says",
    [
        (9, "accepted", "eve", None, "no feedback number 9"),
        (1, "liked", "eve", None, "use one of accepted, corrected, discarded"),
        (1, "accepted", " ", None, "Give the reviewer's name"),
        (1, "corrected", "eve", None, "an answer belongs to the verdict"),
        (1, "accepted", "eve", "22 days", "an answer belongs to the verdict"),
        (2, "accepted", "eve", None, "nothing to accept"),
    ],
)
def test_a_review_that_decides_nothing_is_refused(ledger, seq, verdict, reviewer, answer, says):
    add(ledger)
    add(ledger, edit=None, rating=None)
    with pytest.raises((KeyError, ValueError), match=says):
        review_feedback(ledger, seq, verdict, reviewer, answer)
    assert not rows(ledger)[0].verdict


def test_edits_wait_for_review_once_each_and_only_so_many(ledger, tmp_path, monkeypatch):
    for edit in ("21 days", "21 Days", "22 days", None, "23 days", "24 days"):
        add(ledger, edit=edit)
    made = snapshot(tmp_path, 5, left_out=[{"seq": 3, "guard": "trigger", "reason": "from nowhere"}])
    monkeypatch.setattr(feedback, "MOST_ASKED", 2)
    assert [feedback.ask_reviews(ledger, rows(ledger), made) for _ in range(2)] == [1, 1]
    waiting = [(row["body"]["edit"], row["body"]["why"]) for row in ledger.reviews("wiki")]
    assert waiting == [("21 days", ""), ("22 days", "trigger: from nowhere")]
    review_feedback(ledger, 1, "discarded", "eve")
    assert feedback.ask_reviews(ledger, rows(ledger), made) == 0
    assert [row["body"]["edit"] for row in ledger.reviews("wiki")] == ["22 days", "24 days"]


def test_feedback_is_withdrawn_by_number_owner_user_or_time_and_says_why(ledger):
    for number in range(6):
        add(ledger, owner=f"key-{number % 2}", user=f"user{number % 3}")
    times = [row["at"] for row in ledger.feedback("wiki")]
    assert withdraw(ledger, "wiki", "wrong product", "ops", seqs=(1,)) == (1,)
    assert withdraw(ledger, "wiki", "a flood", "ops", owner="key-1") == (2, 4, 6)
    assert withdraw(ledger, "wiki", "a flood", "ops", owner="key-1") == ()
    assert withdraw(ledger, "wiki", "spam", "ops", user="user2", since=times[2], until=times[4]) == (3,)
    assert [bool(one.withdrawn) for one in rows(ledger)] == [True, True, True, True, False, True]
    assert rows(ledger)[1].withdrawn == "by ops: a flood"


def test_a_withdrawal_of_everything_or_of_nothing_known_is_refused(ledger):
    add(ledger)
    with pytest.raises(ValueError, match="withdraw which feedback"):
        withdraw(ledger, "wiki", "?", "ops")
    with pytest.raises(KeyError, match="no feedback number 7"):
        withdraw(ledger, "wiki", "?", "ops", seqs=(1, 7))
    with pytest.raises(KeyError, match="no feedback number 1 on 'other'"):
        withdraw(ledger, "other", "?", "ops", seqs=(1,))
    assert not rows(ledger)[0].withdrawn


def test_a_forgotten_users_texts_are_gone_everywhere_in_the_ledger(ledger, tmp_path):
    add(ledger, edit="my secret")
    add(ledger, user="bob")
    feedback.ask_reviews(ledger, rows(ledger), snapshot(tmp_path))
    assert feedback.forget(ledger, "wiki", "ann") == 1
    mine, others = rows(ledger)
    assert mine.withdrawn and mine.edit is None and mine.question == "" and others.edit == "21 days"
    assert "my secret" not in str(ledger.feedback("wiki")) + str(ledger.rows(sa.select(feedback.reviews)))


def test_the_models_trained_on_poisoned_feedback_and_their_releases_are_named(ledger, tmp_path):
    seqs = [add(ledger) for _ in range(3)]
    clean, bad = release(model="a"), release(model="c", index="one")
    bad_again = replace(bad, index=release(index="two").index)
    record_training(ledger, clean.model, snapshot(tmp_path, seqs[0]))
    for _ in range(2):
        record_training(ledger, bad.model, snapshot(tmp_path, *seqs, name="snap-2"))
    go_live(ledger, clean)
    accept(ledger, bad)
    go_live(ledger, bad_again)
    (found,) = trained_on(ledger, "wiki", seqs[1:])
    assert (found.model, found.snapshot, found.feedback) == (bad.model.sha256, "snap-2", tuple(seqs[1:]))
    assert set(found.releases) == {bad.id, bad_again.id} and found.live and found.recorded
    assert {one.model for one in trained_on(ledger, "wiki", seqs)} == {clean.model.sha256, bad.model.sha256}
    assert trained_on(ledger, "other", seqs) == ()


def test_a_tuned_model_whose_training_nobody_recorded_may_hold_the_feedback(ledger):
    tuned = lambda name: replace(release(), model=Model(name * 64, "m", "openvino", "b", adapter="x"))  # noqa: E731
    accept(ledger, tuned("a"))
    seq = add(ledger)
    assert trained_on(ledger, "wiki", [seq]) == ()
    accept(ledger, tuned("c"))
    accept(ledger, release(model="d"), "bootstrap")
    (found,) = trained_on(ledger, "wiki", [seq])
    assert (found.model, found.recorded, found.feedback) == ("c" * 64, False, ())


def test_the_releases_that_show_feedback_as_a_worked_example_are_named(ledger):
    seq, other = add(ledger), add(ledger)
    shots = tuple(Shot("Q?", "A", Chunk("c1", "d", "D", "S", "h", "A."), label) for label in (seq, -4))
    taught = replace(release(), prompt=Prompt(shots=shots))
    for one in (release(), taught, replace(taught, index=release(index="two").index)):
        accept(ledger, one)
    assert shown_in(ledger, "wiki", [other]) == {}
    assert list(shown_in(ledger, "wiki", [seq, -4, other]).values()) == [(-4, seq)] * 2
    assert taught.id in shown_in(ledger, "wiki", [-4])


def test_chunks_are_looked_up_in_the_live_index_and_then_in_the_one_that_showed_them(ledger, monkeypatch):
    import data.store

    old, live = release(index="old"), release(index="new")
    accept(ledger, old)
    go_live(ledger, live)
    held = {
        "new": {"c1": ("a.md", "Trial", "hash")},
        "old": {"c1": ("wrong", "wrong", ""), "c2": ("b.md", "Price", "h")},
    }

    def opened(index):
        return SimpleNamespace(places=lambda: held[index.checksum])

    monkeypatch.setattr(data.store, "open_index", opened)
    found = feedback.places_of(ledger, "wiki", {old.id: {"c1", "c2", "gone"}, None: {"c9"}, "rel-unknown": {"c8"}})
    assert found == {"c1": Place("a.md", "Trial"), "c2": Place("b.md", "Price")}


def test_a_damaged_index_costs_places_and_nothing_else(ledger, monkeypatch):
    import data.store

    def damaged(index):
        raise data.store.IndexDamaged("gone")

    monkeypatch.setattr(data.store, "open_index", damaged)
    go_live(ledger, release())
    add(ledger)
    (one,) = read(ledger, "wiki")
    assert one.places == () and one.edit == "21 days"


def test_a_ledger_of_the_first_schema_keeps_its_feedback(tmp_path):
    from alembic import command
    from alembic.config import Config

    from settings import ROOT

    url = f"sqlite:///{tmp_path}/old.db"
    config = Config()
    config.set_main_option("script_location", str(ROOT / "data" / "migrations"))
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, "0001")
    old = sa.create_engine(url)
    with old.begin() as c:
        c.exec_driver_sql("INSERT INTO feedback (assistant, response, rating, edit, at) VALUES ('wiki','r',-1,'x',1.0)")
    migrate(url)
    (one,) = read(Ledger(url), "wiki", find=lambda *_: {})
    assert (one.edit, one.owner, one.question) == ("x", None, "")
    command.downgrade(config, "0001")
    with old.begin() as c:
        assert c.exec_driver_sql("SELECT edit FROM feedback").scalar() == "x"
