"""A snapshot into an index version, and what in the sources an index no longer matches."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from data import chunking, snapshots
from data.lease import DELETING, lease
from data.ledger import Ledger
from data.records import ChunkSettings, IndexVersion, Record, Release, Snapshot, Sources, digest
from settings import settings
from tasks.cluster import has_ray
from tasks.prepare import prepare

# More new chunks than this are embedded on Ray, where the work is seen and a lost worker is replaced.
MOST_IN_PROCESS = 2000
# Releases that were live and can be gone back to; their index versions stay on disk.
KEPT_RELEASES = 8
# Seconds after which a release that nobody decided on belongs to a flow that is no more.
UNDECIDED_S = 86_400.0


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


def build_index(snapshot: Snapshot, settings: ChunkSettings = ChunkSettings(), anew: bool = False) -> IndexVersion:
    """The index version that holds exactly the snapshot's chunks; only what is new is split and embedded.

    The same snapshot again is a read. Another embedder or other settings give a table of its own, beside the old one,
    and so does `anew`, with everything embedded again.
    """
    from tqdm import tqdm

    from data import embedding, store
    from serving.engine.models import embedder_folder

    folder = str(embedder_folder())
    embedder = embedding.load(folder)

    def embed(texts: list[str]) -> np.ndarray:
        many = len(texts) > MOST_IN_PROCESS
        return embed_on_ray(folder, texts) if many and has_ray() else embedder.embed_passages(texts)

    every = ((document, section) for document in snapshots.documents(snapshot) for section in document.sections)
    return store.write(
        snapshot.assistant,
        tqdm(every, total=snapshot.sections, desc="index", unit="section", disable=None, mininterval=2),
        partial(chunking.split_section, settings=settings, count=embedder.count),
        embed,
        embedder.sha256,
        chunking.chunker_hash(settings),
        snapshot.id,
        anew,
    )


def repair(ledger: Ledger, live: Release) -> Release:
    """The live release with its index whole: one that is damaged is built anew from its snapshot, with the same id."""
    from data.store import IndexDamaged, open_index

    try:
        open_index(live.index).verify()
        return live
    except IndexDamaged as error:
        print(f"repair: {error}")
    snapshot = Snapshot.of(ledger.release_row(live.id)["snapshot"])
    built = build_index(snapshot, anew=True)
    try:
        repaired = live.moved(index=built)
    except ValueError as other:
        raise IndexDamaged(
            f"the index of {live.id} is damaged, and its snapshot {snapshot.id} gives another: re-index with the "
            "chunk settings it was made with, or roll back"
        ) from other
    ledger.relocate(repaired)
    return repaired


def stale_sections(sources: Sources, index: IndexVersion, previous: Snapshot | None = None) -> Staleness:
    """What changed in the sources since `index` was built, by hash of each section as it would be indexed now.

    Only files that changed since `previous` are read. A section under a new title or for other readers counts as
    changed, and every section as new when the index is damaged. Raises FileNotFoundError or ValueError when no
    document can be read: an unmounted share is a fault, not a deletion of everything.
    """
    from data import store

    snapshot = prepare(sources, previous)
    fingerprint = snapshots.fingerprint(snapshot)
    try:
        opened = store.open_index(index)
        opened.verify()
        before = {(where[0], where[1]): where[2:] for where in opened.places().values()}
    except store.IndexDamaged as error:
        print(f"index: {error}")
        before, fingerprint = {}, digest("damaged", fingerprint, index.table, index.version)
    now = {
        (document.id, section.heading): (section.hash, document.title, document.access, document.tenant)
        for document in snapshots.documents(snapshot)
        for section in document.sections
    }
    return Staleness(
        changed=tuple(sorted(place for place in now.keys() & before.keys() if now[place] != before[place])),
        added=tuple(sorted(now.keys() - before.keys())),
        deleted=tuple(sorted(before.keys() - now.keys())),
        fingerprint=fingerprint,
    )


class EmbedBatch:
    """Holds the embedder in one Ray actor; takes and gives blocks of rows."""

    def __init__(self, folder: str):
        from data import embedding

        self._embedder = embedding.load(folder)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        vectors = self._embedder.embed_passages([str(text) for text in batch["text"]])
        return {"row": batch["row"], "vector": vectors}


def embed_on_ray(folder: str, texts: list[str]) -> np.ndarray:
    """As Embedder.embed_passages, in one actor of Ray Data; float32 [len(texts), d] in the order of `texts`."""
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
    """Tombstone what earlier index versions hold of sections that `version` has not, before anything is gated.

    By section, not by chunk: text that was only cut in another way stays, or the live release would lose all of it.
    """
    from data.store import IndexDamaged, open_index

    places = open_index(version).places()
    there, gone = set(places.values()), set()
    releases = [ledger.release(accepted) for accepted in ledger.accepted_releases(version.assistant)[:KEPT_RELEASES]]
    for index in {release.index for release in releases}:
        try:
            gone |= {chunk for chunk, place in open_index(index).places().items() if place not in there}
        except IndexDamaged as error:  # nobody can retrieve from it either
            print(f"index: {error}")
    ledger.bury(version.assistant, gone - places.keys(), set(places))


def sweep(ledger: Ledger, version: IndexVersion) -> None:
    """Remove index versions and snapshots that no release can go back to: the accepted ones and undecided ones stay."""
    from data import store

    name = version.assistant
    with ExitStack() as held:
        try:
            held.enter_context(lease(DELETING, timeout_s=0))
        except TimeoutError as busy:
            print(f"index: {busy}; what nothing needs any more is removed after the next build")
            return
        rows = in_use(ledger, name)
        pinned = {Release.of(row["body"]).index for row in rows}
        store.sweep(version, pinned)
        kept = {version.snapshot, *(index.snapshot for index in pinned), *(row["snapshot"]["id"] for row in rows)}
        snapshots.sweep(settings().snapshots / name, kept)


def in_use(ledger: Ledger, name: str) -> list[dict]:
    """The rows of an assistant's releases that can be gone back to or may still be decided on: their files stay."""
    pending = ledger.pending_releases(name, time.time() - UNDECIDED_S)
    return [ledger.release_row(kept) for kept in {*ledger.accepted_releases(name)[:KEPT_RELEASES], *pending}]
