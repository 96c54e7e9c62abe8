"""Which versions of a table stay on disk: those that somebody may still read."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from data.lease import lease
from data.records import IndexVersion
from data.store.tables import open_version, table_name

# The newest versions stay whoever knows of them: a flow that has built one has yet to record its release.
NEWEST_KEPT = 16


def sweep(index: IndexVersion, pinned: Collection[int]) -> int:
    """Removes the versions of a table that are neither pinned nor among the newest; returns how many."""
    with lease(table_name(index.assistant, index.embedder, index.chunker)) as confirm:
        dataset = open_version(index.uri, index.table).to_lance()
        there = sorted(row["version"] for row in dataset.versions())
        keep = {index.version, *pinned, *there[-NEWEST_KEPT:]}
        if gone := [version for version in there if version not in keep]:
            confirm()
            # Files that no version names were left by a write that was cut short; the lease says there is none now.
            dataset.cleanup_old_versions(older_than=timedelta(0), versions=gone, delete_unverified=True)
        return len(gone)
