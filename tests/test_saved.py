"""Datasets saved by the Hugging Face library into documents and questions."""

import pytest
from datasets import Dataset, DatasetDict

from data import saved
from data.formats import read
from data.sections import Unreadable
from data.sources import listed
from tests.documents import put

QA = [
    {"id": "1", "title": "Oxygen", "context": "A gas.", "question": "What is it?", "answers": {"text": ["a gas"]}},
    {"id": "2", "title": "Oxygen", "context": "Found in 1774.", "question": "When?", "answers": {"text": ["1774"]}},
    {"id": "3", "title": "Oxygen", "context": "A gas.", "question": "Who sold it?", "answers": {"text": []}},
]


def save(rows, folder):
    Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def test_a_saved_dataset_is_one_file_among_the_others_and_its_bookkeeping_is_not_reported(tmp_path):
    rows = [{"id": "e", "section": s, "text": f"QB-{s} means {s}."} for s in ("one", "two")]
    save(rows, tmp_path / "sets" / "errors")
    put(tmp_path, sets__errors__notes_DOT_md="# Notes\nread me", other__state_DOT_json="{}")
    assert [file.name for file in listed(str(tmp_path))] == [
        "other/state.json",
        "sets/errors",
        "sets/errors/notes.md",
    ]
    found = read(str(tmp_path))
    assert [document.id for document in found.documents] == ["sets/errors#e", "sets/errors/notes.md"]
    assert [section.heading for section in found.documents[0].sections] == ["one", "two"]
    assert [row.file for row in found.quarantined] == ["other/state.json"]


def test_the_splits_of_a_saved_dataset_are_files_and_one_split_alone_has_the_name_of_its_folder(tmp_path):
    splits = {name: Dataset.from_list([{"text": text}]) for name, text in (("train", "one"), ("test", "two"))}
    DatasetDict(splits).save_to_disk(str(tmp_path / "d"))
    assert [file.name for file in listed(str(tmp_path / "d"))] == ["test", "train"]
    assert [file.name for file in listed(str(tmp_path / "d" / "train"))] == ["train"]
    assert {d.id: d.sections[0].text for d in read(str(tmp_path / "d")).documents} == {
        "test#1": "two",
        "train#1": "one",
    }


def test_a_saved_dataset_has_another_identity_when_it_was_saved_with_other_rows(tmp_path):
    first, second, third = (listed(str(save([{"text": text}], tmp_path / text))) for text in ("one", "two", "three"))
    assert len({file.identity for (file,) in (first, second, third)}) == 3
    assert first == listed(str(tmp_path / "one"))


def test_questions_with_their_context_give_documents_and_examples_bound_to_them(tmp_path):
    found = saved.read("qa", save(QA, tmp_path / "qa"), 1 << 20)
    (document,) = found.documents
    assert (document.id, document.title) == ("qa#Oxygen", "Oxygen")
    assert [(s.heading, s.text) for s in document.sections] == [
        ("Paragraph 1", "A gas."),
        ("Paragraph 2", "Found in 1774."),
    ]
    assert [(e.question, e.answers, e.document, e.section) for e in found.examples] == [
        ("What is it?", ("a gas",), "qa#Oxygen", "Paragraph 1"),
        ("When?", ("1774",), "qa#Oxygen", "Paragraph 2"),
        ("Who sold it?", (), "qa#Oxygen", "Paragraph 1"),
    ]
    assert not found.quarantined


def test_a_context_without_a_title_is_a_document_of_its_own(tmp_path):
    rows = [{name: row[name] for name in ("context", "question", "answers")} for row in QA]
    found = saved.read("qa", save(rows, tmp_path / "qa"), 1 << 20)
    assert [(d.id, d.title, d.sections[0].text) for d in found.documents] == [
        ("qa#1", "Qa", "A gas."),
        ("qa#2", "Qa", "Found in 1774."),
    ]
    assert [(e.document, e.section) for e in found.examples] == [("qa#1", None), ("qa#2", None), ("qa#1", None)]


def test_a_context_that_comes_again_under_another_label_does_not_become_public(tmp_path):
    rows = [QA[0] | {"access": access} for access in ("", "hr")]
    found = saved.read("qa", save(rows, tmp_path / "qa"), 1 << 20)
    assert not found.documents
    assert "'hr'" in found.quarantined[0].reason


def test_a_dataset_without_text_or_over_the_limit_is_refused(tmp_path):
    folder = save([{"label": 1}], tmp_path / "labels")
    with pytest.raises(Unreadable, match=r"no column `text`.*label"):
        saved.read("labels", folder, 1 << 20)
    with pytest.raises(Unreadable, match="over the limit"):
        saved.read("labels", folder, 10)
