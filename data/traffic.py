"""What the request log and the ratings say over time: sums and exact percentiles, added up by the database.

Every query is bounded by a time and reads one index of the log (`requests.READ_BY_TIME`) and no text of a request.
"""

from __future__ import annotations

import sqlalchemy as sa

from data.ledger import Ledger
from data.requests import RequestLog, requests
from data.tables import feedback

USERS = ("user", "direct")
"""Sources of requests that people sent, as against our own smoke, canary and probe requests."""
PERCENTILES = {"p50": 0.50, "p95": 0.95}
TIMED = ("first_token_s", "total_s")


def sums(log: RequestLog, assistant: str, since: float, step: float) -> list[dict]:
    """One row for each `step` seconds since `since` (epoch seconds) in which an assistant was asked, oldest first.

    `at` is where the step begins. Of people's requests: `requests`, `errors` (status 500 and above), `answered` (status
    200), `declined` of these, `grounding` (mean, 0 to 1; None: not measured). `tokens` and `cost` are of all requests,
    our own too.
    """
    c, slot = requests.c, _slot(requests.c.at, since, step)
    asked, ok = c.source.in_(USERS), _answered()
    columns = {
        "requests": _count(asked),
        "errors": _count(sa.and_(asked, c.status >= 500)),
        "answered": _count(ok),
        "declined": _count(sa.and_(ok, c.abstained)),
        "grounding": sa.func.avg(sa.case((ok, c.grounding))),
        "tokens": sa.func.sum(c.prompt_tokens + c.completion_tokens),
        "cost": sa.func.coalesce(sa.func.sum(c.cost), 0.0),
    }
    query = sa.select(slot, *(value.label(name) for name, value in columns.items()))
    query = query.where(c.assistant == assistant, c.at >= since).group_by(slot).order_by(slot)
    with log.engine.connect() as connection:
        return [_timed(dict(row), since, step) for row in connection.execute(query).mappings()]


def traffic(log: RequestLog, assistant: str, since: float, step: float) -> list[dict]:
    """`sums` with `total_s_p50`, `total_s_p95`, `first_token_s_p50` and `first_token_s_p95`: seconds of answers to
    people, by nearest rank; None where none was timed."""
    c, slot = requests.c, _slot(requests.c.at, since, step)
    inside = (c.assistant == assistant, c.at >= since, _answered())
    blank = {f"{column}_{name}": None for column in TIMED for name in PERCENTILES}
    rows = {row["at"]: blank | row for row in sums(log, assistant, since, step)}
    with log.engine.connect() as connection:
        for column in TIMED:
            for found in connection.execute(_percentiles(c[column], slot, inside)).mappings():
                at = _timed(dict(found), since, step)["at"]
                if at in rows:  # not a request of just now, after the sums
                    rows[at] |= {f"{column}_{name}": found[name] for name in PERCENTILES}
    return list(rows.values())


def _answered() -> sa.ColumnElement:
    return sa.and_(requests.c.source.in_(USERS), requests.c.status == 200)


def _count(condition: sa.ColumnElement) -> sa.ColumnElement:
    return sa.func.sum(sa.case((condition, 1), else_=0))


def _timed(row: dict, since: float, step: float) -> dict:
    """The row with the time at which its slot begins in place of the slot."""
    return {"at": since + row.pop("slot") * step} | row


def _slot(at: sa.ColumnElement, since: float, step: float) -> sa.ColumnElement:
    """Which step a time falls into, counted from 0."""
    return sa.cast(sa.func.floor((at - since) / step), sa.Integer).label("slot")


def _percentiles(column: sa.ColumnElement, slot: sa.ColumnElement, where: tuple) -> sa.Select:
    """Percentiles of a column within each slot: the least value that such a share of the values does not exceed."""
    below = sa.func.cume_dist().over(partition_by=slot, order_by=column).label("below")
    ranked = sa.select(slot, column.label("value"), below).where(*where, column.is_not(None)).subquery().c
    reached = {
        name: sa.func.min(sa.case((ranked.below >= share, ranked.value))).label(name)
        for name, share in PERCENTILES.items()
    }
    return sa.select(ranked.slot, *reached.values()).group_by(ranked.slot)


def ratings(ledger: Ledger, assistant: str, since: float, step: float) -> list[dict]:
    """Thumbs `up` and `down` in each `step` seconds since `since` that has any, oldest first; `at` as in `sums`."""
    f, slot = feedback.c, _slot(feedback.c.at, since, step)
    thumbs = {name: _count(f.rating == sign) for name, sign in (("up", 1), ("down", -1))}
    query = sa.select(slot, *(value.label(name) for name, value in thumbs.items()))
    query = query.where(f.assistant == assistant, f.at >= since, f.rating.is_not(None)).group_by(slot).order_by(slot)
    return [_timed(row, since, step) for row in ledger.rows(query)]
