"""The ledger: what was released, decided, asked for and said. The only truth about what is live.

SQLite (WAL) by default, PostgreSQL by URL. The live pointer of an assistant moves by compare-and-set on `live_seq`
and only to a release that the recorded decisions allow (invariant 1).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy as sa

from data.records import Decision, Release, Sources, as_json, buried_feedback
from data.tables import (
    assistants,
    decisions,
    feedback,
    outbox,
    releases,
    reviews,
    signals,
    splits,
    tombstones,
    withdrawals,
)

MANUAL = "by hand"
"""Who asked for a remedy, in the body of its outbox row, when it was a person and no signal."""
FINAL = ("acted", "merged", "vetoed", "refused")
CONDITIONS = {"gate": ("promote", "bootstrap"), "smoke": ("answered",), "canary": ("held",)}


class NotAccepted(Exception):
    """The live pointer was asked to name a release that the recorded decisions do not allow."""


class PointerMoved(Exception):
    """Somebody else moved the live pointer first: read it again and decide again."""


@dataclass(frozen=True)
class Routing:
    """Which releases answer for an assistant, as the router reads it.

    While split test number `split` runs, `b_share` of the users ask `b`, and `live` is its arm a; without one `b` is
    None.
    """

    assistant: str
    live: Release | None
    live_seq: int
    canary: Release | None
    canary_share: float
    split: int = 0
    b: Release | None = None
    b_share: float = 0.0


class Ledger:
    """One connection pool on the ledger at `url` (SQLAlchemy URL; `migrate` has been run on it)."""

    def __init__(self, url: str):
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(url, pool_pre_ping=True)
        self.sqlite = self.engine.dialect.name == "sqlite"
        if self.sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction; on SQLite it takes the write lock at once, so a read inside it is current."""
        with self.engine.begin() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:  # one writer at a time on PostgreSQL too: claims and the pointer rest on reads inside the transaction
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7421)")
            yield connection

    def rows(self, query) -> list[dict]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # --- assistants and their live pointer ----------------------------------------------------

    def register(self, sources: Sources, snapshot: dict) -> None:
        """Remember where an assistant's documents are and the snapshot last prepared from them."""
        values = {"sources": as_json(sources), "snapshot": snapshot}
        with self.write() as c:
            changed = c.execute(assistants.update().where(assistants.c.name == sources.assistant).values(**values))
            if not changed.rowcount:
                c.execute(assistants.insert().values(name=sources.assistant, **values))

    def assistants(self) -> list[dict]:
        return self.rows(sa.select(assistants).order_by(assistants.c.name))

    def assistant(self, name: str) -> dict:
        """The row of one assistant; KeyError names the known ones."""
        found = self.rows(sa.select(assistants).where(assistants.c.name == name))
        if not found:
            known = ", ".join(row["name"] for row in self.assistants()) or "none yet"
            raise KeyError(f"no assistant {name!r}; known: {known}. Create it with python -m flows.lifecycle")
        return found[0]

    def live(self) -> dict[str, Routing]:
        """Assistant name -> what answers for it: the pointers, the split tests, and the releases they name."""
        pointers = self.assistants()
        running = {row["assistant"]: row for row in self.rows(sa.select(splits).where(splits.c.ended.is_(None)))}
        named = {p[key] for p in pointers for key in ("live_release", "canary_release") if p[key]}
        named |= {row["b"] for row in running.values()}
        bodies = self.rows(sa.select(releases.c.id, releases.c.body).where(releases.c.id.in_(named))) if named else []
        known = {row["id"]: Release.recorded(row["id"], row["body"]) for row in bodies}
        found = {}
        for p in pointers:
            live, canary = known.get(p["live_release"]), known.get(p["canary_release"])
            found[p["name"]] = Routing(p["name"], live, p["live_seq"], canary, p["canary_share"])
            test = running.get(p["name"])
            if test and test["a"] == p["live_release"]:
                arms = {"split": test["id"], "b": known[test["b"]], "b_share": test["share"]}
                found[p["name"]] = replace(found[p["name"]], **arms)
        return found

    def pause(self, name: str, paused: bool) -> None:
        """Stop or resume automatic remedies for one assistant."""
        with self.write() as c:
            c.execute(assistants.update().where(assistants.c.name == name).values(paused=paused))

    def set_canary(self, name: str, release: str | None, share: float = 0.0) -> None:
        with self.write() as c:
            values = {"canary_release": release, "canary_share": share}
            c.execute(assistants.update().where(assistants.c.name == name).values(**values))

    def promote(self, name: str, release: str, expected_seq: int, kind: str = "promotion", reason: str = "") -> int:
        """Move the live pointer to `release` and return the new `live_seq`.

        Raises NotAccepted when the decisions on record do not allow it (a promotion needs an accepting gate, an
        answered smoke query and a held canary; a rollback needs a smoke query and a release that was live before, or
        one recorded as a rollback), PointerMoved when `live_seq` is no longer `expected_seq`.
        """
        with self.write() as c:
            self.require(c, name, release, kind)
            moved = c.execute(
                assistants.update()
                .where(assistants.c.name == name, assistants.c.live_seq == expected_seq)
                .values(
                    live_release=release,
                    live_seq=expected_seq + 1,
                    live_since=time.time(),
                    canary_release=None,
                    canary_share=0.0,
                )
            )
            if not moved.rowcount:
                raise PointerMoved(f"the live pointer of {name!r} moved past {expected_seq} while this ran")
            append_decision(c, name, kind, release, "live", reason, {"seq": expected_seq + 1})
            _end_split(c, name, release)
        return expected_seq + 1

    def require(self, c: sa.Connection, name: str, release: str, kind: str) -> None:
        """Raises NotAccepted unless the decisions on record let a release go live as `kind`, in an open transaction."""
        verdicts: dict[str, str] = {}
        query = sa.select(decisions.c.kind, decisions.c.verdict).where(decisions.c.release == release)
        for row in c.execute(query.order_by(decisions.c.seq)):
            verdicts[row.kind] = row.verdict
        made = c.execute(sa.select(releases.c.kind).where(releases.c.id == release, releases.c.assistant == name))
        made_as = made.scalar()
        if made_as is None:
            raise NotAccepted(f"{release} is not a release of {name!r}")
        if kind == "rollback":
            needed = {"smoke": CONDITIONS["smoke"]}
            if made_as != "rollback" and "promotion" not in verdicts:
                raise NotAccepted(f"{release} was never live for {name!r}, so it cannot be rolled back to")
        elif kind == "split":  # its canary comes before everybody asks it; what was live has had its gate
            needed = {condition: CONDITIONS[condition] for condition in ("gate", "smoke")}
            if {"promotion", "rollback"} & verdicts.keys():
                del needed["gate"]
        else:
            needed = CONDITIONS
        for condition, accepted in needed.items():
            if verdicts.get(condition) not in accepted:
                said = verdicts.get(condition) or "nothing"
                raise NotAccepted(
                    f"{release} may not go live: its {condition} says {said}, not {' or '.join(accepted)}"
                )

    # --- releases, decisions ---------------------------------------------------------

    def add_release(self, release: Release, kind: str, parent: str | None, snapshot: dict) -> None:
        """Record a release (kind: bootstrap, tuned, reindex, reprompt, rollback). Adding it twice changes nothing."""
        with self.write() as c:
            if c.execute(sa.select(releases.c.id).where(releases.c.id == release.id)).first():
                return
            c.execute(
                releases.insert().values(
                    id=release.id,
                    assistant=release.assistant,
                    kind=kind,
                    parent=parent,
                    snapshot=snapshot,
                    body=as_json(release),
                    at=time.time(),
                )
            )

    def relocate(self, release: Release) -> None:
        """Record where the files of a release lie now; its id, and so its content, is the same as before."""
        with self.write() as c:
            c.execute(releases.update().where(releases.c.id == release.id).values(body=as_json(release)))

    def release(self, release_id: str) -> Release:
        return Release.recorded(release_id, self.release_row(release_id)["body"])

    def release_row(self, release_id: str) -> dict:
        found = self.rows(sa.select(releases).where(releases.c.id == release_id))
        if not found:
            raise KeyError(f"no release {release_id!r} in the ledger")
        return found[0]

    def accepted_releases(self, name: str) -> list[str]:
        """Releases of an assistant that have been live, the most recently live first, each once."""
        query = sa.select(decisions.c.release).where(
            decisions.c.assistant == name,
            decisions.c.kind.in_(("promotion", "rollback")),
            decisions.c.verdict == "live",
        )
        return list(dict.fromkeys(row["release"] for row in self.rows(query.order_by(decisions.c.seq.desc()))))

    def pending_releases(self, name: str, since: float) -> list[str]:
        """Releases of an assistant recorded after `since` (epoch seconds) that a flow may still be deciding on."""
        settled = sa.select(decisions.c.release).where(
            decisions.c.assistant == name, decisions.c.kind == "gate", decisions.c.verdict.in_(("reject", "hold"))
        )
        query = sa.select(releases.c.id).where(releases.c.assistant == name, releases.c.at > since)
        return [row["id"] for row in self.rows(query.where(releases.c.id.not_in(settled)))]

    def decide(self, name: str, kind: str, release: str | None, verdict: str, reason: str, body: dict) -> int:
        """Append a decision and return its sequence number."""
        with self.write() as c:
            return append_decision(c, name, kind, release, verdict, reason, body)

    def decide_gate(self, name: str, decision: Decision) -> int:
        return self.decide(name, "gate", decision.release, decision.verdict, decision.reason, as_json(decision))

    def decisions(self, name: str, kind: str | None = None, limit: int = 50) -> list[dict]:
        """Newest first."""
        query = sa.select(decisions).where(decisions.c.assistant == name)
        if kind:
            query = query.where(decisions.c.kind == kind)
        return self.rows(query.order_by(decisions.c.seq.desc()).limit(limit))

    def gate_decision(self, release_id: str) -> dict | None:
        query = sa.select(decisions).where(decisions.c.release == release_id, decisions.c.kind == "gate")
        found = self.rows(query.order_by(decisions.c.seq.desc()).limit(1))
        return found[0] if found else None

    # --- outbox: what should be done ----------------------------------------------------------

    def open_remedy(
        self, name: str, kind: str, cause: str, body: dict, signal_states: dict | None = None
    ) -> int | None:
        """Ask for a remedy: one outbox row, in the transaction that stores the detectors' new states.

        Returns its number, or None when the same kind and cause is already open, claimed, or was the last one acted on
        or refused (no re-fire until the evidence has changed). Earlier rows that still wait are merged into it and it
        waits since they did, so that one is queued at most, however many signals there are.
        """
        with self.write() as c:
            _store_signals(c, name, signal_states or {})
            last = c.execute(
                sa.select(outbox.c.cause, outbox.c.state)
                .where(outbox.c.assistant == name, outbox.c.kind == kind)
                .order_by(outbox.c.seq.desc())
                .limit(1)
            ).first()
            if last and last.cause == cause:
                return None
            covered = _waiting(c, name, kind)
            since = min([row.at for row in covered], default=time.time())
            row = {"assistant": name, "kind": kind, "cause": cause, "body": body, "state": "open", "at": since}
            seq = c.execute(outbox.insert().values(**row)).inserted_primary_key[0]
            _merge(c, covered, f"merged into row {seq}")
            return seq

    def claim(self, seq: int, run: str) -> dict | None:
        """Claim an open row for one flow run: the row, or None when it is taken, settled, or its kind is running.

        Other open rows of the same assistant and kind are merged into it, except what a person asked for: the last
        signal is covered by this run.
        """
        with self.write() as c:
            row = c.execute(sa.select(outbox).where(outbox.c.seq == seq)).mappings().first()
            if row is None or row["state"] != "open":
                return None
            same = (outbox.c.assistant == row["assistant"], outbox.c.kind == row["kind"])
            if c.execute(sa.select(outbox.c.seq).where(*same, outbox.c.state == "claimed")).first():
                return None
            taken = {"state": "claimed", "claimed_by": run, "attempts": row["attempts"] + 1}
            c.execute(outbox.update().where(outbox.c.seq == seq).values(**taken))
            _merge(c, _waiting(c, row["assistant"], row["kind"]), f"merged into run {run}")
            return dict(row)

    def settle(self, seq: int, state: str, note: str, run: str | None = None) -> None:
        """Give a row its final state, once: a settled row stays as it is. `run` must hold the claim when given."""
        if state not in FINAL:
            raise ValueError(f"{state!r} is not a final state; use one of {', '.join(FINAL)}")
        where = [outbox.c.seq == seq, outbox.c.state.in_(("open", "claimed"))]
        if run:
            where.append(outbox.c.claimed_by == run)
        with self.write() as c:
            c.execute(outbox.update().where(*where).values(state=state, note=note, settled_at=time.time()))

    def free(self, seq: int, run: str) -> None:
        """Give a claim back, because the run that held it has ended without settling the row."""
        with self.write() as c:
            held = outbox.update().where(outbox.c.seq == seq, outbox.c.claimed_by == run, outbox.c.state == "claimed")
            c.execute(held.values(state="open", claimed_by=None))

    def outbox(self, name: str | None = None, states: tuple[str, ...] = ()) -> list[dict]:
        query = sa.select(outbox).order_by(outbox.c.seq)
        if name:
            query = query.where(outbox.c.assistant == name)
        if states:
            query = query.where(outbox.c.state.in_(states))
        return self.rows(query)

    # --- signals, feedback, reviews, tombstones -----------------------------------------------

    def signal_states(self, name: str) -> dict[str, dict]:
        return {row["name"]: row["state"] for row in self.rows(sa.select(signals).where(signals.c.assistant == name))}

    def store_signals(self, name: str, states: dict[str, dict]) -> None:
        with self.write() as c:
            _store_signals(c, name, states)

    def add_feedback(
        self,
        assistant: str,
        release: str | None,
        response_id: str,
        rating: int | None = None,
        edit: str | None = None,
        comment: str | None = None,
        user: str | None = None,
        owner: str | None = None,
        question: str | None = None,
        answer: str | None = None,
        chunks: Sequence[str] = (),
        tenant: str = "",
    ) -> int:
        """Append what a person said about an answer (rating: 1 or -1). Nothing acts on it directly (invariant 11).

        `owner`: whose key it came with, None without one; `user` only subdivides within a key. Question, answer,
        chunk ids and tenant are those of the request log, which forgets sooner than feedback may be used.
        """
        row = {"assistant": assistant, "release": release, "response": response_id, "rating": rating, "edit": edit}
        row |= {"comment": comment, "user": user, "owner": owner, "question": question, "answer": answer}
        row["tenant"] = tenant
        with self.write() as c:
            said = feedback.insert().values(**row, chunks=list(chunks), at=time.time())
            return c.execute(said).inserted_primary_key[0]

    def feedback(self, name: str, after: int = 0) -> list[dict]:
        query = sa.select(feedback).where(feedback.c.assistant == name, feedback.c.seq > after)
        return self.rows(query.order_by(feedback.c.seq))

    def ask_review(self, name: str, kind: str, subjects: dict[str, dict]) -> None:
        """List things that need a person (subject id -> what to look at); asked once each."""
        with self.write() as c:
            query = sa.select(reviews.c.subject).where(reviews.c.assistant == name, reviews.c.kind == kind)
            known = {row.subject for row in c.execute(query)}
            for subject, body in subjects.items():
                if subject not in known:
                    row = {"assistant": name, "kind": kind, "subject": subject, "body": body, "state": "open"}
                    c.execute(reviews.insert().values(**row, at=time.time()))

    def reviews(self, name: str, state: str = "open") -> list[dict]:
        return self.rows(sa.select(reviews).where(reviews.c.assistant == name, reviews.c.state == state))

    def bury(self, name: str, gone: set[str], present: set[str]) -> None:
        """Chunks in `gone` are never retrieved again, by any release; chunks in `present` are (text may come back)."""
        with self.write() as c:
            known = {row.chunk for row in c.execute(sa.select(tombstones).where(tombstones.c.assistant == name))}
            back = sorted(known & present)
            for start in range(0, len(back), 1000):  # a database takes only so many values in one statement
                some = tombstones.c.chunk.in_(back[start : start + 1000])
                c.execute(tombstones.delete().where(tombstones.c.assistant == name, some))
            if new := [{"assistant": name, "chunk": chunk} for chunk in sorted(gone - known)]:
                c.execute(tombstones.insert(), new)

    def tombstones(self, assistant: str) -> frozenset[str]:
        """What no release may show any more: ids of deleted chunks, and tombstones of withdrawn feedback."""
        chunks = self.rows(sa.select(tombstones.c.chunk).where(tombstones.c.assistant == assistant))
        gone = self.rows(sa.select(withdrawals.c.feedback).where(withdrawals.c.assistant == assistant))
        back = (buried_feedback(number) for row in gone for number in row["feedback"])
        return frozenset((*(row["chunk"] for row in chunks), *back))


def _prepare_sqlite(connection, _record) -> None:
    connection.isolation_level = None  # no implicit BEGIN: `write` begins, plain reads see the latest commit
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=30000")


def append_decision(
    c: sa.Connection, name: str, kind: str, release: str | None, verdict: str, reason: str, body: dict
) -> int:
    """Append a decision in an open transaction (see Ledger.write) and return its sequence number."""
    row = {"assistant": name, "kind": kind, "release": release, "verdict": verdict, "reason": reason, "body": body}
    return c.execute(decisions.insert().values(**row, at=time.time())).inserted_primary_key[0]


def _end_split(c: sa.Connection, name: str, live: str) -> None:
    """End the split test of an assistant whose live pointer has moved, on record unless its better b is live now."""
    mine = (splits.c.assistant == name, splits.c.ended.is_(None))
    row = c.execute(sa.select(splits).where(*mine)).mappings().first()
    if row is None:
        return
    c.execute(splits.update().where(*mine).values(ended=time.time()))
    if (row["verdict"], row["b"]) != ("b", live):
        reason = f"{live} went live while {row['a']} and {row['b']} were compared"
        c.execute(splits.update().where(splits.c.id == row["id"]).values(verdict="overtaken", reason=reason))
        append_decision(c, name, "split", row["b"], "overtaken", reason, {"split": row["id"], "a": row["a"]})


def _waiting(c: sa.Connection, name: str, kind: str) -> list[sa.Row]:
    """The open rows that another one covers: all but what a person asked for."""
    query = sa.select(outbox.c.seq, outbox.c.at, outbox.c.body).where(outbox.c.assistant == name, outbox.c.kind == kind)
    return [row for row in c.execute(query.where(outbox.c.state == "open")) if "asked" not in (row.body or {})]


def _merge(c: sa.Connection, covered: Sequence[sa.Row], note: str) -> None:
    merged = outbox.update().where(outbox.c.seq.in_([row.seq for row in covered]))
    c.execute(merged.values(state="merged", note=note, settled_at=time.time()))


def _store_signals(c: sa.Connection, name: str, states: dict[str, dict]) -> None:
    for signal, state in states.items():
        plain = json.loads(json.dumps(state))
        mine = (signals.c.assistant == name, signals.c.name == signal)
        if not c.execute(signals.update().where(*mine).values(state=plain)).rowcount:
            c.execute(signals.insert().values(assistant=name, name=signal, state=plain))


def migrate(url: str) -> None:
    """Bring the ledger at `url` to the newest schema (Alembic); running it again changes nothing."""
    from alembic import command
    from alembic.config import Config

    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")
