"""Files into documents, questions and quarantine."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import formats, readers
from data.formats import read, read_examples
from data.readers import READERS, clean
from tests.documents import packed, parse_here, pdf, put, word


@pytest.fixture(autouse=True)
def without_a_child(monkeypatch):
    """What is read does not depend on the process that reads it: test_parsing shows that, and takes longer."""
    monkeypatch.setattr(formats, "parse", parse_here)


SQUAD = {
    "data": [
        {
            "title": "Oxygen",
            "paragraphs": [
                {
                    "context": "Oxygen is a gas.",
                    "qas": [{"question": "What is it?", "answers": [{"text": "a gas"}] * 2}],
                },
                {"context": "It was found in 1774.", "qas": [{"question": "Who sold it?", "answers": []}]},
            ],
        }
    ]
}


def reason(found):
    (row,) = found.quarantined
    return row.reason


def outline(found):
    (document,) = found.documents
    return document.title, [(section.heading, section.text) for section in document.sections]


def test_markdown_html_and_text_of_the_same_page_give_the_same_title_and_sections(tmp_path):
    markdown = "# Trash\n\nIntro.\n\n## How **long**\n\nFiles stay [30 days](x.md).\n\n- one\n- two\n"
    html = (
        "<head><title>other</title></head><body><nav>Menu</nav><h1>Trash</h1><p>Intro.</p><h2>How <b>long</b></h2>"
        "<p>Files stay <a href=x>30 days</a>.</p><ul><li>one</li><li>two</li></ul><footer>foot</footer></body>"
    )
    text = "Trash\n=====\n\nIntro.\n\nHow long\n--------\n\nFiles stay 30 days.\n\n- one\n- two\n"
    found = [read(put(tmp_path / kind, **{f"a_DOT_{kind}": page})) for kind, page in
             (("md", markdown), ("html", html), ("txt", text))]  # fmt: skip
    for kind in found:
        title, sections = outline(kind)
        assert title == "Trash"
        assert [(heading, body.split()) for heading, body in sections] == [
            ("", ["Intro."]),
            ("How long", ["Files", "stay", "30", "days.", "-", "one", "-", "two"]),
        ]


def test_headings_below_the_second_level_carry_their_path_and_repeated_ones_are_numbered(tmp_path):
    page = "# T\n## A\n### Example\none\n## B\n### Example\ntwo\n## C\nx\n## C\ny\n"
    _, sections = outline(read(put(tmp_path, a_DOT_md=page)))
    assert [heading for heading, _ in sections] == ["A > Example", "B > Example", "C", "C (2)"]


def test_a_hash_inside_a_fence_is_no_heading_and_code_keeps_its_marks(tmp_path):
    page = "# T\n## A\n```python\n# not a heading\nx = **y**\n```\nafter `a**b**` text\n"
    _, sections = outline(read(put(tmp_path, a_DOT_md=page)))
    assert sections == [("A", "```python\n# not a heading\nx = **y**\n```\nafter a**b** text")]


def test_tables_become_rows_in_markdown_and_html(tmp_path):
    page = put(tmp_path / "m", a_DOT_md="# T\n| Plan | Price |\n|---|:--:|\n| Solo | 6 |\n")
    table = "<h1>T</h1><table><tr><th>Plan</th><th>Price</th></tr><tr><td>Solo</td><td>6</td></tr></table>"
    assert outline(read(page)) == outline(read(put(tmp_path / "h", a_DOT_html=table)))
    assert outline(read(page)) == ("T", [("", "Plan | Price\nSolo | 6")])


def test_text_in_angle_brackets_that_is_no_tag_stays(tmp_path):
    _, sections = outline(read(put(tmp_path, a_DOT_md="# T\nPress <Enter> at <https://a.example>.<br>Done\n")))
    assert sections == [("", "Press <Enter> at <https://a.example>.Done")]


def test_html_that_a_person_cannot_see_is_left_out(tmp_path):
    page = "<h1>T</h1><p>seen</p><p hidden>a</p><div style='display: none'>b</div><script>c</script><!-- d -->"
    assert outline(read(put(tmp_path, a_DOT_html=page))) == ("T", [("", "seen")])


def test_text_after_a_nested_block_is_a_line_of_its_own(tmp_path):
    page = "<h1>T</h1><div>one<p>two</p>three<pre>  x\n  y</pre>four</div>"
    assert outline(read(put(tmp_path, a_DOT_html=page)))[1][0][1].split("\n") == [
        "one",
        "two",
        "three",
        "```",
        "  x",
        "  y",
        "```",
        "four",
    ]


def test_invisible_characters_never_reach_a_document(tmp_path):
    _, sections = outline(
        read(put(tmp_path, a_DOT_txt="zero\u200bwidth \U000e0041tag\u202e bell\x07  two  blanks \r\nx"))
    )
    assert sections == [("", "zerowidth tag bell two blanks\nx")]
    assert clean("\ud800a") == "a"


def test_rows_that_share_an_id_form_one_document_in_jsonl_csv_and_parquet(tmp_path):
    rows = [
        {"id": "e", "title": "Errors", "section": "First", "text": "QB-1 means one."},
        {"id": "e", "title": "Errors", "section": "Second", "text": "QB-2 means two."},
    ]
    put(tmp_path / "j", r_DOT_jsonl="\n".join(map(json.dumps, rows)))
    put(tmp_path / "c", r_DOT_csv="id,title,section,text\n" + "\n".join(",".join(row.values()) for row in rows))
    (tmp_path / "p").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p" / "r.parquet")
    for folder, suffix in (("j", "jsonl"), ("c", "csv"), ("p", "parquet")):
        (document,) = read(str(tmp_path / folder)).documents
        assert document.id == f"r.{suffix}#e"
        assert [(s.heading, s.text) for s in document.sections] == [(r["section"], r["text"]) for r in rows]


def test_squad_gives_a_section_per_paragraph_and_examples_bound_to_it(tmp_path):
    put(tmp_path, s_DOT_json_DOT_gz=gzip.compress(json.dumps(SQUAD).encode()))
    found = read(str(tmp_path))
    assert [s.heading for s in found.documents[0].sections] == ["Paragraph 1", "Paragraph 2"]
    first, second = found.examples
    assert (first.document, first.section, first.answers) == ("Oxygen", "Paragraph 1", ("a gas",))
    assert second.answers == ()


def test_a_bad_line_is_quarantined_with_its_place_and_the_others_are_read(tmp_path):
    lines = ['{"text": "good"}', "{broken", "[1]", '{"title": "no text"}', '{"question": 7}', '{"text": "also good"}']
    found = read(put(tmp_path, a_DOT_jsonl="\n".join(lines)))
    assert len(found.documents) == 2
    assert [row.place for row in found.quarantined] == ["line 2", "line 3", "line 4", "line 5"]


def test_examples_are_read_from_jsonl_and_csv(tmp_path):
    put(tmp_path, a_DOT_jsonl='{"question": "Q1?", "answers": ["x", "x", "y"], "document": "d.md", "section": "S"}')
    put(tmp_path, b_DOT_csv='question,answers\nQ2?,plain\nQ3?,"[""a"", ""b""]"\n')
    examples, refused = read_examples(str(tmp_path))
    assert [(e.question, e.answers) for e in examples] == [
        ("Q1?", ("x", "y")),
        ("Q2?", ("plain",)),
        ("Q3?", ("a", "b")),
    ]
    assert (examples[0].document, examples[0].section, refused) == ("d.md", "S", [])


RST = """
=====
Trash
=====

Intro, see :ref:`the limits <limits>`.

How *long*
==========

+------+------+
| Plan | Days |
+======+======+
| Team | 75   |
+------+------+

.. code-block:: sh

   keep --days 75

.. versionchanged:: 2.0
   Was 60.

.. include:: /etc/passwd

.. comment
"""


def test_word_and_rst_give_title_sections_and_table_rows(tmp_path):
    assert outline(read(put(tmp_path / "word", a_DOT_docx=word()))) == (
        "Trash",
        [("", "Intro."), ("How long", "Plan | Days\nTeam | 75\nThen they are gone.")],
    )
    title, sections = outline(read(put(tmp_path / "rst", a_DOT_rst=RST)))
    assert title == "Trash" and sections[0] == ("", "Intro, see the limits.")
    assert sections[1] == ("How long", "Plan | Days\nTeam | 75\n\n```sh\nkeep --days 75\n```\n\nWas 60.")


def test_a_pdf_has_a_section_a_page_under_its_bookmark(tmp_path):
    content = pdf(["Keys are wrapped.", "Ports are closed.", "Logs stay."], bookmarks=[("Security", 1)])
    assert outline(read(put(tmp_path, handbook_DOT_pdf=content))) == (
        "Handbook",
        [
            ("Page 1", "Keys are wrapped."),
            ("Security > Page 2", "Ports are closed."),
            ("Security > Page 3", "Logs stay."),
        ],
    )


BOMB = gzip.compress(b"a" * (readers.MOST_BYTES + 1), 1)
BAD = {
    "empty_DOT_md": (b"", "empty"),
    "blank_DOT_txt": (b" \n ", "empty"),
    "only-headings_DOT_md": (b"# A\n## B\n", "no text"),
    "latin1_DOT_txt": ("caf\u00e9 and more".encode("latin-1"), "not UTF-8 at byte 3"),
    "binary_DOT_txt": (b"a\0b", "binary"),
    "broken_DOT_json": (b'{"data": [', "not JSON"),
    "other_DOT_json": (b'{"a": 1}', "SQuAD"),
    "deep_DOT_json": (b"[" * 200_000, "nested too deeply"),
    "cut_DOT_json_DOT_gz": (gzip.compress(b'{"data": []}' * 50)[:-9], "truncated"),
    "notgzip_DOT_txt_DOT_gz": (b"plain", "cannot be read"),
    "bomb_DOT_txt_DOT_gz": (BOMB, "unpacks to more"),
    "broken_DOT_parquet": (b"PAR1 nothing PAR1", "not Parquet"),
    "nocolumn_DOT_csv": (b"a,b\n1,2\n", "no column"),
    "slides_DOT_pptx": (b"PK", "no reader for '.pptx'"),
    "broken_DOT_pdf": (b"%PDF-1.7 /Encrypt", "not a sound PDF"),
    "scan_DOT_pdf": (pdf([""]), "text recognition"),
    "locked_DOT_pdf": (pdf(["Keys are wrapped."], password="x"), "encrypted"),
    "broken_DOT_docx": (b"PK\3\4", "not a sound Word file"),
    "not-word_DOT_docx": (packed(**{"a.txt": b"x"}), "not a sound Word file"),
    "bomb_DOT_docx": (packed(**{"word/document.xml": b"a" * (readers.MOST_BYTES + 1)}), "unpacks to more"),
    "broken_DOT_zip": (b"PK\3\4", "cannot be read"),
    "broken_DOT_tar_DOT_gz": (gzip.compress(b"plain"), "cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unreadable_file_is_quarantined_with_its_reason_and_the_rest_goes_on(tmp_path, name):
    content, expected = BAD[name]
    put(tmp_path, good_DOT_md="# Good\ntext", **{name: content})
    found = read(str(tmp_path))
    assert [document.id for document in found.documents] == ["good.md"]
    assert expected in reason(found)
    assert found.quarantined[0].file == name.replace("_DOT_", ".")


def test_deeply_nested_html_is_read(tmp_path):
    found = read(put(tmp_path, a_DOT_html="<div>" * 3000 + "<p>inside</p>" + "</div>" * 3000))
    assert outline(found)[1] == [("", "inside")] or "nested" in reason(found)


def test_hidden_files_and_folders_are_skipped_without_a_word(tmp_path):
    found = read(put(tmp_path, a_DOT_md="# A\ntext", _DOT_hidden_DOT_md="# H\nx", _DOT_git__b_DOT_md="# B\nx"))
    assert ([document.id for document in found.documents], found.quarantined) == (["a.md"], [])


def test_nothing_at_the_path_is_an_error_because_it_is_no_deletion(tmp_path):
    for path in (tmp_path / "missing", tmp_path, tmp_path / "*.md"):
        with pytest.raises(FileNotFoundError, match="no files at"):
            read(str(path))


def test_an_exact_copy_is_dropped_counted_and_remembered(tmp_path):
    found = read(put(tmp_path, a_DOT_md="# A\nsame", b_DOT_txt="same", c_DOT_md="# C\nother"))
    assert [document.id for document in found.documents] == ["a.md", "c.md"]
    assert (found.duplicates, found.aliases) == (1, {"b.txt": "a.md"})


def test_a_second_document_with_the_same_id_is_quarantined(tmp_path):
    other = {"data": [{"title": "Oxygen", "paragraphs": [{"context": "Something else."}]}]}
    found = read(put(tmp_path, a_DOT_json=json.dumps(SQUAD), b_DOT_json=json.dumps(other)))
    assert len(found.documents) == 1
    assert "a second document with the id 'Oxygen'" in reason(found)


def test_section_hashes_do_not_depend_on_where_the_folder_lies(tmp_path):
    first, second = (read(put(tmp_path / name, d__a_DOT_md="# A\n## B\ntext")).documents for name in ("one", "two"))
    assert first == second
    assert first[0].sections[0].hash == second[0].sections[0].hash


def test_every_reader_refuses_rather_than_crashes_on_noise(tmp_path):
    for suffix in READERS:
        put(tmp_path, **{f"noise_DOT_{suffix[1:]}": bytes(range(1, 256)) * 20})
    found = read(put(tmp_path, good_DOT_md="# Good\ntext"))
    assert [document.id for document in found.documents] == ["good.md"]
    assert len(found.quarantined) == len(READERS)
