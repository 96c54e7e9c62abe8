"""A backup of a home while everything runs, and a home restored from one.

Databases are copied by SQLite's online backup. Everything else is written once, under the hash of its content or as an
immutable version, so copying it is safe as long as nobody removes it: the right to remove is held meanwhile, and
readers, writers and builds go on. The ledger is copied first; whatever it names is there, and stays there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from data.bundle import Packed, check_types
from data.lease import DELETING, lease
from data.ledger import Ledger, migrate
from data.records import Record, as_json, file_sha256
from data.tables import assistants, decisions, releases
from settings import settings

FORMAT = "perennial-backup-1"
MARKER = "backup.json"
DATABASES = ("ledger.db", "requests.db", "mlflow.db", "prefect/prefect.db")
FOLDERS = ("snapshots", "models", "reports", "lancedb", "mlflow")
"""Left out: what is made anew (caches, logs, locks, tokens) and training that is under way."""
MANIFESTS = "_versions"
HINT = "latest_version_hint.json"
PLACES = ((assistants, "snapshot"), (releases, "snapshot"), (releases, "body"), (decisions, "body"))
"""The columns of the ledger in which files are named by their place."""


@dataclass(frozen=True)
class Backup(Record):
    """What a backup holds: when it was made (epoch seconds), of which home, what was live, and its files."""

    at: float
    home: str
    live: dict
    files: tuple[Packed, ...]
    format: str = FORMAT


def backup(target: Path) -> Backup:
    """Copies the home of this installation to the folder `target`, which appears in one step, whole.

    Raises ValueError when there is nothing, or not all of the state is under the home; FileExistsError when `target`
    is there already.
    """
    home = _whole_home()
    if not (home / "ledger.db").exists():
        raise ValueError(f"{home} has no ledger; set PERENNIAL_HOME to the home that is to be copied")
    if target.exists():
        raise FileExistsError(f"{target} is there already; name a new folder for each backup")
    with lease(DELETING), _appearing(target) as folder:
        databases = [name for name in DATABASES if (home / name).exists()]
        for name in databases:
            _copy_database(home / name, folder / name)
        book = Ledger(f"sqlite:///{folder / 'ledger.db'}")
        live = {name: routing.live.id for name, routing in book.live().items() if routing.live}
        book.engine.dispose()
        files = [Packed(name, (folder / name).stat().st_size, file_sha256(folder / name)) for name in databases]
        files += [_copied(home, folder, name) for name in _listed(home)]
        made = Backup(time.time(), str(home), live, tuple(files))
        (folder / MARKER).write_text(json.dumps(as_json(made)))
    return made


def restore(source: Path) -> Backup:
    """Makes the home of this installation what it was in the backup `source`; every file is verified by its sha256.

    Places on record become those of this home, and the ledger gets the newest schema. Raises FileExistsError when the
    home is not empty, ValueError for a backup that is not whole and for a mount point; the home is then as it was.
    """
    home = _whole_home()
    made = read(source)
    if home.is_mount():
        raise ValueError(f"{home} is a mount point and cannot be replaced; set PERENNIAL_HOME to a folder in it")
    if home.exists() and any(home.iterdir()):
        raise FileExistsError(f"{home} is not empty; stop what runs there and move it away, or set PERENNIAL_HOME")
    with _appearing(home) as folder:
        for file in made.files:
            if not (source / file.name).is_file() or _copied(source, folder, file.name) != file:
                raise ValueError(f"{source / file.name} is gone or was altered since the backup; use another backup")
        url = f"sqlite:///{folder / 'ledger.db'}"
        migrate(url)
        relocate(url, made.home, str(home))
    return made


def read(source: Path) -> Backup:
    """What a backup says it holds. Raises ValueError when it is none."""
    try:
        made = Backup.of(json.loads((source / MARKER).read_text()))
        check_types(made, Backup, "backup")
    except (OSError, ValueError, TypeError) as problem:
        raise ValueError(f"{source} is no whole backup ({problem}); name the folder that `backup` made") from problem
    if made.format != FORMAT:
        raise ValueError(f"{source} is of format {made.format!r}, this reads {FORMAT!r}; use the version that made it")
    for file in made.files:
        if not Path(file.name).parts or Path(file.name).is_absolute() or ".." in Path(file.name).parts:
            raise ValueError(f"{source} names {file.name!r}, a place outside of a home; do not use it")
    return made


def relocate(url: str, before: str, now: str) -> None:
    """Moves every place in the ledger at `url` that is under the home `before` to the home `now`."""

    def moved(value):
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [moved(inner) for inner in value]
        under = isinstance(value, str) and value.startswith(f"{before}/")
        return now + value.removeprefix(before) if under else value

    book = Ledger(url)
    with book.write() as c:
        for table, column in PLACES:
            (key,) = table.primary_key.columns
            for row in c.execute(sa.select(key, table.c[column])).all():
                if (new := moved(row[1])) != row[1]:
                    c.execute(table.update().where(key == row[0]).values({column: new}))
    book.engine.dispose()


# --- copying ----------------------------------------------------------------------------------


def _whole_home() -> Path:
    chosen = settings()
    for what in ("ledger_url", "requests_url", "store_uri", "mlflow_uri", "prefect_api"):
        if getattr(chosen, what):
            where = f"PERENNIAL_{what.upper()} is set: that part of the state is not under {chosen.home}"
            raise ValueError(f"{where}; use the tools of that server, this command copies one home alone")
    return chosen.home


def _listed(home: Path) -> Iterator[str]:
    """Everything to be copied. Of an index first the manifests, in a walk of their own: what those name is there when
    the others are listed, what comes later is not in the copy."""
    for manifests in (True, False):
        yield from sorted(file.as_posix() for file in _files(home) if (MANIFESTS in file.parts) is manifests)


def _files(home: Path) -> Iterator[Path]:
    for top in FOLDERS:
        for folder, _, names in os.walk(home / top, followlinks=True):
            for file in ((Path(folder) / name).relative_to(home) for name in names):
                hidden = any(part.startswith(".") for part in file.parts)
                if not hidden and file.name != HINT and file.suffix not in (".partial", ".lock"):
                    yield file


def _copied(home: Path, folder: Path, name: str) -> Packed:
    """Copies a file and says what was copied."""
    place, sha, size = folder / name, hashlib.sha256(), 0
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(home / name, "rb") as source, open(place, "xb") as out:
        while block := source.read(1 << 20):
            sha.update(block)
            size += out.write(block)
    return Packed(name, size, sha.hexdigest())


def _copy_database(source: Path, place: Path) -> None:
    """All pages in one step: readers and, with a write-ahead log, writers go on meanwhile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(source, timeout=30)) as held, closing(sqlite3.connect(place)) as copy:
        held.backup(copy)


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder, readable by this user alone, that becomes `target` at the end, or is gone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield folder
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
