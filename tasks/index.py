"""A snapshot into an index version, and what in the sources an index no longer matches."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from data import chunking, formats
from data.ledger import Ledger
from data.records import ChunkSettings, IndexVersion, Record, Snapshot, Sources, digest
from tasks.prepare import documents

# More new chunks than this are embedded on Ray, where the work is seen and a lost worker is replaced.
MOST_IN_PROCESS = 2000


@dataclass(frozen=True)
class Staleness(Record):
    """Places (document, heading) whose text differs from the indexed one, that are new, and that are gone.

    `fingerprint` is the hash of all section hashes in the sources: the same exactly while nothing is edited again.
    """

    changed: tuple[tuple[str, str], ...] = field(default=())
    added: tuple[tuple[str, str], ...] = field(default=())
    deleted: tuple[tuple[str, str], ...] = field(default=())
    fingerprint: str = ""

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.deleted)

    def __len__(self) -> int:
        return len(self.changed) + len(self.added) + len(self.deleted)


def build_index(snapshot: Snapshot, settings: ChunkSettings = ChunkSettings()) -> IndexVersion:
    """The index version that holds exactly the snapshot's chunks; only chunks that are new are embedded.

    The same snapshot again is a read. Another embedder or other settings give a table of its own, beside the old one.
    """
    from data import embedding, store
    from serving.engine.models import embedder_folder

    folder = str(embedder_folder())
    embedder = embedding.load(folder)
    chunks = [chunk for document in documents(snapshot) for chunk in chunking.split(document, settings, embedder.count)]
    return store.write(
        snapshot.assistant,
        chunks,
        lambda texts: embed_on_ray(folder, texts) if _wants_ray(len(texts)) else embedder.embed(texts),
        embedder.sha256,
        chunking.chunker_hash(settings),
        snapshot.id,
    )


def stale_sections(sources: Sources, index: IndexVersion) -> Staleness:
    """What changed in the sources since `index` was built, by hash of each section, the sources being read again.

    A section under a new title counts as changed, since the title is shown with it. Raises FileNotFoundError or
    ValueError when no document can be read: an unmounted share is a fault, not a deletion of everything.
    """
    from data import store

    found = formats.read(sources.documents)
    if not found.documents:
        raise ValueError(f"no document could be read under {sources.documents!r}; staleness is unknown")
    now = {
        (section.document, section.heading): (section.hash, section.title)
        for document in found.documents
        for section in document.sections
    }
    before = store.open_index(index).outline()
    return Staleness(
        changed=tuple(sorted(place for place in now.keys() & before.keys() if now[place] != before[place])),
        added=tuple(sorted(now.keys() - before.keys())),
        deleted=tuple(sorted(before.keys() - now.keys())),
        fingerprint=digest(sorted(now.items())),
    )


def _wants_ray(texts: int) -> bool:
    if texts <= MOST_IN_PROCESS:
        return False
    import ray

    return ray.is_initialized()


class EmbedBatch:
    """Holds the embedder in one Ray actor; takes and gives blocks of rows."""

    def __init__(self, folder: str):
        from data import embedding

        self._embedder = embedding.load(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        vectors = self._embedder.embed([str(text) for text in batch["text"]])
        return {"row": batch["row"], "vector": vectors}


def embed_on_ray(folder: str, texts: list[str]) -> np.ndarray:
    """As Embedder.embed, in one actor of Ray Data; float32 [len(texts), d] in the order of `texts`."""
    import ray

    # Sorted here, because an actor sees one block at a time and padding is paid for like text.
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    rows = ray.data.from_items([{"row": row, "text": texts[row]} for row in order])
    one = ray.data.ActorPoolStrategy(size=1)
    embedded = rows.map_batches(EmbedBatch, fn_constructor_args=(folder,), compute=one, batch_size=256).take_all()
    result = np.zeros((len(texts), len(embedded[0]["vector"])), np.float32)
    for item in embedded:
        result[item["row"]] = item["vector"]
    return result


def bury_outdated(ledger: Ledger, version: IndexVersion) -> None:
    """Tombstone every chunk of earlier index versions that is not in `version`, before anything is gated."""
    from data.store import open_index

    present = open_index(version).ids()
    earlier: set[str] = set()
    releases = [ledger.release(accepted) for accepted in ledger.accepted_releases(version.assistant)[:8]]
    for index in {release.index for release in releases}:
        earlier |= open_index(index).ids()
    ledger.bury(version.assistant, earlier - present, present)
