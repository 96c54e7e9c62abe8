"""A version of a table as one file, and such a file as a table of this store: same content, same checksum."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.bundle import readable
from data.records import Chunk, IndexVersion
from data.store import nearest
from data.store.build import Embed, index_words
from data.store.search import Index
from data.store.tables import (
    FIELDS,
    IndexDamaged,
    apart,
    connect,
    is_apart,
    matrix,
    names,
    open_version,
    owned,
    place_of,
    rows,
    schema,
    table_name,
    words_of,
)
from settings import settings

ROWS_IN_MEMORY = 4096
COMPARED = 32
LEAST_COSINE = 0.99
"""Between a vector that came along and the installed embedder's: .9999 in bf16, under .9 for another text."""


def dump(index: IndexVersion, file: Path) -> None:
    """Writes the chunks of a version and their vectors as Parquet, a few thousand in memory at a time."""
    dataset = open_version(index.uri, index.table, index.version).to_lance()
    kept = _schema(dataset.schema.field("vector").type.list_size)
    with pq.ParquetWriter(file, kept, compression="zstd", use_dictionary=["document", "title", "section"]) as out:
        for batch in dataset.to_batches(columns=kept.names, batch_size=ROWS_IN_MEMORY):
            out.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=kept))


def load(file: Path, index: IndexVersion, embed: Embed) -> IndexVersion:
    """The record of `index` with the place of a table that holds the rows of a `dump` of it.

    The table stands apart from those that are built here: no build goes on from it or takes a vector of it. One that
    is there already and whole is taken as it is. Raises ValueError for a file that is no dump, IndexDamaged when the
    rows are not those of the record, or a sample of their vectors not what `embed` gives; then nothing is left of them.
    """
    name = apart(table_name(index.assistant, index.embedder, index.chunker), index.checksum)
    here = replace(index, uri=settings().store, table=name)
    table = _standing(here, embed)
    if table is None:
        table = _written(file, here, embed)
    index_words(table, 0)
    how = nearest.index(table, embed)
    return replace(here, version=table.version, nearest=how)


def _standing(here: IndexVersion, embed: Embed):
    """The table of `here` when it is there and whole; one that was cut short is removed."""
    if here.table not in names(here.uri):
        return None
    try:
        table = open_version(here.uri, here.table)
        _check(replace(here, version=table.version), embed)
    except IndexDamaged:
        connect(here.uri).drop_table(here.table)
        return None
    return table


def _written(file: Path, here: IndexVersion, embed: Embed):
    """The table of `here` with the rows of a file, in one commit."""
    held = readable(file, lambda found: found.equals(_schema(_wide(found))))
    parts = Counter(place_of(chunk) for chunks, _ in _batches(held) for chunk in chunks)
    made = schema(_wide(held.schema_arrow), here.embedder, here.chunker)
    batches = (
        batch
        for chunks, vectors in _batches(held)
        for batch in rows(chunks, vectors, here.embedder, here.chunker, parts).to_batches()
    )
    reader, db = pa.RecordBatchReader.from_batches(made, batches), connect(here.uri)
    try:
        table = db.create_table(here.table, data=reader, schema=made)
        _check(replace(here, version=table.version), embed)
    except IndexDamaged:
        db.drop_table(here.table)
        raise
    except RuntimeError as problem:  # whatever is wrong with a row comes as this
        raise IndexDamaged(f"its rows cannot be written: {str(problem)[:200]}") from problem
    return table


def drop_apart(assistant: str, pinned: Collection[IndexVersion]) -> int:
    """Removes the tables of an assistant that came from elsewhere and that nothing in `pinned` needs; how many."""
    kept = {index.table for index in pinned}
    gone = [name for name in owned(settings().store, assistant) if is_apart(name) and name not in kept]
    for name in gone:
        connect(settings().store).drop_table(name)
    return len(gone)


def _schema(dimensions: int) -> pa.Schema:
    plain = [pa.field(one.name, one.type, one.nullable) for one in schema(dimensions, "", "")]
    return pa.schema([one for one in plain if one.name in (*FIELDS, "vector")])


def _wide(found: pa.Schema) -> int:
    kind = found.field("vector").type if "vector" in found.names else None
    return kind.list_size if kind and pa.types.is_fixed_size_list(kind) else 0


def _batches(held: pq.ParquetFile) -> Iterator[tuple[list[Chunk], np.ndarray]]:
    try:
        for batch in held.iter_batches(batch_size=ROWS_IN_MEMORY):
            some = pa.Table.from_batches([batch])
            yield [Chunk(**row) for row in some.select(FIELDS).to_pylist()], matrix(some)
    except (pa.ArrowException, OSError) as problem:
        raise IndexDamaged(f"the rows of the index cannot be read ({problem})"[:300]) from problem


def _check(index: IndexVersion, embed: Embed) -> None:
    """Raises IndexDamaged unless the table is whole, and a sample of its vectors what `embed` gives for their texts."""
    opened = Index(index)
    opened.verify()
    held = opened.vectors()
    if not held:
        raise IndexDamaged("it holds no chunk")
    some = random.SystemRandom().sample(sorted(held), min(COMPARED, len(held)))
    wanted = embed([words_of(opened.chunk(chunk)) for chunk in some])
    if wanted.shape[1] != len(held[some[0]]):
        raise IndexDamaged(f"its vectors have {len(held[some[0]])} numbers, the embedder's {wanted.shape[1]}")
    worst = min(float(held[chunk] @ row) for chunk, row in zip(some, wanted, strict=True))
    if not worst >= LEAST_COSINE:
        raise IndexDamaged(f"its vectors are not those of the embedder that it names (cosine {worst:.2f})")
