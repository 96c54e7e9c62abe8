"""Rows into documents: their labels and pages. What they have in common with other files is in test_formats."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.rows import read_csv, read_json, read_jsonl, read_parquet

ROW = {"id": "e", "text": "One.", "page": 2, "modified": "2024-01-31", "language": "de-AT", "access": "hr", "tenant": 7}


def jsonl(*rows):
    return read_jsonl("r.jsonl", "\n".join(map(json.dumps, rows)).encode())


def csv_of(text):
    return read_csv("r.csv", text.encode())


def parquet(*rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return read_parquet("r.parquet", buffer.getvalue())


@pytest.mark.parametrize(
    "read", [jsonl, parquet, lambda row: csv_of(",".join(row) + "\n" + ",".join(map(str, row.values())))]
)
def test_labels_and_pages_are_read_from_jsonl_csv_and_parquet(read):
    (document,) = read(ROW).documents
    assert (document.modified, document.language, document.access, document.tenant) == (
        "2024-01-31T00:00:00Z", "de", "hr", "7"
    )  # fmt: skip
    assert document.sections[0].page == 2


@pytest.mark.parametrize(
    "second", [{"access": "public"}, {"access": ""}, {"access": None}, {}, {"access": "hr", "tenant": "b"}]
)
def test_rows_of_one_document_that_disagree_are_refused_and_the_rest_is_read(second):
    found = jsonl(
        {"id": "e", "text": "One.", "access": "hr"}, {"id": "e", "text": "Two."} | second, {"id": "f", "text": "x"}
    )
    assert [document.id for document in found.documents] == ["r.jsonl#f"]
    (row,) = found.quarantined
    assert row.place == "line 1"
    assert "document 'e'" in row.reason and "is said to be" in row.reason


def test_a_label_in_a_row_without_text_still_counts():
    found = jsonl({"id": "e", "access": "hr"}, {"id": "e", "text": "secret"})
    assert found.documents == []
    assert len(found.quarantined) == 2


def test_a_bad_label_refuses_its_document_whatever_the_case_of_the_column():
    for rows in ([ROW | {"access": ["a", "b"]}], [{"id": "e", "text": "x", " Access": "a b"}]):
        found = jsonl(*rows)
        assert found.documents == []
        assert "no plain word" in found.quarantined[0].reason
    assert parquet({"text": "x", "Tenant": 1.5}).documents == []


def test_a_csv_row_that_ends_before_its_label_is_refused_rather_than_public():
    found = csv_of("id,text,access\na,secret\nb,other,\n")
    assert [document.id for document in found.documents] == ["r.csv#b"]
    assert "ends before" in found.quarantined[0].reason


def test_a_column_that_stands_there_twice_is_refused():
    with pytest.raises(ValueError, match="`access` stands there twice"):
        csv_of("text,access,access\nsecret,hr,\n")


def test_empty_labels_and_a_page_that_is_no_number_are_none():
    (document,) = jsonl({"text": "x", "access": "", "tenant": None, "page": "iv", "modified": "soon"}).documents
    assert (document.access, document.tenant, document.modified, document.sections[0].page) == ("", "", "", None)


def test_code_in_a_row_keeps_its_lines():
    text = "see\n```py\nif x:\n    y  = 1\n```"
    assert jsonl({"text": text}).documents[0].sections[0].text == text


def test_an_article_of_squad_may_carry_labels():
    article = {"title": "A", "paragraphs": [{"context": "x", "qas": []}]}
    content = {"data": [article | {"access": "hr"}, article | {"title": "B", "access": "a b"}]}
    found = read_json("s.json", json.dumps(content).encode())
    assert [(document.id, document.access) for document in found.documents] == [("A", "hr")]
    assert found.quarantined[0].place == "article 2"


def test_rows_with_a_context_are_documents_and_questions_about_them():
    row = {"title": "Oslo", "context": "Oslo has a fjord."}
    asked = {"question": "What has Oslo?", "answers": {"text": ["a fjord"]}}
    found = jsonl(row | asked, row | {"question": "Who rules?", "answers": {"text": []}})
    (document,) = found.documents
    assert (document.id, document.sections[0].heading) == ("r.jsonl#Oslo", "Paragraph 1")
    assert [(e.answers, e.document, e.section) for e in found.examples] == [
        (("a fjord",), document.id, "Paragraph 1"),
        ((), document.id, "Paragraph 1"),
    ]
