"""A person's word before a release goes live; what pausing really does is seen on the running Prefect server."""

import threading
import time
from dataclasses import replace

import pytest
from prefect import flow, resume_flow_run
from prefect.client.orchestration import get_client
from prefect.states import Completed

from data import reviews
from data.ledger import NotAccepted
from data.records import Decision
from flows import approval
from tests.ledgers import accept, new_ledger, release


@pytest.fixture
def book(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    accept(ledger, release())
    return ledger


def accepted() -> Decision:
    return Decision("promote", "Not worse than the champion.", release().id, "rel-old", look=1)


def waiting(book, hours: float):
    """A flow run that asks, as `release` does; its final state."""

    @flow
    def asks():
        decision = approval.approved(book, accepted(), hours)
        return Completed(name=decision.verdict, message=decision.reason)

    return asks(return_state=True)


def resume_when_paused(said: dict) -> threading.Thread:
    def act():
        with get_client(sync_client=True) as client:
            for _ in range(120):
                paused = [run for run in client.read_flow_runs() if run.state.is_paused()]
                if paused:
                    time.sleep(2)  # the form is saved after the state
                    resume_flow_run(paused[0].id, run_input=said)
                    return
                time.sleep(0.5)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


@pytest.mark.stack
def test_a_person_declines_and_the_release_may_not_go_live(stack, book):
    thread = resume_when_paused({"approve": False, "who": "Ada", "note": "names a customer"})
    state = waiting(book, hours=0.02)
    thread.join()
    assert (state.name, state.type.value) == ("reject", "COMPLETED")
    assert state.message == "Declined by Ada. names a customer The gate had said: Not worse than the champion."
    (row,) = book.decisions("wiki", "approval")
    assert (row["verdict"], row["body"]["who"]) == ("declined", "Ada") and abs(row["at"] - time.time()) < 60
    with pytest.raises(NotAccepted, match="gate says reject"):
        book.promote("wiki", release().id, 0)


@pytest.mark.stack
def test_a_deadline_that_passes_holds_and_the_run_ends_green(stack, book):
    state = waiting(book, hours=2 / 3600)
    assert (state.name, state.type.value) == ("hold", "COMPLETED")
    assert book.decisions("wiki", "approval")[0]["verdict"] == "expired"
    with pytest.raises(NotAccepted, match="gate says hold"):
        book.promote("wiki", release().id, 0)


def test_nobody_in_time_holds_the_release(book, monkeypatch):
    monkeypatch.setattr(approval, "ask", lambda decision, hours: None)
    held = approval.approved(book, accepted(), 24.0)
    assert (held.verdict, held.look) == ("hold", 0) and held.reason.startswith("Nobody approved it within 24 hours.")
    with pytest.raises(NotAccepted, match="gate says hold"):
        book.promote("wiki", release().id, 0)


def test_a_yes_on_record_is_not_asked_for_again(book, monkeypatch):
    asked = []

    def yes(decision, hours):
        asked.append(decision.release)
        return approval.Approval(approve=True, who="Ada", note="read it")

    monkeypatch.setattr(approval, "ask", yes)
    first, second = (approval.approved(book, accepted(), 1.0) for _ in range(2))
    assert first.accepted and second.accepted and asked == [release().id]
    assert first.notes == ("Approved by Ada. read it",)
    assert book.promote("wiki", release().id, 0) == 1


@pytest.mark.parametrize(("verdict", "asked"), [("accepted", 0), ("discarded", 1)])
def test_a_yes_in_the_review_queue_counts_and_after_a_no_a_person_is_asked(book, monkeypatch, verdict, asked):
    reviews.ask_held(book, "wiki", replace(accepted(), verdict="hold"))
    reviews.settle(book, reviews.items(book)[0].number, verdict, "eve")
    waited = []
    monkeypatch.setattr(approval, "ask", lambda decision, hours: waited.append(hours))
    assert approval.approved(book, accepted(), 24.0).accepted == (not asked)
    assert len(waited) == asked


def test_a_release_nobody_put_a_name_to_is_not_approved():
    with pytest.raises(ValueError, match="who"):
        approval.Approval(approve=True, who="")
