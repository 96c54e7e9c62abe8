"""One file's bytes into documents: what it says about itself, and what is kept as it is. More in test_formats."""

import io
from datetime import UTC, datetime

import pytest

from data.readers import READERS, Unreadable


def pdf(pages, **about):
    """A PDF with one line of text a page, and what it says about itself."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = DictionaryObject(
        {NameObject("/F1"): DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})}
    )
    for text in pages:
        page, stream = writer.add_blank_page(300, 300), DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = stream
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    writer.add_metadata({f"/{key}": value for key, value in about.items()})
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def read(name, content):
    (document,) = READERS["." + name.split(".")[-1]](
        name, content if isinstance(content, bytes) else content.encode()
    ).documents
    return document


MARKDOWN = "---\naccess: hr\ntenant: acme\nlang: de\nmodified: 2024-01-31 12:00:00 +0100\n---\n# T\ntext"
HTML = (
    '<html lang="de"><head><meta name="access" content="hr"><meta name="tenant" content="acme">'
    '<meta name="modified" content="2024-01-31T11:00:00Z"></head><h1>T</h1><p>text</p></html>'
)


@pytest.mark.parametrize(("name", "content"), [("a.md", MARKDOWN), ("a.html", HTML)])
def test_markdown_and_html_say_who_may_read_them_when_they_changed_and_in_which_language(name, content):
    found = read(name, content)
    assert (found.access, found.tenant, found.language, found.modified) == ("hr", "acme", "de", "2024-01-31T11:00:00Z")
    assert [section.text for section in found.sections] == ["text"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", "---\naccess: [a, b]\n---\ntext"),
        ("a.md", "---\naccess:\n---\ntext"),
        ("a.md", "---\r\naccess: a b\r\n---\r\ntext"),
        ("a.md", "---\raccess: a b\r---\rtext"),
        ("a.md", "---\naccess: a\nAccess: b\n---\ntext"),
        ("a.html", '<meta name="tenant" content="a, b"><p>text'),
        ("a.html", '<meta name="access" content="a"><p>text<meta name="access" content="b">'),
    ],
)
def test_a_page_whose_label_is_no_single_plain_word_is_refused(name, content):
    with pytest.raises(Unreadable, match=r"no plain word|is said to be"):
        read(name, content)


def test_files_that_say_nothing_are_for_everybody_and_have_no_time():
    for name in ("a.md", "a.txt", "a.rst", "a.html"):
        found = read(name, "text")
        assert (found.access, found.tenant, found.language, found.modified) == ("", "", "", "")


CODE = "if x:\n    y  =  [1,   2]\n\n\nz"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.md", f"# T\nBefore.\n```py\n{CODE}\n```\nAfter."),
        ("a.html", f"<h1>T</h1><p>Before.<pre><code class=language-py>{CODE}</code></pre>After."),
        ("a.rst", "T\n=\nBefore.\n\n.. code:: py\n\n   " + CODE.replace("\n", "\n   ") + "\n\nAfter."),
        ("a.txt", f"T\n===\nBefore.\n```py\n{CODE}\n```\nAfter."),
        ("a.jsonl", '{"text": "Before.\\n```py\\n' + CODE.replace("\n", "\\n") + '\\n```\\nAfter."}'),
    ],
)
def test_code_reaches_the_section_between_fences_as_it_was_written(name, content):
    text = read(name, content).sections[0].text
    assert text.replace("\n\n```py", "\n```py").replace("```\n\nA", "```\nA") == f"Before.\n```py\n{CODE}\n```\nAfter."


def test_a_pdf_gives_page_numbers_and_the_time_of_its_last_change():
    found = read("a.pdf", pdf(["Keys are wrapped.", "Ports are closed."], ModDate="D:20240131120000+01'00'"))
    assert [section.page for section in found.sections] == [1, 2]
    assert found.modified == "2024-01-31T11:00:00Z"


def test_a_pdf_with_a_malformed_time_has_none():
    assert read("a.pdf", pdf(["Keys are wrapped."], ModDate="yesterday")).modified == ""


def test_headers_and_footers_that_repeat_on_the_pages_of_a_pdf_are_left_out_after_the_first():
    texts = ["Keys are wrapped.", "Ports are closed.", "Logs stay a year.", "Disks are wiped.", "Guests sign in."]
    pages = [f"Acme handbook) Tj 0 -20 Td ({text}) Tj 0 -20 Td (Page {i} of 5" for i, text in enumerate(texts, start=1)]
    assert [section.text for section in read("a.pdf", pdf(pages)).sections] == [
        f"Acme handbook\n{texts[0]}",
        *texts[1:],
    ]


def test_a_word_file_gives_the_time_of_its_last_change_and_its_keywords_are_no_labels():
    from docx import Document

    document = Document()
    document.add_paragraph("Text.")
    document.core_properties.modified = datetime(2024, 1, 31, 11, tzinfo=UTC)
    document.core_properties.keywords = "access: hr"
    buffer = io.BytesIO()
    document.save(buffer)
    found = read("a.docx", buffer.getvalue())
    assert (found.modified, found.access) == ("2024-01-31T11:00:00Z", "")
