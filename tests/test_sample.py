"""The sample corpus keeps the promises that its README and the benchmarks rely on."""

import json
from collections import Counter
from pathlib import Path

import pytest
from rapidfuzz import fuzz, process, utils

from data.formats import files, read, read_examples
from data.records import Example

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
# token_set_ratio from which two questions count as the same question in other words.
SAME = 90


def questions(name: str) -> list[Example]:
    found, refused = read_examples(str(SAMPLE / name))
    assert not refused
    return found


def sections(*folders: str) -> dict[tuple[str, str], str]:
    """(document, heading) -> text, a later folder laid over the earlier ones, whole documents at a time."""
    latest = {}
    for folder in folders:
        found = read(str(SAMPLE / folder))
        assert not found.quarantined and not found.aliases and not found.examples
        latest |= {document.id: document for document in found.documents}
    for gone in removed() if "edition2" in folders else []:
        del latest[gone]
    return {(id, section.heading): section.text for id, document in latest.items() for section in document.sections}


def removed() -> list[str]:
    return (SAMPLE / "edition2_removed.txt").read_text().split()


def documents(name_or_folder: str) -> set[str]:
    if name_or_folder.endswith(".jsonl"):
        return {example.document for example in questions(name_or_folder) if example.document}
    return {document.id for document in read(str(SAMPLE / name_or_folder)).documents}


def lost(examples: list[Example], texts: dict[tuple[str, str], str]) -> list[str]:
    """Questions whose first answer does not stand in one line of the section they name."""
    return [
        example.question
        for example in examples
        if example.answers
        and not any(
            example.answers[0].lower() in line.lower()
            for line in texts.get((example.document, example.section), "").split("\n")
        )
    ]


def alike(first: list[Example], second: list[Example]) -> list[tuple[str, str]]:
    """Pairs of questions, one from each list, that say the same."""
    one, other = [e.question for e in first], [e.question for e in second]
    scores = process.cdist(
        one, other, scorer=fuzz.token_set_ratio, processor=utils.default_process, score_cutoff=SAME, workers=1
    )
    return [(one[i], other[j]) for i, j in zip(*scores.nonzero(), strict=True)]


def test_there_are_ninety_documents_of_at_least_24_000_words():
    texts = sections("documents")
    assert len({document for document, _ in texts}) == 90
    assert sum(len(text.split()) for text in texts.values()) >= 24_000


def test_the_documents_come_in_five_formats_and_rows_make_one_document_each():
    suffixes = Counter(Path(name).suffix for name, _ in files(str(SAMPLE / "documents")))
    assert suffixes == {".md": 60, ".html": 15, ".txt": 12, ".jsonl": 2, ".csv": 1}
    assert sum("#" in document for document in documents("documents")) == 3


def test_360_training_pairs_come_from_fifty_documents():
    pairs = questions("examples.jsonl")
    assert len(pairs) == 360 and all(pair.answers and pair.section for pair in pairs)
    assert len(documents("examples.jsonl")) == 50


def test_each_of_the_other_forty_documents_has_six_golden_questions_and_two_without_an_answer():
    golden = questions("golden.jsonl")
    answered = Counter(example.document for example in golden if example.answers)
    unanswered = Counter(example.document for example in golden if not example.answers)
    assert len(answered) == 40 and set(answered.values()) == {6}
    assert unanswered.keys() == answered.keys() and set(unanswered.values()) == {2}


def test_training_and_golden_documents_share_nothing_and_leave_nothing_out():
    training, golden = documents("examples.jsonl"), documents("golden.jsonl")
    assert not training & golden
    assert training | golden == documents("documents")


def test_a_question_has_a_section_exactly_when_it_has_an_answer():
    assert all(bool(example.answers) == bool(example.section) for example in questions("golden.jsonl"))


@pytest.mark.parametrize("name", ["examples.jsonl", "golden.jsonl", "stream2.jsonl"])
def test_every_first_answer_stands_in_its_section(name):
    assert lost(questions(name), sections("documents")) == []


def test_every_first_answer_of_the_second_edition_stands_in_its_section():
    assert lost(questions("edition2_questions.jsonl"), sections("documents", "edition2")) == []


@pytest.mark.parametrize("name", ["examples.jsonl", "golden.jsonl"])
def test_an_answer_that_the_second_edition_changed_is_asked_again_with_the_new_answer(name):
    kept = [example for example in questions(name) if example.document not in removed()]
    again = {example.question for example in questions("edition2_questions.jsonl")}
    assert set(lost(kept, sections("documents", "edition2"))) <= again


def test_the_second_edition_changes_some_golden_documents_but_at_most_eight():
    changed = documents("edition2") & documents("documents")
    first, second = sections("documents"), sections("documents", "edition2")
    assert changed == {
        document for document, heading in first if first[document, heading] != second.get((document, heading))
    } - set(removed())
    assert 0 < len(changed & documents("golden.jsonl")) <= 8


def test_the_second_edition_adds_three_documents_and_asks_about_each():
    new = documents("edition2") - documents("documents")
    assert len(new) == 3
    assert new <= documents("edition2_questions.jsonl")


def test_what_the_second_edition_removes_was_a_training_document():
    assert removed() and set(removed()) <= documents("examples.jsonl") & documents("documents")


@pytest.mark.parametrize("name", ["examples.jsonl", "golden.jsonl", "edition2_questions.jsonl", "stream2.jsonl"])
def test_no_question_stands_twice_in_a_file(name):
    asked = Counter(utils.default_process(example.question) for example in questions(name))
    assert [question for question, times in asked.items() if times > 1] == []


@pytest.mark.parametrize("other", ["examples.jsonl", "stream2.jsonl"])
def test_no_golden_question_is_a_training_or_a_stream_question_in_other_words(other):
    assert alike(questions("golden.jsonl"), questions(other)) == []


def test_the_second_stream_has_new_topics_without_and_new_styles_with_an_answer():
    stream = questions("stream2.jsonl")
    styled = [example for example in stream if example.answers]
    assert len(stream) == 390 and len(styled) == 210
    assert {example.document for example in styled} <= documents("examples.jsonl")
    assert all(example.document is None for example in stream if not example.answers)


def test_every_follow_up_means_a_golden_question_about_the_document_it_was_asked_before():
    golden = {example.question: example for example in questions("golden.jsonl")}
    turns = [json.loads(line) for line in (SAMPLE / "followups.jsonl").read_text().splitlines()]
    assert len(turns) == 50
    for turn in turns:
        meant = golden[turn["means"]]
        assert (turn["document"], turn["section"]) == (meant.document, meant.section)
        assert golden[turn["before"]].document == meant.document
        assert turn["question"] not in golden and tuple(turn["answers"]) == meant.answers
