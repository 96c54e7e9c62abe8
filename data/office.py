"""PDF and Word files into text, by pypdf and python-docx."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from zipfile import BadZipFile, ZipFile


class Damaged(ValueError):
    """A file that its library cannot read; the message says why."""


def pdf(data: bytes) -> tuple[str, list[tuple[str, str]]]:
    """(title or '', [(heading, text)] page by page): the heading is 'Page N', after the bookmark it stands under.

    Raises Damaged for an encrypted, broken or scanned file.
    """
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Damaged("encrypted: save it without a password")
        bookmarks = dict(_bookmarks(reader, reader.outline))
        pages, under = [], ""
        for number, page in enumerate(reader.pages):
            under = bookmarks.get(number, under)
            pages.append((f"{under} > Page {number + 1}".removeprefix(" > "), _joined(page.extract_text())))
        title = str((reader.metadata or {}).get("/Title") or "")
    except (PyPdfError, KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise error if isinstance(error, Damaged) else Damaged(f"not a sound PDF: {error}") from error
    if pages and not any(text.strip() for _, text in pages):
        raise Damaged(f"{len(pages)} pages without text: a scan needs text recognition (OCR) first")
    return title, pages


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


def docx(data: bytes, most_bytes: int) -> tuple[str, list[tuple[int, str]]]:
    """(title or '', blocks as in data/markup) of a Word file; a table is a line a row, cells joined by ' | '.

    Raises Damaged, also for a file that would unpack to more than `most_bytes`.
    """
    from docx import Document
    from docx.opc.exceptions import PackageNotFoundError
    from docx.table import Table

    try:
        if sum(part.file_size for part in ZipFile(io.BytesIO(data)).infolist()) > most_bytes:
            raise Damaged(f"unpacks to more than {most_bytes >> 20} MiB; split the file")
        document = Document(io.BytesIO(data))
        blocks = []
        for item in document.iter_inner_content():
            if isinstance(item, Table):
                blocks += [(0, " | ".join(_cells(row))) for row in item.rows]
            else:
                blocks.append((_level(item.style.name if item.style else ""), item.text))
        return document.core_properties.title or "", blocks
    except (BadZipFile, PackageNotFoundError, KeyError, AttributeError, SyntaxError) as error:
        raise Damaged(f"not a sound Word file: {error}") from error


def _cells(row) -> list[str]:
    """The texts of a table row; a cell merged over several columns counts once."""
    cells = list({id(cell._tc): cell for cell in row.cells}.values())
    return [" ".join(cell.text.split()) for cell in cells]


def _level(style: str) -> int:
    """1 for 'Title' and 'Heading 1', n for 'Heading n', 0 for text."""
    heading = re.fullmatch(r"Heading (\d)", style)
    return int(heading[1]) if heading else int(style == "Title")
