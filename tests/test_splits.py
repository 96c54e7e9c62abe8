"""A split test runs between two accepted releases, one at a time, and ends with a verdict on record."""

import pytest

from data import splits
from data.ledger import NotAccepted, PointerMoved
from tests.ledgers import accept, go_live, new_ledger, release

A, B, C = release(model="a"), release(model="c"), release(model="d")


@pytest.fixture
def ledger(tmp_path):
    """A is live, B is accepted and has answered its smoke query."""
    book = new_ledger(tmp_path, "wiki")
    go_live(book, A)
    accept(book, B)
    return book


def start(ledger, a=A, b=B, share=0.5):
    return splits.start(ledger, "wiki", a.id, b.id, share, {"days": 14})


def test_a_running_test_is_read_with_the_pointers(ledger):
    test = start(ledger, share=0.2)
    routing = ledger.live()["wiki"]
    assert (routing.live, routing.split, routing.b, routing.b_share) == (A, test.id, B, 0.2)
    assert splits.running(ledger) == splits.of(ledger, "wiki") == [test]
    assert [row["verdict"] for row in ledger.decisions("wiki", "split")] == ["started"]


def test_one_test_runs_at_a_time(ledger):
    start(ledger)
    accept(ledger, C)
    with pytest.raises(ValueError, match="is running"):
        start(ledger, b=C)


@pytest.mark.parametrize("kind, verdict", [("gate", "reject"), ("gate", "hold"), ("smoke", "silent")])
def test_a_release_that_failed_a_condition_gets_no_users(ledger, kind, verdict):
    ledger.decide("wiki", kind, B.id, verdict, "", {})
    with pytest.raises(NotAccepted, match=kind):
        start(ledger)
    assert splits.running(ledger) == [] and ledger.live()["wiki"].b is None


def test_a_release_without_a_gate_gets_no_users_unless_it_was_live_before(ledger):
    ledger.add_release(C, "tuned", None, {})
    ledger.decide("wiki", "smoke", C.id, "answered", "", {})
    with pytest.raises(NotAccepted, match="gate says nothing"):
        start(ledger, b=C)
    go_live(ledger, B)
    ledger.decide("wiki", "gate", A.id, "hold", "judged again", {})
    assert start(ledger, a=B, b=A).b == A.id


def test_a_release_of_another_assistant_gets_no_users(ledger):
    other = release("other")
    ledger.add_release(other, "tuned", None, {})
    with pytest.raises(NotAccepted, match="not a release of 'wiki'"):
        start(ledger, b=other)


def test_what_is_not_live_any_more_is_no_arm_a(ledger):
    go_live(ledger, C)
    with pytest.raises(PointerMoved, match="start again"):
        start(ledger)


@pytest.mark.parametrize("b, share", [(B, 0.0), (B, 1.0), (A, 0.5)])
def test_a_test_needs_two_releases_and_a_share_of_each(ledger, b, share):
    with pytest.raises(ValueError, match="give two releases"):
        start(ledger, b=b, share=share)


@pytest.mark.parametrize("verdict", ["a", "none", "stopped", "refused"])
def test_a_verdict_ends_the_test_once_and_is_on_record_with_its_figures(ledger, verdict):
    test = start(ledger)
    assert splits.decide(ledger, test, verdict, "because", {"judged": 1})
    assert not splits.decide(ledger, test, "stopped", "too late", {})
    assert ledger.live()["wiki"].b is None
    ended = splits.of(ledger, "wiki")[0]
    assert (ended.verdict, ended.reason) == (verdict, "because") and ended.ended >= ended.started
    row = ledger.decisions("wiki", "split")[0]
    assert (row["verdict"], row["release"], row["body"]["judged"]) == (verdict, B.id, 1)
    assert (row["body"]["split"], row["body"]["a"]) == (test.id, A.id)


def test_a_better_b_keeps_its_users_until_it_is_live_and_then_the_test_is_over(ledger):
    test = start(ledger)
    splits.decide(ledger, test, "b", "better", {})
    assert ledger.live()["wiki"].b == B and splits.running(ledger)[0].verdict == "b"
    ledger.promote("wiki", B.id, 1)
    assert ledger.live()["wiki"].b is None and splits.running(ledger) == []
    assert [row["verdict"] for row in ledger.decisions("wiki", "split")] == ["b", "started"]


def test_a_better_b_that_is_overtaken_before_it_is_live_says_so(ledger):
    splits.decide(ledger, start(ledger), "b", "better", {})
    go_live(ledger, C)
    assert splits.of(ledger, "wiki")[0].verdict == "overtaken"
    assert [row["verdict"] for row in ledger.decisions("wiki", "split")] == ["overtaken", "b", "started"]


def test_a_better_b_that_was_stopped_on_its_way_does_not_go_live(ledger):
    test, seq = start(ledger), ledger.assistant("wiki")["live_seq"]
    splits.decide(ledger, test, "b", "better", {})
    splits.decide(ledger, test, "stopped", "by eve", {})
    with pytest.raises(PointerMoved):
        ledger.promote("wiki", B.id, seq)
    assert ledger.live()["wiki"].live == A


@pytest.mark.parametrize("kind", ["promotion", "rollback"])
def test_a_test_ends_by_itself_when_the_live_pointer_moves_away(ledger, kind):
    go_live(ledger, C)
    go_live(ledger, A)
    start(ledger)
    ledger.promote("wiki", C.id, 3, kind=kind)
    ended = splits.of(ledger, "wiki")[0]
    assert ended.verdict == "overtaken" and ended.ended and f"{C.id} went live" in ended.reason
    assert ledger.decisions("wiki", "split")[0]["verdict"] == "overtaken"


def test_a_test_whose_arm_a_is_not_live_is_not_routed(ledger):
    start(ledger)
    with ledger.write() as c:
        c.exec_driver_sql("UPDATE assistants SET live_release = ?", (B.id,))
    assert ledger.live()["wiki"].b is None


def test_a_pointer_that_could_not_move_leaves_the_test_alone(ledger):
    start(ledger)
    with pytest.raises(PointerMoved):
        ledger.promote("wiki", B.id, 7)
    assert splits.running(ledger)


def test_the_pointer_of_another_assistant_leaves_the_test_alone(tmp_path):
    book = new_ledger(tmp_path, "wiki", "other")
    go_live(book, A)
    accept(book, B)
    start(book)
    go_live(book, release("other"))
    assert splits.running(book) and book.live()["other"].b is None


def test_only_the_verdicts_there_are_can_be_given(ledger):
    with pytest.raises(ValueError, match="no verdict"):
        splits.decide(ledger, start(ledger), "overtaken", "", {})
