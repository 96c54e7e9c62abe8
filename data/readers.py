"""One file's bytes into documents and questions: a reader per suffix, a row each in READERS."""

from __future__ import annotations

from collections.abc import Callable

from data import markup, office, rows, webpages
from data.sections import MOST_BYTES, Read, Unreadable, clean, decoded, outlined, sectioned, stem

__all__ = ["MOST_BYTES", "READERS", "Read", "Unreadable", "clean"]


def read_markdown(name: str, data: bytes) -> Read:
    """Markdown: the first `#` is the title, other headings make sections; links and emphasis become plain text."""
    return Read(documents=outlined(name, markup.markdown(decoded(data))))


def read_text(name: str, data: bytes) -> Read:
    """Plain text: a line underlined with === is the title, with --- a section heading."""
    return Read(documents=outlined(name, markup.text(decoded(data))))


def read_html(name: str, data: bytes) -> Read:
    """HTML: h1 (else <title>) is the title, h2 to h6 make sections; menus, scripts and hidden elements are left out."""
    return Read(documents=outlined(name, webpages.html(decoded(data))))


def read_rst(name: str, data: bytes) -> Read:
    """reStructuredText: the outermost heading is the title, the others make sections; nothing is included or run."""
    return Read(documents=outlined(name, markup.rst(decoded(data))))


def read_pdf(name: str, data: bytes) -> Read:
    """PDF: a section a page, under its bookmark, without the headers and footers that repeat."""
    title, parts, labels = office.pdf(data)
    return Read(documents=sectioned(name, title.strip() or stem(name), parts, labels))


def read_docx(name: str, data: bytes) -> Read:
    """Word: the title, or the first Heading 1, is the title, the other headings make sections."""
    return Read(documents=outlined(name, office.docx(data)))


READERS: dict[str, Callable[[str, bytes], Read]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".rst": read_rst,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".json": rows.read_json,
    ".jsonl": rows.read_jsonl,
    ".ndjson": rows.read_jsonl,
    ".csv": rows.read_csv,
    ".parquet": rows.read_parquet,
}
