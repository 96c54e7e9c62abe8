"""Sums and percentiles over the request log, as the database adds them up."""

import statistics
import time

import pytest
import sqlalchemy as sa

from data import traffic
from data.requests import READ_BY_TIME, RequestLog
from tests.ledgers import new_ledger
from tests.test_requests import row

SINCE, STEP = 1_000_000.0, 3600.0


@pytest.fixture
def log(tmp_path):
    log = RequestLog(f"sqlite:///{tmp_path}/requests.db")
    yield log
    log.close()


def written(log, *rows):
    for one in rows:
        log.write(one)
    log.flush()


def test_each_step_counts_what_people_asked_and_costs_what_we_asked_too(log):
    written(
        log,
        row("before", at=SINCE - 1),
        row("a", at=SINCE, abstained=True, grounding=0.5, prompt_tokens=10, cost=0.25),
        row("b", at=SINCE + 3599, source="direct", grounding=1.0, completion_tokens=5),
        row("c", at=SINCE + 10, status=503),
        row("d", at=SINCE + 10, status=499, abstained=True),
        row(
            "e", at=SINCE + 10, source="canary", status=500, prompt_tokens=100, cost=0.5, abstained=True, grounding=0.0
        ),
        row("f", at=SINCE + 2 * STEP, assistant="other"),
        row("g", at=SINCE + 3 * STEP),
    )
    first, last = traffic.sums(log, "helpdesk", SINCE, STEP)
    counts = {"requests": 4, "errors": 1, "answered": 2, "declined": 1}
    assert first == {"at": SINCE, "grounding": 0.75, "tokens": 115, "cost": 0.75} | counts
    assert (last["at"], last["requests"], last["grounding"]) == (SINCE + 3 * STEP, 1, None)


def test_percentiles_are_values_that_occurred_by_nearest_rank(log):
    seconds = [0.1 * n for n in range(1, 21)]
    written(log, *(row(f"r{n}", at=SINCE + n, total_s=s) for n, s in enumerate(seconds)), row("late", at=SINCE + STEP))
    written(
        log, row("ours", at=SINCE + 1, source="smoke", total_s=99.0), row("bad", at=SINCE, status=500, total_s=99.0)
    )
    first, second = traffic.traffic(log, "helpdesk", SINCE, STEP)
    assert (first["total_s_p50"], first["total_s_p95"]) == (seconds[9], seconds[18])
    assert first["total_s_p50"] <= statistics.median(seconds) and first["first_token_s_p50"] is None
    assert second["total_s_p95"] is None


def test_the_sums_read_one_index_and_never_the_rows(log):
    said = []

    @sa.event.listens_for(log.engine, "before_cursor_execute")
    def heard(connection, cursor, statement, parameters, *_):
        said.append((statement, parameters))

    traffic.traffic(log, "helpdesk", SINCE, STEP)
    asked = list(said)
    with log.engine.connect() as connection:
        for statement, parameters in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            reads = [step[-1] for step in plan if "requests" in step[-1]]
            assert reads and all(f"COVERING INDEX {READ_BY_TIME.name}" in step for step in reads), plan


def test_thumbs_are_counted_by_step(tmp_path):
    ledger = new_ledger(tmp_path, "wiki")
    for rating in (1, 1, -1, None):
        ledger.add_feedback("wiki", None, "r", rating, edit=None if rating else "better")
    (one,) = traffic.ratings(ledger, "wiki", time.time() // STEP * STEP - STEP, 3 * STEP)
    assert (one["up"], one["down"]) == (2, 1)
    assert traffic.ratings(ledger, "other", 0.0, STEP) == []
