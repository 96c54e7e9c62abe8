import sqlite3
import time

import numpy as np
import pytest
import sqlalchemy as sa

from data import requests as log_module
from data.requests import Logged, RequestLog


def row(response: str, **changed) -> Logged:
    return Logged(
        response, changed.pop("at", time.time()), changed.pop("assistant", "helpdesk"), "rel-1", "live", **changed
    )


@pytest.fixture
def log(tmp_path):
    log = RequestLog(f"sqlite:///{tmp_path}/requests.db")
    yield log
    log.close()


def test_a_row_comes_back_as_it_was_written(log):
    vector = np.linspace(-1, 1, 384).astype("<f2")
    chunks, scores = ("a", "b"), (0.5, 0.25)
    log.write(row("r1", question="q", chunks=chunks, scores=scores, embedding=vector.tobytes(), abstained=False))
    log.flush()
    (found,) = log.window("helpdesk")
    assert (
        found["id"] == 1 and found["question"] == "q" and found["chunks"] == ["a", "b"] and found["abstained"] is False
    )
    assert np.array_equal(np.frombuffer(found["embedding"], "<f2"), vector)
    assert found["similarity"] is None and found["source"] == "user" and found["status"] == 200


def test_the_window_continues_after_an_id_and_keeps_assistants_apart(log):
    for n in range(6):
        log.write(row(f"r{n}", assistant="helpdesk" if n % 2 else "other"))
    log.flush()
    first = log.window("helpdesk", 0, 2)
    rest = log.window("helpdesk", first[-1]["id"])
    assert [r["response"] for r in first + rest] == ["r1", "r3", "r5"]
    assert log.last_id("helpdesk") == rest[-1]["id"] and log.last_id("nobody") == 0


def test_rows_reach_another_reader_by_themselves(log, tmp_path):
    log.write(row("r1"))
    reader, deadline = RequestLog(f"sqlite:///{tmp_path}/requests.db"), time.monotonic() + 10
    while not reader.window("helpdesk") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(reader.window("helpdesk")) == 1
    reader.close()


def test_a_row_is_found_by_its_response_before_and_after_it_is_stored(log):
    log.write(row("r1", user="ann"))
    assert log.find("r1")["user"] == "ann"
    log.flush()
    assert log.find("r1")["id"] == 1 and log.find("r2") is None


def test_close_writes_what_is_still_waiting(tmp_path):
    log = RequestLog(f"sqlite:///{tmp_path}/requests.db")
    for n in range(1500):
        log.write(row(f"r{n}"))
    log.close()
    assert len(RequestLog(f"sqlite:///{tmp_path}/requests.db").window("helpdesk", limit=2000)) == 1500 and log.lost == 0


def test_a_database_that_refuses_delays_rows_and_loses_none(log, monkeypatch):
    begin, refusals = log.engine.begin, iter([True, False])

    def sometimes():
        if next(refusals, False):
            raise sa.exc.OperationalError("insert", {}, Exception("disk full"))
        return begin()

    monkeypatch.setattr(log.engine, "begin", sometimes)
    log.write(row("r1"))
    log.flush()
    assert len(log.window("helpdesk")) == 1 and log.lost == 0


def test_what_finds_the_queue_full_is_dropped_and_counted_and_never_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module, "WAITING_ROWS", 2)
    log = RequestLog(f"sqlite:///{tmp_path}/requests.db")
    monkeypatch.setattr(log, "_writer", object())  # a writer that never takes anything
    for n in range(5):
        log.write(row(f"r{n}"))
    assert log.lost == 3 and log.find("r4") is None


def test_one_response_twice_keeps_the_first_and_the_others_of_its_batch(log):
    log.write(row("r1", question="first"))
    log.write(row("r1", question="second"))
    log.write(row("r2"))
    log.flush()
    assert [(r["response"], r["question"]) for r in log.window("helpdesk")] == [("r1", "first"), ("r2", "")]
    assert log.lost == 1


def test_deleting_a_user_also_deletes_rows_not_yet_stored_and_nobody_elses(log, tmp_path):
    log.write(row("r1", user="ann", question="my secret question"))
    log.write(row("r2", user="bob"))
    assert log.delete_user("ann") == 1
    assert [r["user"] for r in log.window("helpdesk")] == ["bob"]
    log.close()
    assert b"my secret question" not in (tmp_path / "requests.db").read_bytes()


def test_rows_past_their_retention_are_deleted(log):
    log.write(row("old", at=time.time() - 31 * 86_400))
    log.write(row("new"))
    log.flush()
    assert log.prune(30) == 1 and [r["response"] for r in log.window("helpdesk")] == ["new"]


def test_a_log_of_an_earlier_version_gets_the_columns_it_lacks_and_keeps_its_rows(tmp_path):
    url, later = f"sqlite:///{tmp_path}/requests.db", ("key", "tenant", "cost", "flags")
    log = RequestLog(url)
    log.write(row("kept"))
    log.close()
    with sqlite3.connect(tmp_path / "requests.db") as earlier:
        for index in ("key", "by_time"):
            earlier.execute(f"DROP INDEX ix_requests_{index}")
        for column in later:
            earlier.execute(f"ALTER TABLE requests DROP COLUMN {column}")
    again = RequestLog(url)
    again.write(row("new"))
    again.flush()
    assert [again.find("kept")[column] for column in later] == [None] * 4
    assert again.find("new")["flags"] == []
    again.close()
