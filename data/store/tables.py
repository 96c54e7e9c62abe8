"""A LanceDB table of chunks: its columns, and how it is opened."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa

from data.chunking import passage
from data.records import Chunk, Document, Section, digest
from settings import settings

SCHEMA = "store-3"
FIELDS = tuple(Chunk.__dataclass_fields__)
NUMBERS = ("part", "page", "parts")
# What makes a section another one for the index: when one of these differs, its chunks are replaced.
PLACE = ("document", "section", "section_hash", "title", "access", "tenant")


class IndexDamaged(RuntimeError):
    """An index version that cannot be read, or does not hold what its record says."""


def checksum(ids: Iterable[str], embedder: str, chunker: str) -> str:
    """What an index holds, wherever it lies: hex sha256 over the chunk ids, the embedder and the chunker."""
    return digest(sorted(ids), embedder, chunker)


def table_name(assistant: str, embedder: str, chunker: str) -> str:
    """The table of an assistant for one embedder, chunker and schema: another of these gets a table of its own."""
    return f"{_prefix(assistant)}-{digest(embedder, chunker, SCHEMA)[:10]}"


def _prefix(assistant: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", assistant)[:40]
    return f"{readable}-{digest(assistant)[:6]}"


def tables_beside(uri: str, base: str) -> list[str]:
    """The tables that were built beside each other, oldest first: `base`, `base-2`, `base-3` and so on."""
    return sorted(
        (n for n in names(uri) if re.fullmatch(rf"{re.escape(base)}(-[0-9]+)?", n)), key=lambda n: _turn(n, base)
    )


def apart(base: str, content: str) -> str:
    """The name of the table for rows from elsewhere with the checksum `content`: beside none that is built here."""
    return f"{base}-of-{content[:12]}"


def is_apart(name: str) -> bool:
    return bool(re.search(r"-of-[0-9a-f]{12}$", name))


def owned(uri: str, assistant: str) -> dict[str, str]:
    """Every table of an assistant, with the name of the first of those it was built beside."""
    mine = re.compile(rf"({re.escape(_prefix(assistant))}-[0-9a-f]{{10}})(-.*)?")
    return {name: match[1] for name in names(uri) if (match := mine.fullmatch(name))}


def beside(name: str, base: str) -> str:
    """The name of the next table beside `name`."""
    return f"{base}-{_turn(name, base) + 1}"


def _turn(name: str, base: str) -> int:
    return int(name.removeprefix(base).removeprefix("-") or 1)


def place(document: Document, section: Section) -> tuple[str, ...]:
    """The values of PLACE for a section."""
    return (document.id, section.heading, section.hash, document.title, document.access, document.tenant)


def place_of(chunk: Chunk) -> tuple[str, ...]:
    """The place of the section that a chunk is part of."""
    return tuple(getattr(chunk, name) for name in PLACE)


def schema(dimensions: int, embedder: str, chunker: str) -> pa.Schema:
    # Without this mark two writers merging the same new keys duplicate them, without an error (lancedb 0.40).
    key = {b"lance-schema:unenforced-primary-key": b"true"}
    fields = [pa.field("id", pa.string(), nullable=False, metadata=key)]
    fields += [
        pa.field(name, pa.int32()) if name in NUMBERS else pa.field(name, pa.string(), nullable=False)
        for name in (*FIELDS[1:], "parts", "words", "words_hash")
    ]
    fields.append(pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False))
    return pa.schema(fields, metadata={"embedder": embedder, "chunker": chunker, "schema": SCHEMA})


def rows(
    chunks: Sequence[Chunk], vectors: np.ndarray, embedder: str, chunker: str, parts: Counter[tuple] | None = None
) -> pa.Table:
    """Chunks and their unit vectors [n, d] as rows of the table; `parts` is how many chunks each section has.

    Without it all chunks of a section come together.
    """
    words, parts = [words_of(chunk) for chunk in chunks], parts or Counter(place_of(chunk) for chunk in chunks)
    columns = [[getattr(chunk, name) for chunk in chunks] for name in FIELDS]
    columns.append([parts[place_of(chunk)] for chunk in chunks])
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns += [words, [words_hash(text) for text in words], pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])]
    return pa.table(columns, schema=schema(vectors.shape[1], embedder, chunker))


def words_of(chunk: Chunk) -> str:
    """What is embedded and searched by words."""
    return passage(chunk.title, chunk.section, chunk.text)


def words_hash(words: str) -> str:
    """Names an embedded text: equal texts share a vector, whatever document they stand in."""
    return digest(words)[:24]


def chunk_of(row: dict) -> Chunk:
    return Chunk(**{name: row[name] for name in FIELDS})


def matrix(found: pa.Table) -> np.ndarray:
    """The vector column as float32 [rows, d]."""
    column = found["vector"].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def read(table, columns: Sequence[str]) -> pa.Table:
    """Those columns of every row, in the order of the table. Raises IndexDamaged."""
    try:
        return table.search().select(list(columns)).limit(None).to_arrow()
    except (ValueError, RuntimeError, OSError) as error:
        raise IndexDamaged(f"cannot read version {table.version} of table {table.name}: {error}") from error


# --- opening ----------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def connect(uri: str):
    return lancedb.connect(uri)


def open_version(uri: str, name: str, version: int | None = None):
    """A table, at its newest version or a given one. Raises IndexDamaged.

    LanceDB reads the newest manifest whichever version is asked for, so one that was cut short would take every
    good version with it: it is set aside, once, and the table opened without it.
    """
    try:
        return connect(uri).open_table(name, version=version)
    except (ValueError, RuntimeError, OSError) as error:
        failed = error
    if aside := _set_aside(uri, name):
        logging.getLogger(__name__).error("damaged manifests of table %s set aside: %s", name, ", ".join(aside))
        try:
            return connect(uri).open_table(name, version=version)
        except (ValueError, RuntimeError, OSError) as error:
            failed = error
    raise IndexDamaged(f"cannot open version {version or 'newest'} of table {name} in {uri}: {failed}") from failed


def open_to_write(name: str, embedder: str, chunker: str):
    """The newest version of a table, or None when there is none yet."""
    if name not in names(settings().store):
        return None
    table = open_version(settings().store, name)
    refuse_other(table, name, embedder=embedder, chunker=chunker, schema=SCHEMA)
    return table


def names(uri: str) -> list[str]:
    """All tables of a store."""
    return connect(uri).table_names(limit=100_000)


def refuse_other(table, name: str, **wanted: str) -> None:
    """Raises ValueError when a table was made with anything else than is `wanted`: embedder, chunker, schema.

    What is only read may have an older schema: a release answers from its index until the next build.
    """
    made = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    for what, value in wanted.items():
        if made.get(what) != value:
            raise ValueError(
                f"table {name} was made with {what} {made.get(what)}, not {value}; build a new one beside it"
            )


def _set_aside(uri: str, name: str) -> list[str]:
    """Renames manifests without their closing mark (they are written in one step, so none is half done) in a folder."""
    damaged = []
    for manifest in sorted(Path(uri, f"{name}.lance", "_versions").glob("*.manifest")):
        if manifest.read_bytes()[-4:] != b"LANC":
            manifest.rename(manifest.with_suffix(".damaged"))
            damaged.append(manifest.name)
    return damaged
