"""Greedy generations, kept by everything that decides them. Evaluation reads it; the endpoint does not.

What is kept is the engine's text for exact prompt bytes: retrieval, tombstones and citations are done anew each time,
so nothing kept can bring back a deleted passage, and the assistant is part of the key (invariant 10).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from data.records import Decoding, Generation, Release, as_json, digest
from settings import settings


def key(release: Release, prompt: str, decoding: Decoding, engine_version: str) -> str:
    """Hex sha256 over assistant, model artifact, full prompt, decoding, guard and engine version.

    Raises ValueError when `decoding` samples: such a text is one of many and must not be kept.
    """
    if decoding.temperature > 0:
        raise ValueError(f"temperature {decoding.temperature} samples; only greedy generations are kept")
    return digest(release.assistant, release.model.sha256, prompt, decoding, release.guard, engine_version)


class AnswerCache:
    """An SQLite file (WAL) of generations, safe for several processes; a connection lives as long as one call."""

    def __init__(self, path: Path | None = None):
        self.path = Path(path or settings().home / "answers.db")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, generation TEXT NOT NULL)")

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def read(self, keys: Sequence[str]) -> dict[str, Generation]:
        """The generations known among `keys`, by key."""
        known = {}
        with closing(self._connect()) as connection:
            for start in range(0, len(keys), 500):  # SQLite's oldest limit on variables is 999
                some = keys[start : start + 500]
                marks = ",".join("?" * len(some))
                rows = connection.execute(f"SELECT key, generation FROM answers WHERE key IN ({marks})", some)
                known |= {name: Generation.of(json.loads(text)) for name, text in rows}
        return known

    def write(self, generations: Mapping[str, Generation]) -> None:
        """Keep `generations`; a key already there keeps its first value, so two writers agree."""
        rows = [(name, json.dumps(as_json(generation))) for name, generation in generations.items()]
        with closing(self._connect()) as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    def clear(self) -> int:
        """Forget everything and return how much: whose an answer is cannot be told from its key."""
        with closing(self._connect()) as connection, connection:
            connection.execute("PRAGMA secure_delete=ON")
            return connection.execute("DELETE FROM answers").rowcount
