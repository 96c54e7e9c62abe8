"""Chunks, vectors and full text in immutable versions."""

import threading
import zlib
from dataclasses import replace

import numpy as np
import pytest

import settings
from data import store
from data.chunking import chunk_ids
from data.records import Chunk, Document, Filter, Retrieval, Section
from data.store import build, nearest, tables


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    settings.settings.cache_clear()
    yield tmp_path
    settings.settings.cache_clear()


class Embed:
    """Hashed words as a unit vector of 64 numbers; counts what it was asked for."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                row[zlib.crc32(word.strip("?.,").encode()) % 64] += 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sections(*texts, title="Title", **about):
    """A document of one section for each text, named by its first word."""
    made = []
    for text in texts:
        name = f"{text.split()[0]}.md"
        section = Section(name, title, "Heading", text)
        made.append((Document(name, title, (section,), **about), section))
    return made


def split(document, section):
    content = (document.id, document.title, section.heading, section.text, document.access, document.tenant)
    (chunk_id,) = chunk_ids([content])
    chunk = Chunk(chunk_id, document.id, document.title, section.heading, section.hash, section.text)
    about = {name: getattr(document, name) for name in ("modified", "language", "access", "tenant")}
    return [replace(chunk, **about)]


TEXTS = ["trash keeps files 30 days", "invoice is due in May", "port 6514 carries syslog", "pool keys are wrapped"]


def write(*texts, embed=None, embedder="e1", chunker="c1", assistant="a"):
    return store.write(assistant, sections(*texts), split, embed or Embed(), embedder, chunker, "snap")


def found(version, question, exclude=frozenset(), **settings_):
    hits = store.open_index(version).search(question, Embed()([question])[0], Retrieval(**settings_), exclude)
    return [hit.chunk.text for hit in hits]


def test_only_new_chunks_are_embedded_and_gone_ones_leave_in_the_same_version():
    first, embed = write(*TEXTS), Embed()
    second = write(*TEXTS[1:], "a new text", embed=embed)
    assert (first.chunks, first.embedded, second.chunks, second.embedded) == (4, 4, 4, 1)
    assert embed.texts == ["Title\nHeading\na new text"]
    assert TEXTS[0] not in {chunk.text for chunk in store.open_index(second).chunks()}


def test_a_version_stays_as_it_was_when_a_later_one_is_written():
    first = write(*TEXTS)
    second = write(*TEXTS[1:])
    assert found(first, "trash files")[0] == TEXTS[0]
    assert TEXTS[0] not in found(second, "trash files")
    store.open_index(first).verify()
    store.open_index(second).verify()


def test_writing_the_same_again_is_a_read():
    first, embed = write(*TEXTS), Embed()
    again = write(*reversed(TEXTS), embed=embed)
    assert (again.version, again.checksum, again.embedded, embed.texts) == (first.version, first.checksum, 0, [])


def test_the_checksum_names_content_not_history():
    write(*TEXTS, "later removed")
    removed = write(*TEXTS)
    direct = write(*TEXTS, assistant="other")
    assert removed.checksum == direct.checksum != write(*TEXTS[1:]).checksum
    assert direct.checksum != write(*TEXTS, embedder="e2").checksum


def test_equal_contents_rank_equally_whatever_came_before():
    write(*TEXTS, *(f"files of days {i}" for i in range(30)))
    removed, direct = write(*TEXTS), write(*TEXTS, assistant="other")
    for question in ("days files trash", "due port"):
        vector = Embed()([question])[0]
        one, other = (store.open_index(version).search(question, vector) for version in (removed, direct))
        assert [(hit.chunk.text, hit.score) for hit in one] == [(hit.chunk.text, hit.score) for hit in other]


def test_search_joins_words_and_vectors():
    index, vector = store.open_index(write(*TEXTS)), Embed()(["invoice due May"])[0]
    hits = index.search("QB syslog", vector, Retrieval(top_k=2, candidates=1))
    assert {hit.chunk.text for hit in hits} == {TEXTS[1], TEXTS[2]}
    stored = {chunk.id: index.vectors()[chunk.id] @ vector for chunk in index.chunks()}
    assert {hit.chunk.id: hit.similarity for hit in hits} == {
        hit.chunk.id: pytest.approx(float(stored[hit.chunk.id]), abs=1e-6) for hit in hits
    }


@pytest.mark.parametrize(("weight", "first"), [(0.9, TEXTS[1]), (0.1, TEXTS[2])])
def test_the_vector_weight_says_whose_best_comes_first(weight, first):
    index = store.open_index(write(*TEXTS))
    hits = index.search("syslog port", Embed()(["invoice due May"])[0], Retrieval(vector_weight=weight))
    assert hits[0].chunk.text == first
    assert 0.9 <= hits[0].score <= 1


def test_a_weight_beyond_its_bounds_is_refused():
    with pytest.raises(ValueError, match=r"vector_weight is 1\.5"):
        Retrieval(vector_weight=1.5)


def test_an_excluded_chunk_is_never_found_and_does_not_take_a_place():
    version = write(*(f"trash keeps files {i} days" for i in range(40)))
    index = store.open_index(version)
    kept = sorted(index.ids())[:3]
    texts = found(version, "trash files days", frozenset(index.ids() - set(kept)), top_k=5, candidates=5)
    assert sorted(texts) == sorted(index.chunk(i).text for i in kept)


@pytest.mark.parametrize("question", ["", "   ", "the of?", "x' OR 1=1 --", '"+-(unbalanced', "\u0000", "日本語 🙂"])
def test_any_question_can_be_searched(question):
    version = write(*TEXTS)
    hits = store.open_index(version).search(question, Embed()(["pool keys"])[0])
    assert hits[0].chunk.text == TEXTS[3]


def test_a_chunk_is_found_by_id_and_an_unknown_id_is_none():
    index = store.open_index(write(*TEXTS))
    (wanted,) = split(*sections(*TEXTS)[0])
    assert index.chunk(wanted.id) == wanted
    assert index.chunk("x' or '1'='1") is None
    assert index.places()[wanted.id] == (wanted.document, "Heading", wanted.section_hash, "Title", "", "")
    assert index.vectors().keys() == index.ids()


def test_another_embedder_or_chunker_gets_a_table_beside_the_old_one():
    first = write(*TEXTS)
    others = [write(*TEXTS, embedder="e2"), write(*TEXTS, chunker="c2")]
    assert len({first.table, *(other.table for other in others)}) == 3
    store.open_index(first).verify()


def test_an_index_of_the_schema_before_answers_and_the_next_build_takes_a_table_beside_it(monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(tables, "SCHEMA", "store-2")
        before.setattr(build, "schema", lambda *given: tables.schema(*given).empty_table().drop_columns("parts").schema)
        before.setattr(build, "rows", lambda *given: tables.rows(*given).drop_columns("parts"))
        old = write(*TEXTS)
    store.open_index(old).verify()
    assert found(old, "How long does trash keep files?")[0] == TEXTS[0]
    assert write(*TEXTS).table != old.table


def test_a_table_made_by_another_embedder_is_refused_before_the_write(monkeypatch):
    first, embed = write(*TEXTS), Embed()
    monkeypatch.setattr(build, "table_name", lambda *_: first.table)
    with pytest.raises(ValueError, match="made with embedder e1, not e2"):
        write("new", embedder="e2", embed=embed)
    assert embed.texts == []
    store.open_index(first).verify()


def test_assistants_whose_names_look_alike_in_a_table_name_do_not_share_one():
    assert store.table_name("a/b", "e", "c") != store.table_name("a_b", "e", "c")


@pytest.mark.parametrize(
    "embed",
    [
        lambda texts: np.full((len(texts), 64), np.nan, np.float32),
        lambda texts: np.ones((len(texts), 64), np.float32),
        lambda texts: np.ones((1, 64), np.float32) / 8,
    ],
    ids=["not finite", "not unit", "too few"],
)
def test_wrong_vectors_are_refused_and_nothing_is_written(embed):
    first = write(*TEXTS)
    with pytest.raises(ValueError, match="not of length 1"):
        write(*TEXTS, "two", "more", embed=embed)
    assert write(*TEXTS).version == first.version


def test_no_chunks_and_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="0 chunks"):
        write()
    with pytest.raises(ValueError, match="ids are unique"):
        store.write("a", sections("x y", "x y"), split, Embed(), "e", "c", "s")


def test_four_writers_at_once_leave_no_chunk_twice_and_lose_no_version():
    versions, failed = [], []

    def work(number):
        try:
            versions.append(write(*TEXTS, *(f"text {i} of all" for i in range(20 + number))))
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for version in versions:
        index = store.open_index(version)
        index.verify()
        assert len(index.chunks()) == len(index.ids()) == version.chunks


def cold():
    """As a process that has just started."""
    tables.connect.cache_clear()
    store.open_index.cache_clear()


def test_a_newest_manifest_cut_short_is_set_aside_and_the_good_version_served(home):
    good, bad = write(*TEXTS), write(*TEXTS[1:])
    newest = min((home / "lancedb").glob("*/_versions/*.manifest"))  # LanceDB counts names down
    newest.write_bytes(newest.read_bytes()[:50])
    cold()
    with pytest.raises(store.IndexDamaged, match=f"version {bad.version}"):
        store.open_index(bad)
    assert found(good, "trash files")[0] == TEXTS[0]
    store.open_index(good).verify()
    store.open_index(write(*TEXTS[2:])).verify()


def test_a_deleted_data_file_is_detected(home):
    version = write(*TEXTS)
    for file in (home / "lancedb").glob("*/data/*.lance"):
        file.unlink()
    cold()
    with pytest.raises(store.IndexDamaged, match="cannot read"):
        store.open_index(version).verify()


def test_an_index_that_holds_other_chunks_than_its_record_says_is_not_opened():
    version = write(*TEXTS)
    with pytest.raises(store.IndexDamaged, match="recorded is"):
        store.open_index(replace(version, checksum="0" * 64))


def test_verify_finds_a_text_that_was_changed_under_its_id():
    def forged(document, section):
        return [replace(chunk, text="forged text") for chunk in split(document, section)]

    version = store.write("a", sections(*TEXTS), forged, Embed(), "e", "c", "s")
    with pytest.raises(store.IndexDamaged, match="does not match its id"):
        store.open_index(version).verify()


def test_many_small_writes_are_merged_into_few_fragments_and_old_versions_stay(monkeypatch):
    monkeypatch.setattr(build, "MOST_FRAGMENTS", 3)
    monkeypatch.setattr(build, "MOST_SEGMENTS", 2)
    versions = [write(*TEXTS, *(f"text {i} more" for i in range(number))) for number in range(6)]
    for version in versions:
        index = store.open_index(version)
        index.verify()
        assert len(index.ids()) == version.chunks
    assert index._table.stats()["fragment_stats"]["num_fragments"] <= 4


def test_an_open_index_is_kept_for_the_next_question():
    version = write(*TEXTS)
    assert store.open_index(version) is store.open_index(version)


def test_a_sweep_keeps_what_is_pinned_and_the_newest_and_removes_the_rest(home, monkeypatch):
    versions = [write(*TEXTS, f"text {number} more") for number in range(6)]
    monkeypatch.setattr(store.versions, "NEWEST_KEPT", 2)
    size = sum(file.stat().st_size for file in home.rglob("*.*"))
    assert store.sweep(versions[-1], [versions[1]]) > 6
    cold()
    for kept in (versions[1], versions[-1]):
        store.open_index(kept).verify()
    with pytest.raises(store.IndexDamaged, match="cannot open"):
        store.open_index(versions[3])
    assert sum(file.stat().st_size for file in home.rglob("*.*")) < size / 2
    write(*TEXTS)


def lines(document, section):
    """A chunk for each line."""
    parts = [
        replace(split(document, replace(section, text=text))[0], part=n)
        for n, text in enumerate(section.text.split("\n"))
    ]
    return [replace(chunk, section_hash=section.hash) for chunk in parts]


def edition(*texts, embed=None, other="one more page"):
    pages = sections("\n".join(texts)) + sections(other)
    return store.write("a", pages, lines, embed or Embed(), "e1", "c1", "snap")


@pytest.mark.parametrize(
    ("texts", "embedded"), [(["page one", "page 2", "page three"], 1), (["page one", "page three"], 0)]
)
def test_a_chunk_that_an_edit_of_its_section_leaves_as_it_is_stays_through_later_editions(texts, embedded):
    edition("page one", "page two", "page three")
    edited = edition(*texts)
    assert edited.embedded == embedded
    for version in (edited, edition(*texts, other="one other page")):
        index = store.open_index(version)
        kept = [chunk for chunk in index.chunks() if chunk.document == "page.md"]
        assert {chunk.section_hash for chunk in kept} == {sections("\n".join(texts))[0][1].hash}
        assert [chunk.text for chunk in index.section(kept[0])] == texts


def test_a_killed_edit_that_is_taken_back_loses_no_chunk(monkeypatch):
    texts = ("page one", "page two", "page three")
    edition(*texts)
    monkeypatch.setattr(build._Draft, "drop_gone", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edition("page one", "page 2", "page three")
    monkeypatch.undo()
    again = store.open_index(edition(*texts))
    assert {chunk.text for chunk in again.chunks()} == {*texts, "one more page"}


def test_text_that_only_moved_is_not_embedded_again():
    write(*TEXTS)
    embed, moved = Embed(), sections(*TEXTS)
    renamed = [
        (replace(document, id="new.md", sections=(section,)), section)
        for document, section in ((d, replace(s, document="new.md")) for d, s in moved[:1])
    ]
    version = store.write("a", [*renamed, *moved[1:]], split, embed, "e1", "c1", "snap")
    assert (embed.texts, version.embedded, version.chunks) == ([], 0, 4)
    assert found(version, "trash files")[0] == TEXTS[0]


def test_a_build_that_was_cut_short_goes_on_where_it_stopped(monkeypatch):
    monkeypatch.setattr(build, "BATCH", 2)
    first, embed = Embed(), Embed()

    def failing(texts):
        if first.texts:
            raise RuntimeError("killed")
        return first(texts)

    with pytest.raises(RuntimeError, match="killed"):
        write(*TEXTS, embed=failing)
    version = write(*TEXTS, embed=embed)
    assert (len(first.texts), len(embed.texts), version.chunks) == (2, 2, 4)
    store.open_index(version).verify()


def labelled(**about):
    every = [*sections("public text of all"), *sections("secret text of some", **about)]
    return store.open_index(store.write("a", every, split, Embed(), "e1", "c1", "snap"))


@pytest.mark.parametrize("about", [{"access": "hr"}, {"tenant": "acme"}])
def test_labelled_text_is_found_only_by_who_holds_the_label(about):
    index, vector = labelled(**about), Embed()(["secret text of some"])[0]

    def seen(**held):
        return {hit.chunk.text for hit in index.search("secret text", vector, allowed=Filter(**held))}

    holder = {"tenant": "acme"} if "tenant" in about else {"labels": ("hr",)}
    assert "secret text of some" in seen(**holder)
    for other in ({}, {"tenant": "other"}, {"labels": ("HR", "hr' OR '1'='1", "%", "*")}, {"tenant": "' OR 1=1 --"}):
        assert seen(**other) == {"public text of all"}


def test_a_search_may_be_narrowed_by_document_language_and_time():
    every = [
        *sections("alpha text here", language="en", modified="2024-01-01T00:00:00Z"),
        *sections("beta text here", language="de", modified="2026-01-01T00:00:00Z"),
    ]
    index = store.open_index(store.write("a", every, split, Embed(), "e1", "c1", "snap"))
    vector = Embed()(["text here"])[0]
    for narrowed in ({"documents": ("beta.md",)}, {"languages": ("de",)}, {"modified_after": "2025-06-01T00:00:00Z"}):
        (hit,) = index.search("text", vector, allowed=Filter(**narrowed))
        assert hit.chunk.text == "beta text here"


def test_above_its_size_a_table_gets_a_vector_index_that_finds_what_exact_search_finds(monkeypatch):
    monkeypatch.setattr(nearest, "MOST_EXACT", 300)
    monkeypatch.setattr(nearest, "ROWS_A_PARTITION", 64)
    texts = [f"word{i % 37} of{i % 11} number{i}" for i in range(600)]
    version = write(*texts)
    assert version.nearest is not None and version.nearest.recall >= nearest.LEAST_RECALL
    grown = write(*texts, "a late addition")
    assert grown.nearest is not None
    assert found(grown, "a late addition")[0] == "a late addition"
    assert write(*TEXTS).nearest is None


def test_search_stays_exact_when_no_vector_index_is_good_enough(monkeypatch):
    monkeypatch.setattr(nearest, "MOST_EXACT", 300)
    monkeypatch.setattr(nearest, "_recall", lambda *_: 0.5)
    version = write(*(f"word{i % 37} of{i % 11} number{i}" for i in range(400)))
    assert version.nearest is None
    assert found(version, "number17 word17 of6", top_k=1) == ["word17 of6 number17"]
