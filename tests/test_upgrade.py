"""A ledger of an earlier version, with a release of that time live, brought to today's."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from alembic import command
from alembic.config import Config

from data import ledger as ledgers
from data.ledger import Ledger, migrate
from data.records import Release, Retrieval
from serving.router import Router
from tasks import precedents

ID = "rel-5a0c1d2e3f4a5b6c7d8e"
BODY = {  # as the first version wrote it: a field that is retired by now, others that were not there yet
    "assistant": "wiki",
    "model": {
        "sha256": "a" * 64, "uri": "m.gguf", "engine": "openvino", "base": "b" * 64, "adapter": None,
        "adapter_uri": None,
    },
    "index": {
        "assistant": "wiki", "uri": "store", "table": "t", "version": 3, "checksum": "c" * 64, "embedder": "e" * 64,
        "chunker": "d" * 64, "chunks": 9, "embedded": 9, "snapshot": "snap-0",
    },
    "prompt": {
        "system": "Answer.", "passage": "[{number}] {text}\n", "user": "{passages}\n{question}", "abstain": "No.",
        "chat": "chatml",
    },
    "retrieval": {"top_k": 4, "candidates": 30, "rrf_k": 60},
    "decoding": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0, "stop": []},
    "guard": {"max_question_characters": 4000, "max_messages": 40, "max_new_tokens": 512, "redact_log": True},
}  # fmt: skip
DECISION = {"verdict": "promote", "reason": "Surely better.", "release": ID, "champion": None}
COUNTS = ("documents", "sections", "examples", "golden", "aged", "quarantined", "duplicates", "leaked")
SNAPSHOT = dict.fromkeys(COUNTS, 1)
SNAPSHOT |= {"id": "snap-0", "uri": "snapshots/wiki/snap-0", "assistant": "wiki"}


def earlier(file, revision: str) -> str:
    """A ledger as it was at `revision`, with a release that went live then; its URL."""
    url = f"sqlite:///{file}"
    config = Config()
    config.set_main_option("script_location", str(ledgers.Path(ledgers.__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, revision)
    sources = {"assistant": "wiki", "documents": "docs", "examples": None, "golden": None}
    with closing(sqlite3.connect(file)) as c, c:
        c.execute(
            "INSERT INTO assistants (name, sources, snapshot, live_release, live_seq, live_since, canary_share, paused)"
            " VALUES ('wiki', ?, ?, ?, 3, 1.0, 0, 0)",
            (json.dumps(sources), json.dumps(SNAPSHOT), ID),
        )
        c.execute(
            "INSERT INTO releases (id, assistant, kind, snapshot, body, at) VALUES (?, 'wiki', 'tuned', ?, ?, 1)",
            (ID, json.dumps(SNAPSHOT), json.dumps(BODY)),
        )
        for kind, verdict in (("gate", "promote"), ("smoke", "answered"), ("canary", "held"), ("promotion", "live")):
            row = (kind, ID, verdict, json.dumps(DECISION if kind == "gate" else {}))
            columns = "assistant, kind, release, verdict, reason, body, at"
            c.execute(f"INSERT INTO decisions ({columns}) VALUES ('wiki', ?, ?, ?, '', ?, 1)", row)
        c.execute(
            "INSERT INTO outbox (assistant, kind, cause, body, state, at) VALUES ('wiki','reindex','c','{}','open',1)"
        )
        c.execute(
            "INSERT INTO feedback (assistant, release, response, rating, at) VALUES ('wiki', ?, 'r', 1, 1)", (ID,)
        )
        c.execute("INSERT INTO tombstones VALUES ('wiki', 'gone')")
    return url


@pytest.fixture(params=["0001", "0002", "0003", "0005"])
def upgraded(request, tmp_path):
    url = earlier(tmp_path / "ledger.db", request.param)
    migrate(url)
    return Ledger(url)


def test_the_release_that_was_live_answers_under_the_same_id(upgraded):
    router = Router(upgraded)
    router.poll()
    release, arm = router.resolve("wiki", "ann")
    assert (release.id, arm, release.retrieval.top_k) == (ID, "live", 4)
    assert router.resolve("wiki", "ann", pinned=ID)[0].id == ID
    assert router.tombstones("wiki") == {"gone"}


def test_what_was_recorded_is_kept(upgraded):
    assert upgraded.accepted_releases("wiki") == [ID]
    assert upgraded.assistant("wiki")["live_seq"] == 3
    assert [row["kind"] for row in upgraded.outbox("wiki", ("open",))] == ["reindex"]
    assert [row["rating"] for row in upgraded.feedback("wiki")] == [1]
    assert precedents.accepted(upgraded, upgraded.release(ID)).verdict == "promote"


def test_an_upgraded_release_can_be_moved_and_rolled_back_to(upgraded):
    live = upgraded.live()["wiki"].live
    elsewhere = live.moved(index=replace(live.index, uri="another store", version=9))
    upgraded.relocate(elsewhere)
    assert upgraded.release(ID).index.uri == "another store" and elsewhere.id == ID
    with pytest.raises(ValueError, match="is not what lies there"):
        live.moved(index=replace(live.index, checksum="f" * 64))
    upgraded.promote("wiki", ID, 3, kind="rollback")


def test_a_change_to_an_upgraded_release_is_another_release():
    live = Release.recorded(ID, BODY)
    assert replace(live, retrieval=Retrieval(top_k=5)).id not in (ID, Release.of(BODY).id)
    assert replace(live).id == Release.of(BODY).id != ID


def test_a_field_that_is_neither_known_nor_retired_is_still_refused():
    with pytest.raises(ValueError, match="Retrieval has no field 'speed'"):
        Release.of(BODY | {"retrieval": BODY["retrieval"] | {"speed": 1}})
