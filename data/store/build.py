"""Makes a table hold exactly the sections of a snapshot: only what is new is split, embedded and written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from lancedb.expr import col
from lancedb.index import FTS

from data.lease import lease
from data.records import Chunk, Document, IndexVersion, Section
from data.store import nearest
from data.store.tables import (
    PLACE,
    IndexDamaged,
    beside,
    checksum,
    connect,
    matrix,
    open_to_write,
    place,
    place_of,
    read,
    rows,
    schema,
    table_name,
    tables_beside,
    words_hash,
    words_of,
)
from settings import settings

# Chunks embedded and committed at a time: what memory holds, and what a killed build repeats at most.
BATCH = 4096
# Every write adds a fragment; past this many they are merged, or a search opens too many files.
MOST_FRAGMENTS = 8
# Every write adds a segment to each index; past this many they are built anew, which also forgets deleted rows.
MOST_SEGMENTS = 3
# Words of deleted rows still count in BM25 until then; a write that deletes more than this share does not leave them.
MOST_DELETED = 0.1

Embed = Callable[[list[str]], np.ndarray]


def write(
    assistant: str,
    sections: Iterable[tuple[Document, Section]],
    split: Callable[[Document, Section], list[Chunk]],
    embed: Embed,
    embedder: str,
    chunker: str,
    snapshot_id: str,
    anew: bool = False,
) -> IndexVersion:
    """Makes the table of `assistant` hold exactly the chunks of `sections`, and returns the new version.

    A section that the newest version holds is neither split nor embedded again, nor is a text that only moved: `embed`
    maps n passages to float32 [n, d] unit rows. New chunks are committed in batches and those that are gone leave with
    the last commit, so only the returned version may be used; a write that was cut short goes on where it stopped.
    When nothing changed nothing is written. A table that is damaged, or any with `anew`, is left as it is and another
    built beside it. Raises ValueError when there are no chunks, an id comes twice, or the
    vectors are wrong; TimeoutError when another writer keeps the lease.
    """
    base = table_name(assistant, embedder, chunker)
    with lease(base) as confirm:
        name = [base, *tables_beside(settings().store, base)][-1]
        name = beside(name, base) if anew else name
        try:
            draft = _Draft(name, embed, embedder, chunker, confirm)
        except IndexDamaged as error:
            logging.getLogger(__name__).error("%s; building another beside it", error)
            name = beside(name, base)
            draft = _Draft(name, embed, embedder, chunker, confirm)
        waiting: list[Chunk] = []
        for document, section in sections:
            if draft.keep(place(document, section)):
                continue
            waiting += split(document, section)
            if len(waiting) >= BATCH:
                draft.add(waiting)
                waiting = []
        draft.add(waiting)
        draft.drop_gone()
        table = draft.table
        index_words(table, draft.deleted)
        how = nearest.index(table, embed)
        return IndexVersion(
            assistant=assistant,
            uri=settings().store,
            table=name,
            version=table.version,
            checksum=checksum(draft.kept, embedder, chunker),
            embedder=embedder,
            chunker=chunker,
            chunks=len(draft.kept),
            embedded=draft.embedded,
            snapshot=snapshot_id,
            nearest=how,
        )


class _Draft:
    """A table being written: `kept` ids, number of texts `embedded` and of rows `deleted` or replaced."""

    def __init__(self, name: str, embed: Embed, embedder: str, chunker: str, confirm: Callable[[], None]):
        self.name, self.embed, self.embedder, self.chunker, self.confirm = name, embed, embedder, chunker, confirm
        self.table = open_to_write(name, embedder, chunker)
        self.before: dict[str, tuple] = {}  # chunk id -> the place of its section, its part and page
        self.places: dict[tuple, list[str]] = {}  # of whole sections that were not seen yet -> their chunk ids
        self.known: dict[str, str] = {}  # hash of an embedded text -> a chunk with its vector
        self.kept: set[str] = set()
        self.embedded = self.deleted = 0
        if self.table is None:
            return
        found = read(self.table, ("id", "words_hash", "parts", "part", "page", *PLACE))
        ids, parts = found["id"].to_pylist(), found["parts"].to_pylist()
        self.known = dict(zip(found["words_hash"].to_pylist(), ids, strict=True))
        where = zip(*(found[column].to_pylist() for column in PLACE), strict=True)
        about = zip(where, found["part"].to_pylist(), found["page"].to_pylist(), strict=True)
        self.before = dict(zip(ids, about, strict=True))
        for chunk in ids:
            self.places.setdefault(self.before[chunk][0], []).append(chunk)
        of = dict(zip(ids, parts, strict=True))
        # A build that was killed may have taken a chunk over into another edition of its section
        self.places = {where: held for where, held in self.places.items() if len(held) == of[held[0]]}

    def keep(self, section: tuple) -> bool:
        """Whether the table holds the whole section at this place; it then stays as it is."""
        held = self.places.pop(section, ())
        self.kept.update(held)
        return bool(held)

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Embed and commit chunks that the table lacks, or holds as part of another edition of their section."""
        ids = {chunk.id for chunk in chunks}
        if len(ids) != len(chunks) or ids & self.kept:
            raise ValueError(f"{len(chunks)} chunks with {len(ids - self.kept)} new ids in {self.name}; ids are unique")
        self.kept |= ids
        fresh = [c for c in chunks if self.before.get(c.id) != (place_of(c), c.part, c.page)]
        # `parts` is counted over what is written: a section is written whole, its vectors taken from the table
        changed = {place_of(chunk) for chunk in fresh}
        fresh = [chunk for chunk in chunks if place_of(chunk) in changed]
        if not fresh:
            return
        vectors = self._vectors([words_of(chunk) for chunk in fresh])
        self.confirm()
        if self.table is None:
            empty = schema(vectors.shape[1], self.embedder, self.chunker)
            self.table = connect(settings().store).create_table(self.name, schema=empty)
        merge = self.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.execute(rows(fresh, vectors, self.embedder, self.chunker))
        self.deleted += sum(chunk.id in self.before for chunk in fresh)

    def drop_gone(self) -> None:
        """Commit the deletion of what no section holds any more."""
        if not self.kept:
            raise ValueError(f"0 chunks for {self.name}; an index needs at least one")
        if gone := self.before.keys() - self.kept:
            self.confirm()
            self.table.delete(col("id").isin(sorted(gone)))
            self.deleted += len(gone)

    def _vectors(self, texts: list[str]) -> np.ndarray:
        """Unit rows [n, d] of texts: taken from the table where it has embedded the same text, else embedded."""
        hashes = [words_hash(text) for text in texts]
        moved = {self.known[key]: key for key in hashes if key in self.known}
        held: dict[str, np.ndarray] = {}
        if moved:
            found = self.table.search().where(col("id").isin(sorted(moved))).select(["id", "vector"]).limit(None)
            table = found.to_arrow()
            held = {moved[i]: row for i, row in zip(table["id"].to_pylist(), matrix(table), strict=True)}
        missing = [text for text, key in zip(texts, hashes, strict=True) if key not in held]
        made = np.asarray(self.embed(missing), np.float32) if missing else np.zeros((0, 0), np.float32)
        if missing and (
            made.ndim != 2 or len(made) != len(missing) or not (np.abs(np.linalg.norm(made, axis=1) - 1) < 1e-3).all()
        ):
            raise ValueError(f"embedding {len(missing)} chunks gave {made.shape} with rows that are not of length 1")
        wide = len(next(iter(held.values()))) if held else self._dimensions()
        if missing and wide not in (None, made.shape[1]):
            raise ValueError(f"the embedder gives {made.shape[1]} numbers, table {self.name} holds {wide}")
        self.embedded += len(missing)
        given = iter(made)
        return np.stack([held[key] if key in held else next(given) for key in hashes])

    def _dimensions(self) -> int | None:
        return None if self.table is None else self.table.schema.field("vector").type.list_size


def index_words(table, deleted: int) -> None:
    """Brings the full text up to date with the rows, in proportion to what changed; `deleted` rows are no more.

    A new segment covers the new rows; after MOST_SEGMENTS of them, or many deletions, the index is built anew.
    """
    stats = table.index_stats("words_idx") if any(i.columns == ["words"] for i in table.list_indices()) else None
    if stats is None or stats.num_indices > MOST_SEGMENTS or deleted > MOST_DELETED * table.count_rows():
        table.create_index("words", config=FTS(with_position=False), replace=True)
        # Here and only here, since fragments that lie in different segments are not merged
        if table.stats()["fragment_stats"]["num_fragments"] > MOST_FRAGMENTS:
            # A fragment of a quarter of the table stays as it is: merging costs what was added, not what is there
            most = max(1024, table.count_rows() // 4)
            table.to_lance().optimize.compact_files(target_rows_per_fragment=most, num_threads=1)
            table.checkout_latest()
    elif stats.num_unindexed_rows:
        table.to_lance().optimize.optimize_indices(num_indices_to_merge=0, index_names=["words_idx"])
        table.checkout_latest()
