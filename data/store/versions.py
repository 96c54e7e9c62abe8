"""Which versions of a table stay on disk: those that somebody may still read."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from data.lease import lease
from data.records import IndexVersion
from data.store.tables import connect, open_version, owned, table_name, tables_beside
from settings import settings

# The newest versions stay whoever knows of them: a flow that has built one has yet to record its release.
NEWEST_KEPT = 16


def sweep(index: IndexVersion, pinned: Collection[IndexVersion]) -> int:
    """Removes the versions of a table that are neither pinned nor among the newest, and the tables it was built beside
    when none of theirs is pinned; returns how many versions."""
    base = table_name(index.assistant, index.embedder, index.chunker)
    with lease(base) as confirm:
        dataset = open_version(index.uri, index.table).to_lance()
        there = sorted(row["version"] for row in dataset.versions())
        keep = {index.version, *there[-NEWEST_KEPT:]} | {one.version for one in pinned if one.table == index.table}
        confirm()
        if gone := [version for version in there if version not in keep]:
            # Files that no version names were left by a write that was cut short; the lease says there is none now.
            dataset.cleanup_old_versions(older_than=timedelta(0), versions=gone, delete_unverified=True)
        for name in tables_beside(index.uri, base):
            if name != index.table and name not in {one.table for one in pinned}:
                connect(index.uri).drop_table(name)
        return len(gone)


def forget(assistant: str) -> int:
    """Removes every table of an assistant; how many. Raises TimeoutError while one of them is being written."""
    gone = owned(settings().store, assistant)
    for base in sorted({*gone.values()}):
        with lease(base):
            for name in (name for name in gone if gone[name] == base):
                connect(settings().store).drop_table(name)
    return len(gone)
