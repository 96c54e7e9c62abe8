"""A ledger in a temporary folder, and releases to put into it."""

import itertools
import tempfile
from functools import cache
from pathlib import Path

from data.ledger import Ledger, migrate
from data.records import IndexVersion, Model, Release, Sources

numbers = itertools.count()


@cache
def migrated() -> bytes:
    """An empty ledger's file; migrating takes seconds on a slow machine, so it is done once."""
    with tempfile.TemporaryDirectory() as folder:
        migrate(f"sqlite:///{folder}/ledger.db")
        return (Path(folder) / "ledger.db").read_bytes()


def new_ledger(folder, *names: str) -> Ledger:
    """A migrated SQLite ledger with the assistants `names`."""
    file = Path(folder) / f"ledger-{next(numbers)}.db"
    file.write_bytes(migrated())
    ledger = Ledger(f"sqlite:///{file}")
    for name in names:
        ledger.register(Sources(name, "docs"), {})
    return ledger


def release(assistant: str = "wiki", model: str = "a", index: str = "sum") -> Release:
    version = IndexVersion(assistant, "uri", "t", 1, index, "emb", "chu", 3, 3, "snap")
    return Release(assistant, Model(model * 64, "m.gguf", "openvino", "b" * 64), version)


def accept(ledger: Ledger, candidate: Release, kind: str = "tuned") -> None:
    """Everything a release needs before it may go live."""
    ledger.add_release(candidate, kind, None, {})
    for condition, verdict in (("gate", "promote"), ("smoke", "answered"), ("canary", "held")):
        ledger.decide(candidate.assistant, condition, candidate.id, verdict, "", {})


def go_live(ledger: Ledger, candidate: Release) -> None:
    accept(ledger, candidate)
    ledger.promote(candidate.assistant, candidate.id, ledger.assistant(candidate.assistant)["live_seq"])
