"""PDF and Word files into text, by pypdf and python-docx."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from zipfile import BadZipFile, ZipFile

from data.sections import MOST_BYTES, Outline, Part, Unreadable


def pdf(data: bytes) -> tuple[str, list[Part], list[tuple[str, object]]]:
    """(title or '', a part a page, labels): the heading is 'Page N', after the bookmark it stands under.

    Raises Unreadable for an encrypted, broken or scanned file.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    from data.cleaning import without_page_furniture

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("encrypted: save it without a password")
        bookmarks = dict(_bookmarks(reader, reader.outline))
        texts = [page.extract_text() for page in reader.pages]
        title = str((reader.metadata or {}).get("/Title") or "")
    except (PyPdfError, KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"not a sound PDF: {error}") from error
    if texts and not any(text.strip() for text in texts):
        raise Unreadable(f"{len(texts)} pages without text: a scan needs text recognition (OCR) first")
    parts, under = [], ""
    for number, text in enumerate(without_page_furniture(texts)):
        under = bookmarks.get(number, under)
        parts.append(Part(f"{under} > Page {number + 1}".removeprefix(" > "), _joined(text), number + 1))
    return title, parts, [("modified", _changed(reader))]


def _changed(reader) -> object:
    """The time of a PDF's last change; None where it is missing or malformed."""
    try:
        return reader.metadata.modification_date if reader.metadata else None
    except (ValueError, TypeError, AttributeError):
        return None


def _bookmarks(reader, outline, path: tuple[str, ...] = ()) -> Iterator[tuple[int, str]]:
    """(page number from 0, 'Chapter > Section') of every bookmark; of several on a page the last stands."""
    last = path
    for item in outline:
        if isinstance(item, list):
            yield from _bookmarks(reader, item, last)
        elif (number := reader.get_destination_page_number(item)) is not None and number >= 0:
            last = (*path, str(item.title))
            yield number, " > ".join(last)


def _joined(text: str) -> str:
    """Words that were hyphenated at a line's end made whole again."""
    return re.sub(r"(?<=[a-zà-ÿ])-\n(?=[a-zà-ÿ])", "", text)


def docx(data: bytes) -> Outline:
    """A Word file; a table is a line a row, cells joined by ' | '. Raises Unreadable for a broken file or a bomb."""
    from docx import Document
    from docx.opc.exceptions import PackageNotFoundError
    from docx.table import Table

    try:
        if sum(part.file_size for part in ZipFile(io.BytesIO(data)).infolist()) > MOST_BYTES:
            raise Unreadable(f"unpacks to more than {MOST_BYTES >> 20} MiB; split the file")
        document = Document(io.BytesIO(data))
        blocks = []
        for item in document.iter_inner_content():
            if isinstance(item, Table):
                blocks += [(0, " | ".join(_cells(row))) for row in item.rows]
            else:
                blocks.append((_level(item.style.name if item.style else ""), item.text))
        about = document.core_properties
        return Outline((about.title or "").strip(), blocks, [("modified", about.modified)])
    except (BadZipFile, PackageNotFoundError, KeyError, AttributeError, SyntaxError) as error:
        raise Unreadable(f"not a sound Word file: {error}") from error


def _cells(row) -> list[str]:
    """The texts of a table row; a cell merged over several columns counts once."""
    cells = list({id(cell._tc): cell for cell in row.cells}.values())
    return [" ".join(cell.text.split()) for cell in cells]


def _level(style: str) -> int:
    """1 for 'Title' and 'Heading 1', n for 'Heading n', 0 for text."""
    heading = re.fullmatch(r"Heading (\d)", style)
    return int(heading[1]) if heading else int(style == "Title")
