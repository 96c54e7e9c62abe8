"""Sections into chunks."""

import re
from itertools import pairwise

import pytest

from data.chunking import STRATEGIES, chunk_ids, chunker_hash, passage, split, split_section
from data.fences import stretches
from data.records import ChunkSettings, Document, Section


def words(text):
    return len(text.split())


def document(*texts, title="T", **labels):
    sections = tuple(Section("d", title, f"H{i}", text, page=i + 1) for i, text in enumerate(texts))
    return Document("d", title, sections, **labels)


def cut(text, most=20, fewest=4, **settings):
    return [chunk.text for chunk in split(document(text), ChunkSettings(most, fewest, **settings), words)]


def code(*lines, language="py"):
    return "\n".join([f"```{language}", *lines, "```"])


SENTENCES = " ".join(f"Sentence number {i} has six words." for i in range(20))
ROWS = [f"name {i} | value {i}" for i in range(12)]
TABLE = "\n".join(["Name | Value", *ROWS])


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


def test_lines_of_lists_are_not_broken():
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


def test_code_that_fits_is_whole_and_starts_the_next_chunk_rather_than_being_cut():
    block = code("first  line of code", "", "  second line of code", "third one here")
    parts = cut(f"{SENTENCES}\n\n{block}\n\nAfter it.")
    assert sum(block in part for part in parts) == 1
    assert all(part.count("```") % 2 == 0 for part in parts)


def test_a_line_that_introduces_code_stays_with_it():
    block = code(*(f"line {i} of it" for i in range(4)))
    parts = cut(f"{SENTENCES[:100]}.\nFor example:\n{block}")
    assert f"For example:\n{block}" in parts
    block = code("ten words of code", "that do fit in one chunk")
    assert cut(f"This is the way:\n{block}\nThat was it.", 18, 3) == [f"This is the way:\n{block}", "That was it."]


def test_code_over_the_budget_is_cut_at_empty_lines_and_each_part_is_fenced_again():
    functions = [f"def f{i}():\n    a  = {i}\n    return a" for i in range(8)]
    parts = cut("Intro here now.\n" + code("\n\n".join(functions)))
    assert len(parts) > 2
    found = []
    for part in parts:
        (block,) = [text for is_code, text in stretches(part) if is_code]
        assert block.startswith("```py\n") and block.rstrip().endswith("\n```")
        found += block.strip().removeprefix("```py\n").removesuffix("\n```").split("\n\n")
    assert found == functions
    assert all(words(part) <= 20 for part in parts)


def test_code_without_empty_lines_is_cut_at_line_ends_and_keeps_its_indentation():
    lines = [f"    x{i}  = {i}" for i in range(30)]
    parts = cut(code(*lines))
    assert [line for part in parts for line in part.split("\n") if "```" not in line] == lines


def test_a_longer_fence_is_repeated_as_it_is():
    lines = ["```", "inner words here", "```"] * 10
    parts = cut("````md\n" + "\n".join(lines) + "\n````")
    assert len(parts) > 1
    assert all(part.startswith("````md\n") and part.endswith("\n````") for part in parts)


def test_a_table_that_fits_is_whole():
    table = "\n".join(["Name | Value", "one | 1", "two | 2"])
    parts = cut(f"{SENTENCES[:160]}.\n{table}\n{SENTENCES[:100]}.")
    assert sum(table in part for part in parts) == 1


def test_a_table_over_the_budget_repeats_its_header_row_in_each_part():
    parts = cut(f"Prices are below.\n\n{TABLE}\n\nDone with it.")
    tables = [re.search(r"Name \| Value\n(?:name.*\n?)+", part)[0].strip().split("\n") for part in parts]
    assert len(tables) > 2
    assert [row for table in tables for row in table[1:]] == ROWS
    assert all(table.count("Name | Value") == 1 for table in tables)
    assert all(words(part) < 20 + 4 for part in parts)


def test_a_header_that_fills_the_budget_is_not_repeated():
    header = " | ".join(f"column {i}" for i in range(5))
    parts = cut(f"{header}\n" + "\n".join(ROWS))
    assert sum("column 0" in part for part in parts) == 1


def test_windows_overlap_by_whole_sentences_and_lose_nothing():
    parts = cut(SENTENCES, most=20, strategy="window", overlap=6)
    sentences = [part.split(". ") for part in parts]
    for before, after in pairwise(sentences):
        assert before[-1].strip(".") == after[0].strip(".")
    assert {s.strip(".") for part in sentences for s in part} == {s.strip(".") for s in SENTENCES.split(". ")}
    assert all(words(part) <= 20 for part in parts)


def test_windows_overlap_inside_a_sentence_that_has_no_end():
    parts = cut(" ".join(f"w{i}" for i in range(60)), strategy="window", overlap=5)
    assert all(before.split()[-5:] == after.split()[:5] for before, after in pairwise(parts))
    assert parts[-1].endswith("w59")


def test_windows_without_overlap_join_to_the_text_and_a_crumb_at_the_end_joins_the_last():
    text = " ".join(SENTENCES.split(". ")[:9]).replace(" words Sentence", " words. Sentence") + ". Last one."
    parts = cut(text, most=18, strategy="window")
    assert " ".join(parts) == text
    assert [words(part) for part in parts] == [18, 18, 20]


def test_a_window_keeps_the_budget_before_a_long_sentence():
    text = "One two three. Four five six. " + "Seven " + "word " * 17 + "end. " + SENTENCES
    assert all(words(part) <= 20 for part in cut(text, strategy="window", overlap=6))


def test_sentences_are_grouped_until_they_make_the_minimum():
    sizes = [words(part) for part in cut("One. Two. " + SENTENCES, most=40, fewest=8, strategy="sentence")]
    assert sizes == [8] + [12] * 8 + [18]


def test_the_sentence_strategy_keeps_code_whole():
    block = code("a b c d e", "", "f g h i j")
    assert any(block in part for part in cut(f"{SENTENCES}\n{block}\n{SENTENCES}", strategy="sentence"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_keeps_every_word_and_the_budget(strategy):
    text = f"{SENTENCES}\n\n{TABLE}\n\n{code(*(f'x{i} = {i}' for i in range(40)))}\n{'word ' * 70}\n"
    parts = cut(text, strategy=strategy)
    assert set(text.split()) <= {word for part in parts for word in part.split()}
    assert all(words(part) < 20 + 4 for part in parts)


def test_chunks_carry_the_labels_of_their_document_and_their_part_and_page():
    labels = {"modified": "2024-01-01T00:00:00Z", "language": "en", "access": "hr", "tenant": "acme"}
    chunks = split(document("One.", SENTENCES, **labels), ChunkSettings(60, 4), words)
    assert [(chunk.page, chunk.part) for chunk in chunks] == [(1, 0), (2, 0), (2, 1)]
    for name, value in labels.items():
        assert {getattr(chunk, name) for chunk in chunks} == {value}


def test_a_document_is_the_chunks_of_its_sections_one_after_the_other():
    whole, settings = document("One.", SENTENCES, "One.", SENTENCES), ChunkSettings(20, 4)
    by_section = [chunk for section in whole.sections for chunk in split_section(whole, section, settings, words)]
    assert split(whole, settings, words) == by_section
    assert len({chunk.id for chunk in by_section}) == len(by_section)


def test_chunk_ids_follow_content_so_an_edit_changes_only_its_own():
    before = split(document("One.", "Two.", "Three."), ChunkSettings(), words)
    after = split(document("One.", "Two, edited.", "Three."), ChunkSettings(), words)
    assert [a.id == b.id for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_a_new_title_makes_new_chunks_because_it_is_shown():
    one, two = (split(document("Text.", title=title), ChunkSettings(), words)[0].id for title in ("Old", "New"))
    assert one != two


def test_access_and_tenant_are_part_of_an_id_only_where_they_are_set():
    plain = chunk_ids([("d", "t", "s", "x")])
    assert plain == chunk_ids([("d", "t", "s", "x", "", "")]) == ["c1edb0d4ea7cba76ae93dffd22242d4f"]
    marked = [chunk_ids([("d", "t", "s", "x", *labels)])[0] for labels in (("hr", ""), ("", "hr"), ("hr", "hr"))]
    assert len({*plain, *marked}) == 4
    assert (
        split(document("x", access="hr"), ChunkSettings(), words)[0].id
        != split(document("x"), ChunkSettings(), words)[0].id
    )


def test_equal_chunks_have_different_ids():
    ids = chunk_ids([("d", "t", "s", "x"), ("d", "t", "s", "x")])
    assert ids[0] != ids[1]
    assert ids == chunk_ids([("d", "t", "s", "x"), ("d", "t", "s", "x", "", "")])


def test_the_chunker_hash_changes_with_the_settings():
    others = (ChunkSettings(100, 12), ChunkSettings(strategy="window"), ChunkSettings(strategy="window", overlap=20))
    assert chunker_hash(ChunkSettings()) == chunker_hash(ChunkSettings(200, 12))
    assert len({chunker_hash(settings) for settings in (ChunkSettings(), *others)}) == 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (ChunkSettings(4, 4), "set max_tokens to 8 or more"),
        (ChunkSettings(20, 20), "min_tokens below it"),
        (ChunkSettings(strategy="pages"), "one of structure, window, sentence"),
        (ChunkSettings(overlap=10), "set it to 0, or strategy to 'window'"),
        (ChunkSettings(20, 4, "window", 11), "up to half of max_tokens"),
        (ChunkSettings(20, 4, "window", -1), "up to half of max_tokens"),
    ],
)
def test_impossible_settings_are_refused_with_what_to_set_instead(settings, says):
    with pytest.raises(ValueError, match=says):
        split(document("text"), settings, words)


def test_a_passage_leaves_out_what_is_empty():
    assert (passage("T", "", "x"), passage("T", "S", "x")) == ("T\nx", "T\nS\nx")
