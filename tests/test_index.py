"""A snapshot into an index version, and staleness."""

import random
import zlib

import numpy as np
import pytest

import settings
from data import embedding, store
from data.records import ChunkSettings, Model, Release, Sources, as_json
from data.store import tables
from serving.engine import models
from tasks import index
from tasks.index import Staleness, build_index, repair, stale_sections
from tasks.prepare import prepare


class FakeEmbedder:
    """One number per word hash; counts what it embeds."""

    sha256, dimensions = "fake", 32

    def __init__(self):
        self.embedded = 0

    def count(self, text):
        return len(text.split())

    def embed_passages(self, texts):
        self.embedded += len(texts)
        rows = np.full((len(texts), 32), 0.01, np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.encode()) % 32] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def embedder(tmp_path, monkeypatch):
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    settings.settings.cache_clear()
    fake = FakeEmbedder()
    monkeypatch.setattr(embedding, "load", lambda path: fake)
    monkeypatch.setattr(models, "embedder_folder", lambda: tmp_path)
    yield fake
    settings.settings.cache_clear()


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(5):
        (folder / f"d{number}.md").write_text(f"# D{number}\n## One\nFact {number}.\n## Two\nOther fact {number}.\n")
    return folder


def build(docs, **knobs):
    sources = Sources("a", str(docs))
    return sources, build_index(prepare(sources), **knobs)


def test_every_section_is_indexed_once_and_building_again_embeds_nothing(docs, embedder):
    _, first = build(docs)
    assert (first.chunks, first.embedded, embedder.embedded) == (10, 10, 10)
    _, again = build(docs)
    assert (again.version, again.checksum, again.embedded, embedder.embedded) == (first.version, first.checksum, 0, 10)


def test_only_edited_sections_are_embedded_and_deleted_text_is_gone(docs, embedder):
    build(docs)
    (docs / "d0.md").write_text("# D0\n## One\nFact zero.\n## Two\nOther fact 0.\n")
    (docs / "d1.md").unlink()
    _, second = build(docs)
    texts = {chunk.text for chunk in store.open_index(second).chunks()}
    assert (second.chunks, second.embedded, embedder.embedded) == (8, 1, 11)
    assert "Fact zero." in texts
    assert not texts & {"Fact 0.", "Fact 1.", "Other fact 1."}


@pytest.mark.parametrize("seed", range(2))
def test_after_any_edits_the_snapshot_and_the_index_are_what_a_fresh_build_makes(docs, seed):
    draw, small = random.Random(seed), ChunkSettings(max_tokens=12, min_tokens=2)
    lines = [f"Line {number} says fact {number}, a few words long." for number in range(12)]
    grown, before = Sources("a", str(docs)), None
    for _ in range(4):
        for _ in range(draw.randint(1, 3)):
            path = docs / f"d{draw.randrange(4)}.md"
            if path.exists() and draw.random() < 0.3:
                path.unlink()
                continue
            parts = [f"## Part {n}\n" + "\n\n".join(draw.sample(lines, draw.randint(1, 5))) for n in range(3)]
            path.write_text("# A title\n" + "\n".join(draw.sample(parts, draw.randint(1, 3))) + "\n")
        before = prepare(grown, before)
        version = build_index(before, small)
        fresh = build_index(prepare(Sources("b", str(docs))), small)
        one, other = store.open_index(version), store.open_index(fresh)
        assert version.checksum == fresh.checksum
        assert one.places() == other.places()
        by_id = [sorted(index.chunks(), key=lambda chunk: chunk.id) for index in (one, other)]
        assert by_id[0] == by_id[1]
        one.verify()


def test_other_chunk_settings_build_beside_the_old_index(docs):
    _, first = build(docs)
    _, second = build(docs, settings=ChunkSettings(100, 12))
    assert first.table != second.table
    store.open_index(first).verify()


def test_staleness_names_exactly_what_changed_was_added_and_was_deleted(docs):
    sources, built = build(docs)
    fresh = stale_sections(sources, built)
    assert (bool(fresh), len(fresh)) == (False, 0)
    (docs / "d0.md").write_text("# D0\n## One\nFact zero.\n## Three\nNew.\n")
    (docs / "d1.md").unlink()
    (docs / "d2.md").write_text("# A new title\n## One\nFact 2.\n## Two\nOther fact 2.\n")
    (docs / "d3.md").write_text("# D3\r\n## One\r\nFact 3.  \r\n\r\n\r\n## Two\nOther fact 3.")
    stale = stale_sections(sources, built)
    assert stale.changed == (("d0.md", "One"), ("d2.md", "One"), ("d2.md", "Two"))
    assert stale.added == (("d0.md", "Three"),)
    assert stale.deleted == (("d0.md", "Two"), ("d1.md", "One"), ("d1.md", "Two"))
    assert len(stale) == 7
    assert stale.fingerprint != fresh.fingerprint
    _, rebuilt = build(docs)
    assert not stale_sections(sources, rebuilt)
    assert stale_sections(sources, rebuilt).fingerprint == stale.fingerprint


def test_sources_that_cannot_be_read_are_a_fault_and_not_a_deletion(docs):
    sources, built = build(docs)
    for file in docs.iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="no document could be read"):
        stale_sections(sources, built)
    for file in docs.iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError):
        stale_sections(sources, built)


def test_staleness_turns_into_json_and_back(docs):
    stale = Staleness(changed=(("a.md", "One"),))
    assert Staleness.of(as_json(stale)) == stale


def test_few_chunks_are_embedded_here_and_many_on_ray_when_it_runs(docs, embedder, monkeypatch):
    import ray

    given = []
    monkeypatch.setattr(index, "MOST_IN_PROCESS", 4)
    monkeypatch.setattr(
        index, "embed_on_ray", lambda folder, texts: given.append(len(texts)) or embedder.embed_passages(texts)
    )
    build(docs)
    assert given == []
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for number in range(5):
        (docs / f"n{number}.md").write_text(f"# N{number}\n## One\nNew fact {number}.\n")
    build(docs)
    assert given == [5]


def test_embedding_on_ray_keeps_the_order_of_the_texts(monkeypatch, embedder):
    import ray

    class Rows:
        """As much of a Ray dataset as is used: blocks of 4 rows, handed back last block first."""

        def __init__(self, rows):
            self.rows = rows

        def map_batches(self, actor, fn_constructor_args, **_):
            made, done = actor(*fn_constructor_args), []
            for start in range(0, len(self.rows), 4):
                part = self.rows[start : start + 4]
                out = made({key: np.array([row[key] for row in part]) for key in ("row", "text")})
                done = [{"row": r, "vector": v} for r, v in zip(out["row"], out["vector"], strict=True)] + done
            return Rows(done)

        def take_all(self):
            return self.rows

    monkeypatch.setattr(ray.data, "from_items", Rows)
    texts = [f"text {'long ' * (i % 5)}{i}" for i in range(11)]
    assert np.allclose(index.embed_on_ray("folder", texts), embedder.embed_passages(texts))


class Book:
    """As much of the ledger as a repair uses."""

    def __init__(self, snapshot):
        self.row, self.moved = {"snapshot": as_json(snapshot)}, []

    def release_row(self, release):
        return self.row

    def relocate(self, release):
        self.moved.append(release)


def damage(home):
    for file in (home / "lancedb").glob("*/data/*.lance"):
        file.unlink()
    tables.connect.cache_clear()
    store.open_index.cache_clear()


def test_a_damaged_index_is_built_anew_beside_and_the_release_keeps_its_id(docs, embedder, tmp_path):
    snapshot = prepare(Sources("a", str(docs)))
    live = Release("a", Model("m", "m.gguf", "openvino", "b"), build_index(snapshot))
    book = Book(snapshot)
    assert repair(book, live) is live
    damage(tmp_path / "home")
    assert len(stale_sections(Sources("a", str(docs)), live.index, snapshot).added) == 10
    repaired = repair(book, live)
    assert book.moved == [repaired]
    assert (repaired.id, repaired.index.table) == (live.id, f"{live.index.table}-2")
    store.open_index(repaired.index).verify()
    store.sweep(repaired.index, [])
    assert set(tables.connect(repaired.index.uri).table_names()) == {repaired.index.table}
    again = build_index(snapshot)
    assert (again.table, again.version, again.embedded) == (repaired.index.table, repaired.index.version, 0)


def test_a_build_over_a_damaged_table_goes_beside_it(docs, tmp_path):
    _, first = build(docs)
    damage(tmp_path / "home")
    (docs / "d0.md").write_text("# D0\n## One\nAnother fact.\n")
    _, second = build(docs)
    assert (second.table, second.embedded) == (f"{first.table}-2", 9)
    store.open_index(second).verify()
