"""Sections into chunks."""

import pytest

from data.chunking import chunk_ids, chunker_hash, passage, split
from data.records import ChunkSettings, Document, Section


def words(text):
    return len(text.split())


def document(*texts, title="T"):
    return Document("d", title, tuple(Section("d", title, f"H{i}", text) for i, text in enumerate(texts)))


def cut(text, most=20, fewest=4):
    return [chunk.text for chunk in split(document(text), ChunkSettings(most, fewest), words)]


SENTENCES = " ".join(f"Sentence number {i} has six words." for i in range(20))


def test_a_short_section_is_one_chunk_and_every_section_with_text_has_one():
    chunks = split(document("One.", "Two is longer.", " "), ChunkSettings(), words)
    assert [(chunk.section, chunk.text) for chunk in chunks] == [("H0", "One."), ("H1", "Two is longer.")]
    assert chunks[0].section_hash == Section("d", "T", "H0", "One.").hash


def test_a_long_section_is_cut_at_sentence_ends_within_the_budget_and_loses_nothing():
    parts = cut(SENTENCES)
    assert all(words(part) <= 20 and part.endswith(".") for part in parts)
    assert " ".join(parts) == SENTENCES


def test_parts_of_a_section_are_of_about_equal_size():
    sizes = [words(part) for part in cut(SENTENCES, most=100)]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 6


def test_lines_of_code_or_lists_are_not_broken():
    lines = [f"- item {i} of the list" for i in range(10)]
    assert [line for part in cut("\n".join(lines)) for line in part.split("\n")] == lines


def test_a_sentence_over_the_budget_is_cut_between_words_and_a_word_between_characters():
    text = "word " * 55
    assert [words(part) for part in cut(text)] == [20, 20, 15]
    parts = [c.text for c in split(document("x" * 50), ChunkSettings(20, 4), len)]
    assert "".join(parts) == "x" * 50
    assert max(map(len, parts)) <= 20


def test_a_tail_under_the_minimum_joins_the_part_before():
    text = "word " * 19 + "end. " + "Tail."
    assert [words(part) for part in cut(text, most=20, fewest=4)] == [21]


def test_chunk_ids_follow_content_so_an_edit_changes_only_its_own():
    before = split(document("One.", "Two.", "Three."), ChunkSettings(), words)
    after = split(document("One.", "Two, edited.", "Three."), ChunkSettings(), words)
    assert [a.id == b.id for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_a_new_title_makes_new_chunks_because_it_is_shown():
    one, two = (split(document("Text.", title=title), ChunkSettings(), words)[0].id for title in ("Old", "New"))
    assert one != two


def test_equal_chunks_have_different_ids():
    ids = chunk_ids([("d", "t", "s", "x"), ("d", "t", "s", "x")])
    assert ids[0] != ids[1]
    assert ids == chunk_ids([("d", "t", "s", "x"), ("d", "t", "s", "x")])


def test_the_chunker_hash_changes_with_the_settings():
    assert chunker_hash(ChunkSettings()) == chunker_hash(ChunkSettings(200, 12)) != chunker_hash(ChunkSettings(100, 12))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="max_tokens"):
        cut("text", most=4, fewest=4)


def test_a_passage_leaves_out_what_is_empty():
    assert (passage("T", "", "x"), passage("T", "S", "x")) == ("T\nx", "T\nS\nx")
