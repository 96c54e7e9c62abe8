"""Chunks, their vectors and their full text in LanceDB: immutable versions, of which a release pins one."""

from data.store.build import write
from data.store.search import Index, open_index
from data.store.tables import IndexDamaged, checksum, table_name
from data.store.transfer import drop_apart, dump, load
from data.store.versions import forget, sweep

__all__ = [
    "Index",
    "IndexDamaged",
    "checksum",
    "drop_apart",
    "dump",
    "forget",
    "load",
    "open_index",
    "sweep",
    "table_name",
    "write",
]
