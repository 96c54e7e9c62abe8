"""One version of a table, read only: hybrid search, and look-ups by chunk."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, reduce
from operator import and_

import numpy as np
import pyarrow as pa
from lancedb.expr import Expr, col, lit
from lancedb.query import MatchQuery

from data.chunking import chunk_ids
from data.records import Chunk, Filter, Hit, IndexVersion, Retrieval
from data.store.tables import FIELDS, PLACE, IndexDamaged, checksum, chunk_of, matrix, open_version, read, refuse_other


@lru_cache(maxsize=8)
def open_index(index: IndexVersion) -> Index:
    """The index at its pinned version; the last eight stay open in this process. Raises IndexDamaged."""
    return Index(index)


class Index:
    """One version of one table, read only. Thread safe."""

    def __init__(self, record: IndexVersion):
        self.record = record
        self._table = open_version(record.uri, record.table, record.version)
        refuse_other(self._table, record.table, embedder=record.embedder, chunker=record.chunker)
        about = read(self._table, ("id", "access", "tenant"))
        self._offsets = {chunk_id: offset for offset, chunk_id in enumerate(about["id"].to_pylist())}
        self._labelled = any(set(about[name].unique().to_pylist()) - {""} for name in ("access", "tenant"))
        self._agrees(self._offsets)

    def search(
        self,
        question: str,
        vector: np.ndarray,
        retrieval: Retrieval = Retrieval(),
        exclude: frozenset[str] = frozenset(),
        allowed: Filter = Filter(),
    ) -> list[Hit]:
        """The `top_k` best chunks by cosine and BM25 among those `allowed`, best first.

        `vector` is the question's unit row [d]. Chunk ids in `exclude` never come back: each search asks for as
        many more as could be excluded. No filter is ever written as text.
        Raises IndexDamaged when the files are no more.
        Fusion: both scores as shares of the best of their kind, added with `vector_weight` (a convex combination, which
        Bruch, Gai and Ingber 2023, ACM TOIS 42(1), found better than reciprocal ranks; so did we, see DECISIONS).
        """
        vector = np.asarray(vector, np.float32).reshape(-1)
        limit = retrieval.candidates + len(exclude & self._offsets.keys())
        try:
            lists = [self._nearest(vector, limit, allowed)]
            if question.strip():
                lists.append(self._with_words(question, limit, allowed))
        except (RuntimeError, OSError) as error:
            raise IndexDamaged(f"cannot search {self._name}: {error}") from error
        rows, cosines, bm25 = {}, {}, {}
        for found in lists:
            # Not a matrix product: its last digit depends on where a row lies, and equal texts must tie
            cosine_of = (matrix(found) * vector).sum(axis=1)
            pairs = zip(found.drop_columns("vector").to_pylist(), cosine_of, strict=True)
            for row, cosine in [pair for pair in pairs if pair[0]["id"] not in exclude][: retrieval.candidates]:
                rows[row["id"]], cosines[row["id"]] = row, float(cosine)
                bm25[row["id"]] = row.get("_score", bm25.get(row["id"], 0.0))
        scores = dict.fromkeys(rows, 0.0)
        for weight, values in ((retrieval.vector_weight, cosines), (1 - retrieval.vector_weight, bm25)):
            if (top := max(values.values(), default=0.0)) > 0:
                for chunk_id, value in values.items():
                    scores[chunk_id] += weight * max(value, 0.0) / top
        best = sorted(scores, key=lambda chunk_id: (-scores[chunk_id], chunk_id))[: retrieval.top_k]
        return [Hit(chunk_of(rows[i]), scores[i], cosines[i]) for i in best]

    def chunk(self, chunk_id: str) -> Chunk | None:
        """The chunk with this id, or None."""
        if (offset := self._offsets.get(chunk_id)) is None:
            return None
        return chunk_of(self._table.take_offsets([offset]).select(list(FIELDS)).to_arrow().to_pylist()[0])

    def chunks(self) -> list[Chunk]:
        """All chunks, in the order of the table."""
        return [chunk_of(row) for row in read(self._table, FIELDS).to_pylist()]

    def section(self, chunk: Chunk) -> list[Chunk]:
        """The chunks of the section that a chunk is part of, in reading order."""
        same = (col("document") == lit(chunk.document)) & (col("section") == lit(chunk.section))
        found = self._table.search().where(same).select(list(FIELDS)).limit(None).to_arrow()
        return sorted(map(chunk_of, found.to_pylist()), key=lambda chunk: chunk.part)

    def vectors(self) -> dict[str, np.ndarray]:
        """Chunk id -> its unit row, float32 [d]."""
        found = read(self._table, ("id", "vector"))
        return dict(zip(found["id"].to_pylist(), matrix(found), strict=True))

    def ids(self) -> set[str]:
        """All chunk ids."""
        return set(self._offsets)

    def places(self) -> dict[str, tuple[str, ...]]:
        """Chunk id -> the document, heading, hash, title, access and tenant of its section (see tables.PLACE)."""
        found = read(self._table, ("id", *PLACE))
        columns = [found[name].to_pylist() for name in ("id", *PLACE)]
        return {row[0]: row[1:] for row in zip(*columns, strict=True)}

    def verify(self) -> None:
        """Reads everything; raises IndexDamaged when an id does not fit its content or a vector is no unit row."""
        found = read(self._table, (*FIELDS, "vector"))
        ids = found["id"].to_pylist()
        wanted = {
            chunk.id: (chunk.document, chunk.title, chunk.section, chunk.text, chunk.access, chunk.tenant)
            for chunk in map(chunk_of, found.select(FIELDS).to_pylist())
        }
        if sorted(ids) != sorted(chunk_ids(wanted.values())):
            raise IndexDamaged(f"{self._name} holds a chunk whose text does not match its id; rebuild the index")
        self._agrees(ids)
        lengths = np.linalg.norm(matrix(found), axis=1)
        # bf16 never reaches the store (rows are normalised in fp32), so a healthy row is 1 within rounding.
        if not (np.abs(lengths - 1) < 1e-3).all():
            wrong = lengths[np.abs(lengths - 1).argmax()]
            raise IndexDamaged(f"{self._name} holds a vector of length {wrong}; rebuild it")

    def _nearest(self, vector: np.ndarray, limit: int, allowed: Filter) -> pa.Table:
        found = self._table.search(vector, vector_column_name="vector").distance_type("cosine")
        if (how := self.record.nearest) is None:
            found = found.bypass_vector_index()
        else:
            found = found.nprobes(how.probes).refine_factor(how.refine)
        return self._only(found, allowed).limit(limit).select([*FIELDS, "vector", "_distance"]).to_arrow()

    def _with_words(self, question: str, limit: int, allowed: Filter) -> pa.Table:
        found = self._only(self._table.search(MatchQuery(question, "words"), query_type="fts"), allowed)
        return found.limit(limit).select([*FIELDS, "vector", "_score"]).to_arrow()

    def _only(self, query, allowed: Filter):
        """The query with the filter before the search, so that what is not allowed takes no place."""
        conditions: list[Expr] = []
        if self._labelled:
            conditions.append(col("tenant").isin(["", allowed.tenant]))
            conditions.append(col("access").isin(["", *allowed.labels]))
        if allowed.documents:
            conditions.append(col("document").isin(list(allowed.documents)))
        if allowed.languages:
            conditions.append(col("language").isin(list(allowed.languages)))
        if allowed.modified_after:
            conditions.append(col("modified") > lit(allowed.modified_after))
        if not conditions:
            return query
        return query.where(reduce(and_, conditions), prefilter=True)

    @property
    def _name(self) -> str:
        return f"version {self.record.version} of table {self.record.table}"

    def _agrees(self, ids: Iterable[str]) -> None:
        found = checksum(ids, self.record.embedder, self.record.chunker)
        if found != self.record.checksum:
            recorded = self.record.checksum[:12]
            raise IndexDamaged(f"{self._name} has checksum {found[:12]}, recorded is {recorded}; rebuild it")
