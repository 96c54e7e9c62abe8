"""Files for tests, made as they are needed, and reading them without a child process."""

import io
import tarfile
import zipfile

from data.archives import parts
from data.readers import Read


def parse_here(files):
    """As `data.parsing.parse`, unguarded."""
    for file in files:
        found = Read()
        for _, load in parts(file):
            part = load()
            found.documents += part.documents
            found.examples += part.examples
            found.quarantined += part.quarantined
        yield file, found


def put(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def packed(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pdf(pages, bookmarks=(), password=None):
    """A PDF with one line of text a page; `bookmarks`: (title, page from 0)."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    fonts = DictionaryObject({NameObject(key): NameObject(value) for key, value in font.items()})
    for text in pages:
        page, stream = writer.add_blank_page(300, 300), DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = stream
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): fonts})}
        )
    for title, page in bookmarks:
        writer.add_outline_item(title, page)
    if password:
        writer.encrypt(password)
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def word():
    from docx import Document

    document = Document()
    document.add_heading("Trash", 0)
    document.add_paragraph("Intro.")
    document.add_heading("How long", 2)
    table = document.add_table(2, 2)
    for cell, text in zip(
        (cell for row in table.rows for cell in row.cells), ("Plan", "Days", "Team", "75"), strict=True
    ):
        cell.text = text
    document.add_paragraph("Then they are gone.")
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def tarred(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.md")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return buffer.getvalue()
