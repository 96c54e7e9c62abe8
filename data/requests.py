"""The request log: one row per answered or failed request, in a database of its own, written by one thread.

A request never waits for the log. Rows reach the database in batches at most `BATCH_S` apart, so a crash may lose one
second of them; what the log itself had to drop is counted in `lost`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import sqlalchemy as sa

BATCH_S = 0.5
BATCH_ROWS = 500
WAITING_ROWS = 10_000

metadata = sa.MetaData()
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("response", sa.String, index=True, unique=True),
    sa.Column("at", sa.Float, index=True),
    sa.Column("assistant", sa.String, index=True),
    sa.Column("release", sa.String),
    sa.Column("arm", sa.String),
    sa.Column("source", sa.String),
    sa.Column("user", sa.String, index=True),
    sa.Column("question", sa.Text),
    sa.Column("answer", sa.Text),
    sa.Column("abstained", sa.Boolean),
    sa.Column("chunks", sa.JSON),
    sa.Column("scores", sa.JSON),
    sa.Column("cited", sa.JSON),
    sa.Column("similarity", sa.Float),
    sa.Column("grounding", sa.Float),
    sa.Column("embedding", sa.LargeBinary),
    sa.Column("prompt_tokens", sa.Integer),
    sa.Column("completion_tokens", sa.Integer),
    sa.Column("queue_s", sa.Float),
    sa.Column("retrieval_s", sa.Float),
    sa.Column("engine_s", sa.Float),
    sa.Column("first_token_s", sa.Float),
    sa.Column("total_s", sa.Float),
    sa.Column("status", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("key", sa.String, index=True),
    sa.Column("tenant", sa.String),
    sa.Column("cost", sa.Float),
    sa.Column("flags", sa.JSON),
    sa.Column("reuse", sa.String),
    sa.Column("reuse_of", sa.String),
    sa.Column("saved_prompt_tokens", sa.Integer),
    sa.Column("saved_completion_tokens", sa.Integer),
    sa.Column("saved_cost", sa.Float),
)
READ_BY_TIME = sa.Index(
    "ix_requests_by_time",
    *(requests.c[name] for name in ("assistant", "at", "source", "status", "abstained", "grounding")),
    *(requests.c[name] for name in ("prompt_tokens", "completion_tokens", "first_token_s", "total_s", "cost")),
)
"""All that data/traffic adds up, so that it never reads the rows, which hold texts and vectors."""
TOTALLED = ("key", "user", "tenant", "assistant", "release")
"""By what requests can be added up."""


@dataclass
class Logged:
    """One request as it is logged, filled while it is answered. Times in seconds; None: not reached.

    `arm`: live | canary | pinned, and in a split test a (the live release) | b. `source`: user | direct | smoke |
    canary | probe, where direct is a user's who had nothing searched, or only where nothing was found: no measure of
    the release. `cited` and `chunks` are chunk ids, `scores` their fused scores, `similarity` the best cosine,
    `embedding` the question's vector as little-endian float16. `queue_s` is from arrival to the start of retrieval,
    `engine_s` from submission to the engine's last token, `first_token_s` and `total_s` from arrival. `status` is the
    HTTP status, 499 when the client went away. `key` is the id of the key it came with, '' without one, `tenant` the
    key's; `cost` is by the settings' prices; `flags` are what serving/screens found. `reuse`: whether an earlier answer
    was given again (serving/semantic), to an exact or a similar question, or was looked for in vain: exact | similar |
    miss | ''. `reuse_of` is that answer's response, and what it had read, written and cost is saved.
    """

    response: str
    at: float
    assistant: str
    release: str
    arm: str
    source: str = "user"
    user: str | None = None
    question: str = ""
    answer: str = ""
    abstained: bool | None = None
    chunks: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    cited: tuple[str, ...] = ()
    similarity: float | None = None
    grounding: float | None = None
    embedding: bytes | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float | None = None
    retrieval_s: float | None = None
    engine_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    status: int = 200
    error: str = ""
    key: str = ""
    tenant: str = ""
    cost: float = 0.0
    flags: tuple[str, ...] = ()
    reuse: str = ""
    reuse_of: str = ""
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0
    saved_cost: float = 0.0

    @property
    def token_s(self) -> float | None:
        """Seconds per completion token after the first one; None where there is no second."""
        if None in (self.first_token_s, self.total_s) or self.completion_tokens < 2:
            return None
        return (self.total_s - self.first_token_s) / (self.completion_tokens - 1)


def asker(owner: str | None, user: str | None) -> str:
    """Whose a request is, as one voice: the owner of its key and, within it, the user; '' where neither is known."""
    return f"{owner or ''}/{user or ''}" if owner or user else ""


class RequestLog:
    """The log at `url` (SQLAlchemy URL). Reading needs no thread; the first `write` starts the writer."""

    def __init__(self, url: str):
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(url, pool_pre_ping=True)
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
        metadata.create_all(self.engine)
        _add_columns(self.engine)
        self.lost = 0
        self._waiting: queue.Queue[Logged | None] = queue.Queue(WAITING_ROWS)
        self._recent: dict[str, Logged] = {}  # not yet in the database, by response id
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closing = threading.Event()

    # --- writing ------------------------------------------------------------------------------

    def write(self, row: Logged) -> None:
        """Queue `row`; never blocks. A row that finds the queue full is dropped and counted in `lost`."""
        with self._starting:
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name="request-log", daemon=True)
                self._writer.start()
        self._recent[row.response] = row
        try:
            self._waiting.put_nowait(row)
        except queue.Full:
            self._recent.pop(row.response, None)
            self.lost += 1

    def _run(self) -> None:
        ending = False
        while not ending:
            batch = [self._waiting.get()]
            deadline = time.monotonic() + BATCH_S
            while batch[-1] is not None and len(batch) < BATCH_ROWS:
                try:
                    batch.append(self._waiting.get(timeout=max(0.0, deadline - time.monotonic())))
                except queue.Empty:
                    break
            ending = batch[-1] is None
            if rows := [row for row in batch if row is not None]:
                self._insert(rows)
            for _ in batch:
                self._waiting.task_done()

    def _insert(self, rows: list[Logged]) -> None:
        """Insert a batch; while the database refuses (locked, disk full) wait and try again until `close`."""
        values = [asdict(row) for row in rows]
        while True:
            try:
                with self.engine.begin() as connection:
                    connection.execute(requests.insert(), values)
                break
            except sa.exc.IntegrityError:  # one response id twice: keep the first, one by one
                self.lost += sum(not self._insert_one(value) for value in values)
                break
            except sa.exc.SQLAlchemyError:
                if self._closing.wait(1.0):
                    self.lost += len(rows)
                    break
        for row in rows:
            self._recent.pop(row.response, None)

    def _insert_one(self, value: dict) -> bool:
        try:
            with self.engine.begin() as connection:
                connection.execute(requests.insert(), value)
        except sa.exc.SQLAlchemyError:
            return False
        return True

    def flush(self) -> None:
        """Wait until everything written so far is in the database."""
        if self._writer:
            self._waiting.join()

    def close(self) -> None:
        """Write what is waiting and stop the writer."""
        self._closing.set()
        if self._writer:
            self._waiting.put(None)
            self._writer.join(10)
        self.engine.dispose()

    # --- reading ------------------------------------------------------------------------------

    def window(self, assistant: str, since_id: int = 0, limit: int = 1000) -> list[dict]:
        """Up to `limit` rows of an assistant with `id` above `since_id`, oldest first, keyed by the columns' names."""
        chosen = sa.select(requests).where(requests.c.assistant == assistant, requests.c.id > since_id)
        return self._rows(chosen.order_by(requests.c.id).limit(limit))

    def last_id(self, assistant: str) -> int:
        """The highest `id` of an assistant, 0 when it has none."""
        with self.engine.connect() as connection:
            last = sa.select(sa.func.max(requests.c.id)).where(requests.c.assistant == assistant)
            return connection.execute(last).scalar() or 0

    def find(self, response: str) -> dict | None:
        """The row of one response id, also while it still waits to be written by this process."""
        if waiting := self._recent.get(response):
            return asdict(waiting)
        found = self._rows(sa.select(requests).where(requests.c.response == response))
        return found[0] if found else None

    def rows(self, ids: Sequence[int]) -> list[dict]:
        """The rows with these `id`s that are still kept, oldest first."""
        found = []
        for first in range(0, len(ids), 500):  # SQLite takes about a thousand parameters in one statement
            chosen = sa.select(requests).where(requests.c.id.in_(list(ids[first : first + 500])))
            found += self._rows(chosen.order_by(requests.c.id))
        return found

    def totals(self, by: str, since: float) -> list[dict]:
        """Per value of the column `by` (one of TOTALLED): requests, tokens, engine seconds and cost since that time."""
        c = requests.c
        summed = [c.prompt_tokens, c.completion_tokens, c.engine_s, c.cost]
        columns = [c[by], sa.func.count().label("requests")]
        columns += [sa.func.coalesce(sa.func.sum(column), 0).label(column.name) for column in summed]
        return self._rows(sa.select(*columns).where(c.at >= since).group_by(c[by]).order_by(c[by]))

    def reused(self, since: float) -> list[dict]:
        """Per assistant: requests that an earlier answer was looked for, how many got one, and what that saved."""
        c = requests.c
        found = [sa.func.sum(sa.case((c.reuse == kind, 1), else_=0)).label(kind) for kind in ("exact", "similar")]
        tokens = sa.func.sum(c.saved_prompt_tokens + c.saved_completion_tokens).label("saved_tokens")
        columns = [
            c.assistant,
            sa.func.count().label("looked_for"),
            *found,
            tokens,
            sa.func.sum(c.saved_cost).label("saved_cost"),
        ]
        return self._rows(sa.select(*columns).where(c.at >= since, c.reuse != "").group_by(c.assistant))

    def given_again(self, assistant: str, since: float) -> list[dict]:
        """Requests that got an earlier answer, newest first: response, question, reuse, and the question it was to."""
        c, first = requests.c, requests.alias()
        columns = [c.response, c.question, c.reuse, first.c.question.label("earlier")]
        both = requests.outerjoin(first, first.c.response == c.reuse_of)
        chosen = sa.select(*columns).select_from(both).where(c.assistant == assistant, c.at >= since, c.reuse_of != "")
        return self._rows(chosen.order_by(c.id.desc()))

    def _rows(self, query) -> list[dict]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def compared(self, assistant: str, arms: dict[str, str], since: float) -> list[dict]:
        """Users' requests on the arms (arm -> release) of a split test since it started, oldest first; no texts."""
        c = requests.c
        columns = (c.response, c.at, c.arm, c.user, c.key, c.status, c.abstained, c.similarity, c.grounding)
        chosen = sa.select(*columns).where(c.assistant == assistant, c.at >= since, c.source == "user")
        on = sa.or_(*(sa.and_(c.arm == arm, c.release == release) for arm, release in arms.items()))
        return self._rows(chosen.where(on).order_by(c.id))

    # --- forgetting ---------------------------------------------------------------------------

    def responses(self, user: str) -> dict[str, set[str]]:
        """Assistant -> the response ids of what `user` asked it, also of rows still waiting here."""
        self.flush()
        found: dict[str, set[str]] = defaultdict(set)
        for row in self._rows(sa.select(requests.c.assistant, requests.c.response).where(requests.c.user == user)):
            found[row["assistant"]].add(row["response"])
        return found

    def delete_user(self, user: str) -> int:
        """Delete every row of `user`, also those still waiting here, and return how many."""
        self.flush()
        return self._delete(requests.c.user == user)

    def delete_assistant(self, assistant: str) -> int:
        """Delete every row of an assistant and return how many."""
        self.flush()
        return self._delete(requests.c.assistant == assistant)

    def prune(self, days: float) -> int:
        """Delete rows older than `days` and return how many."""
        return self._delete(requests.c.at < time.time() - days * 86_400)

    def _delete(self, condition) -> int:
        with self.engine.begin() as connection:
            return connection.execute(requests.delete().where(condition)).rowcount


def _add_columns(engine: sa.Engine) -> None:
    """Add the columns and the index that a log from an earlier version lacks; its rows have nothing there."""

    def missing() -> list[sa.Column]:
        known = {column["name"] for column in sa.inspect(engine).get_columns(requests.name)}
        return [column for column in requests.columns if column.name not in known]

    for column in missing():
        try:
            with engine.begin() as connection:
                kind = column.type.compile(engine.dialect)
                connection.execute(sa.DDL(f'ALTER TABLE {requests.name} ADD COLUMN "{column.name}" {kind}'))
        except sa.exc.DBAPIError:
            if column in missing():  # else another process was first
                raise
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateIndex(READ_BY_TIME, if_not_exists=True))


def _prepare_sqlite(connection, _record) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA busy_timeout=10000")
    connection.execute("PRAGMA secure_delete=ON")  # a deleted user's text is overwritten, not just unlinked
