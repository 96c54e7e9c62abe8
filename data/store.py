"""Chunks, their vectors and their full text in LanceDB: immutable versions, of which a release pins one."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cached_property, lru_cache
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import FTS
from lancedb.query import MatchQuery

from data.chunking import chunk_ids, passage
from data.lease import lease
from data.records import Chunk, Hit, IndexVersion, Retrieval, digest
from settings import settings

SCHEMA = "store-1"
FIELDS = ("id", "document", "title", "section", "section_hash", "text")
# Every write adds a fragment; past this many they are merged, or a search opens too many files.
MOST_FRAGMENTS = 32
# LanceDB's optimize() deletes versions older than this; a release may pin any of them, so: never.
KEEP_VERSIONS = timedelta(days=36500)


class IndexDamaged(RuntimeError):
    """An index version that cannot be read, or does not hold what its record says."""


def checksum(ids: Iterable[str], embedder: str, chunker: str) -> str:
    """What an index holds, wherever it lies: hex sha256 over the chunk ids, the embedder and the chunker."""
    return digest(sorted(ids), embedder, chunker)


def table_name(assistant: str, embedder: str, chunker: str) -> str:
    """The table of an assistant for one embedder, chunker and schema: another of these gets a table of its own."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", assistant)[:40]
    return f"{readable}-{digest(assistant)[:6]}-{digest(embedder, chunker, SCHEMA)[:10]}"


def write(
    assistant: str,
    chunks: Sequence[Chunk],
    embed: Callable[[list[str]], np.ndarray],
    embedder_sha: str,
    chunker: str,
    snapshot_id: str,
) -> IndexVersion:
    """Makes the table of `assistant` hold exactly `chunks`, in one merge commit, and returns the new version.

    Only chunks that the previous version lacks are embedded: `embed` maps n passages to float32 [n, d] unit rows.
    When nothing changed, the previous version is returned and nothing is written. Raises ValueError when `chunks`
    is empty or has an id twice, or the vectors are wrong; TimeoutError when another writer keeps the lease.
    """
    wanted = {chunk.id: chunk for chunk in chunks}
    if not chunks or len(wanted) != len(chunks):
        raise ValueError(
            f"{len(chunks)} chunks with {len(wanted)} ids for {assistant!r}; need at least one, ids unique"
        )
    name = table_name(assistant, embedder_sha, chunker)
    with lease(name) as confirm:
        table = _open_to_write(name, embedder_sha, chunker)
        held = _vectors(table)
        fresh = [chunk for chunk in chunks if chunk.id not in held]
        if fresh or held.keys() != wanted.keys():
            made = _embedded(fresh, embed)
            if held and fresh and made.shape[1] != len(next(iter(held.values()))):
                raise ValueError(f"the embedder gives {made.shape[1]} numbers, table {name} holds another length")
            held |= {chunk.id: row for chunk, row in zip(fresh, made, strict=True)}
            rows = _rows(chunks, np.stack([held[chunk.id] for chunk in chunks]), embedder_sha, chunker)
            confirm()
            if table is None:
                table = _connect(settings().store).create_table(name, schema=rows.schema)
            merge = table.merge_insert("id").when_not_matched_insert_all().when_not_matched_by_source_delete()
            merge.execute(rows)
        _index_words(table)
        return IndexVersion(
            assistant=assistant,
            uri=settings().store,
            table=name,
            version=table.version,
            checksum=checksum(list(wanted), embedder_sha, chunker),
            embedder=embedder_sha,
            chunker=chunker,
            chunks=len(wanted),
            embedded=len(fresh),
            snapshot=snapshot_id,
        )


@lru_cache(maxsize=8)
def open_index(index: IndexVersion) -> Index:
    """The index at its pinned version; the last eight stay open in this process. Raises IndexDamaged."""
    return Index(index)


class Index:
    """One version of one table, read only. Thread safe."""

    def __init__(self, record: IndexVersion):
        self.record = record
        self._table = _open(record.uri, record.table, record.version)
        _refuse_other(self._table, record.table, record.embedder, record.chunker)
        self._agrees(self.ids())

    def search(
        self,
        question: str,
        vector: np.ndarray,
        retrieval: Retrieval = Retrieval(),
        exclude: frozenset[str] = frozenset(),
    ) -> list[Hit]:
        """The `top_k` best chunks by exact cosine and BM25, best first.

        `vector` is the question's unit row [d]. Chunk ids in `exclude` never come back: each search asks for as
        many more as could be excluded, so no filter is ever written as text.
        Fusion: both scores as shares of the best of their kind, added with `vector_weight` (a convex combination, which
        Bruch, Gai and Ingber 2023, ACM TOIS 42(1), found better than reciprocal ranks; so did we, see DECISIONS).
        """
        vector = np.asarray(vector, np.float32).reshape(-1)
        limit = retrieval.candidates + (len(exclude & self.ids()) if exclude else 0)
        near = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
        lists = [near.limit(limit).select([*FIELDS, "vector", "_distance"]).to_arrow()]
        if question.strip():
            words = self._table.search(MatchQuery(question, "words"), query_type="fts")
            lists.append(words.limit(limit).select([*FIELDS, "vector", "_score"]).to_arrow())
        rows, cosines, bm25 = {}, {}, {}
        for table in lists:
            found = zip(table.drop_columns("vector").to_pylist(), _matrix(table) @ vector, strict=True)
            for row, cosine in [pair for pair in found if pair[0]["id"] not in exclude][: retrieval.candidates]:
                rows[row["id"]], cosines[row["id"]] = row, float(cosine)
                bm25[row["id"]] = row.get("_score", bm25.get(row["id"], 0.0))
        scores = dict.fromkeys(rows, 0.0)
        for weight, values in ((retrieval.vector_weight, cosines), (1 - retrieval.vector_weight, bm25)):
            if (top := max(values.values(), default=0.0)) > 0:
                for chunk_id, value in values.items():
                    scores[chunk_id] += weight * max(value, 0.0) / top
        best = sorted(scores, key=lambda chunk_id: (-scores[chunk_id], chunk_id))[: retrieval.top_k]
        return [Hit(_chunk(rows[i]), scores[i], cosines[i]) for i in best]

    def chunk(self, chunk_id: str) -> Chunk | None:
        """The chunk with this id, or None."""
        row = self._places.get(chunk_id)
        return None if row is None else _chunk(self._contents.slice(row, 1).to_pylist()[0])

    def chunks(self) -> list[Chunk]:
        """All chunks, in the order of the table."""
        return [_chunk(row) for row in self._contents.to_pylist()]

    def vectors(self) -> dict[str, np.ndarray]:
        """Chunk id -> its unit row, float32 [d]."""
        return _vectors(self._table)

    def ids(self) -> set[str]:
        """All chunk ids."""
        return self._ids

    def sections(self) -> set[tuple[str, str]]:
        """(document, section hash) of every section in the index."""
        return {(row["document"], row["section_hash"]) for row in self._contents.to_pylist()}

    def outline(self) -> dict[tuple[str, str], tuple[str, str]]:
        """(document, heading) -> (section hash, title) of every section in the index."""
        rows = self._contents.to_pylist()
        return {(row["document"], row["section"]): (row["section_hash"], row["title"]) for row in rows}

    def verify(self) -> None:
        """Reads everything; raises IndexDamaged when an id does not fit its content or a vector is no unit row."""
        place = f"version {self.record.version} of table {self.record.table}"
        try:
            rows = self._table.search().select([*FIELDS, "vector"]).limit(None).to_arrow()
        except (ValueError, RuntimeError, OSError) as error:
            raise IndexDamaged(f"cannot read {place}: {error}") from error
        contents = rows.select(["document", "title", "section", "text"]).to_pylist()
        ids = rows["id"].to_pylist()
        if sorted(ids) != sorted(chunk_ids(tuple(row.values()) for row in contents)):
            raise IndexDamaged(f"{place} holds a chunk whose text does not match its id; rebuild the index")
        self._agrees(ids)
        lengths = np.linalg.norm(_matrix(rows), axis=1)
        # bf16 never reaches the store (rows are normalised in fp32), so a healthy row is 1 within rounding.
        if not (np.abs(lengths - 1) < 1e-3).all():
            raise IndexDamaged(f"{place} holds a vector of length {lengths[np.abs(lengths - 1).argmax()]}; rebuild it")

    def _agrees(self, ids: Iterable[str]) -> None:
        found = checksum(ids, self.record.embedder, self.record.chunker)
        if found != self.record.checksum:
            place = f"version {self.record.version} of table {self.record.table}"
            raise IndexDamaged(
                f"{place} has checksum {found[:12]}, recorded is {self.record.checksum[:12]}; rebuild it"
            )

    @cached_property
    def _contents(self) -> pa.Table:
        try:
            return self._table.search().select(list(FIELDS)).limit(None).to_arrow()
        except (ValueError, RuntimeError, OSError) as error:
            place = f"version {self.record.version} of table {self.record.table}"
            raise IndexDamaged(f"cannot read {place}: {error}") from error

    @cached_property
    def _places(self) -> dict[str, int]:
        return {chunk_id: row for row, chunk_id in enumerate(self._contents["id"].to_pylist())}

    @cached_property
    def _ids(self) -> set[str]:
        return set(self._places)


@lru_cache(maxsize=8)
def _connect(uri: str):
    return lancedb.connect(uri)


def _open(uri: str, name: str, version: int | None = None):
    """A table, at its newest version or a given one. Raises IndexDamaged.

    LanceDB reads the newest manifest whichever version is asked for, so one that was cut short would take every
    good version with it: it is set aside, once, and the table opened without it.
    """
    try:
        return _connect(uri).open_table(name, version=version)
    except (ValueError, RuntimeError, OSError) as error:
        failed = error
    if aside := _set_aside(uri, name):
        logging.getLogger(__name__).error("damaged manifests of table %s set aside: %s", name, ", ".join(aside))
        try:
            return _connect(uri).open_table(name, version=version)
        except (ValueError, RuntimeError, OSError) as error:
            failed = error
    raise IndexDamaged(f"cannot open version {version or 'newest'} of table {name} in {uri}: {failed}") from failed


def _set_aside(uri: str, name: str) -> list[str]:
    """Renames manifests without their closing mark (they are written in one step, so none is half done) in a folder."""
    damaged = []
    for manifest in sorted(Path(uri, f"{name}.lance", "_versions").glob("*.manifest")):
        if manifest.read_bytes()[-4:] != b"LANC":
            manifest.rename(manifest.with_suffix(".damaged"))
            damaged.append(manifest.name)
    return damaged


def _open_to_write(name: str, embedder: str, chunker: str):
    """The newest version of a table, or None when there is none yet."""
    if name not in _connect(settings().store).table_names(limit=100_000):
        return None
    table = _open(settings().store, name)
    _refuse_other(table, name, embedder, chunker)
    return table


def _refuse_other(table, name: str, embedder: str, chunker: str) -> None:
    made = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    for what, value in (("embedder", embedder), ("chunker", chunker), ("schema", SCHEMA)):
        if made.get(what) != value:
            raise ValueError(
                f"table {name} was made with {what} {made.get(what)}, not {value}; build a new one beside it"
            )


def _schema(dimensions: int, embedder: str, chunker: str) -> pa.Schema:
    # Without this mark two writers merging the same new keys duplicate them, without an error (lancedb 0.40).
    key = {b"lance-schema:unenforced-primary-key": b"true"}
    texts = [pa.field(name, pa.string(), nullable=False) for name in (*FIELDS[1:], "words")]
    vector = pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False)
    made_with = {"embedder": embedder, "chunker": chunker, "schema": SCHEMA}
    return pa.schema([pa.field("id", pa.string(), nullable=False, metadata=key), *texts, vector], metadata=made_with)


def _rows(chunks: Sequence[Chunk], vectors: np.ndarray, embedder: str, chunker: str) -> pa.Table:
    columns = [[getattr(chunk, name) for chunk in chunks] for name in FIELDS]
    columns.append([passage(chunk.title, chunk.section, chunk.text) for chunk in chunks])
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    return pa.table(columns, schema=_schema(vectors.shape[1], embedder, chunker))


def _embedded(chunks: Sequence[Chunk], embed: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    if not chunks:
        return np.zeros((0, 0), np.float32)
    rows = np.asarray(embed([passage(chunk.title, chunk.section, chunk.text) for chunk in chunks]), np.float32)
    if rows.ndim != 2 or len(rows) != len(chunks) or not (np.abs(np.linalg.norm(rows, axis=1) - 1) < 1e-3).all():
        raise ValueError(f"embedding {len(chunks)} chunks gave {rows.shape} with rows that are not of length 1")
    return rows


def _matrix(rows: pa.Table) -> np.ndarray:
    """The vector column as float32 [rows, d]."""
    column = rows["vector"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def _vectors(table) -> dict[str, np.ndarray]:
    if table is None:
        return {}
    rows = table.search().select(["id", "vector"]).limit(None).to_arrow()
    return dict(zip(rows["id"].to_pylist(), _matrix(rows), strict=True)) if rows.num_rows else {}


def _index_words(table) -> None:
    """Builds the full-text index over everything, unless it is complete: equal contents then rank equally."""
    if any(index.columns == ["words"] for index in table.list_indices()):
        stats = table.index_stats("words_idx")
        if stats.num_unindexed_rows == 0 and stats.num_indexed_rows == table.count_rows():
            return
    if table.stats()["fragment_stats"]["num_fragments"] > MOST_FRAGMENTS:
        table.optimize(cleanup_older_than=KEEP_VERSIONS)
    table.create_index("words", config=FTS(with_position=False), replace=True)


def _chunk(row: dict) -> Chunk:
    return Chunk(**{name: row[name] for name in FIELDS})
