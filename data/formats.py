"""Files into documents, questions and quarantine: folders, globs and archives, and nothing dropped in silence."""

from __future__ import annotations

import glob
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data.readers import MOST_BYTES, READERS, Read, Unreadable
from data.records import Document, Example, Quarantined, digest

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What all files of one archive may unpack to.
MOST_ARCHIVE_BYTES = 16 * MOST_BYTES
BROKEN = (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, NotImplementedError, RuntimeError)  # of archives


def read(path: str) -> Read:
    """Everything under `path`, a folder, a file or a glob, cleaned; exact duplicates of a document are left out.

    Ids are paths relative to the folder (to the fixed part of a glob), `path#row` inside a file of rows, the title in
    a SQuAD file, `archive/path` in an archive (`path` where a single archive is given). Hidden files are skipped.
    Raises FileNotFoundError when nothing is at `path`: a share that is not mounted must not look like a deletion.
    """
    found = Read()
    for name, file in files(path):
        for inner, load in _contents(name, file):
            try:
                part = _parsed(inner, load())
            except Unreadable as error:
                part = Read(quarantined=[Quarantined(inner, "", str(error))])
            except (UnicodeDecodeError, RecursionError, OSError, EOFError, zlib.error, *BROKEN) as error:
                part = Read(quarantined=[Quarantined(inner, "", _reason(error))])
            found.documents += part.documents
            found.examples += part.examples
            found.quarantined += part.quarantined
    return _without_duplicates(found)


def read_examples(path: str) -> tuple[list[Example], list[Quarantined]]:
    """The questions under `path` (JSONL, CSV, Parquet with a `question` column, or SQuAD), and what was refused."""
    found = read(path)
    return found.examples, found.quarantined


def files(path: str) -> list[tuple[str, Path]]:
    """(name, file) of every visible file under `path`, sorted by name. Raises FileNotFoundError when there is none.

    A single archive has the name '': its files are named as in a folder of its own.
    """
    start = Path(path).expanduser()
    if start.is_file():
        return [("" if _is_archive(start) else start.name, start)]
    if start.is_dir():
        root, chosen = start, (Path(folder) / name for folder, _, names in os.walk(start) for name in names)
    else:
        fixed = re.split(r"[*?\[]", str(start), maxsplit=1)[0]
        root = Path(fixed) if fixed.endswith("/") else Path(fixed).parent
        chosen = (Path(match) for match in glob.glob(str(start), recursive=True) if Path(match).is_file())
    named = sorted((file.relative_to(root).as_posix(), file) for file in chosen)
    visible = [(name, file) for name, file in named if not any(part.startswith(".") for part in name.split("/"))]
    if not visible:
        raise FileNotFoundError(f"no files at {path!r}; name a folder, a file or a glob that exists")
    return visible


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"cannot be read: {error}"


def _contents(name: str, file: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, how to get its bytes) of the file itself, or of each visible file in the archive that it is."""
    if not _is_archive(file):
        yield name, partial(_bytes, name, file)
        return
    total, folder = 0, f"{name}/" if name else ""
    try:
        _require_plain(file)
        for inner, size, load in _zipped(file) if file.suffix.lower() == ".zip" else _tarred(file):
            total += size
            if total > MOST_ARCHIVE_BYTES:
                raise Unreadable(f"unpacks to more than {MOST_ARCHIVE_BYTES >> 20} MiB; the rest was left out")
            if not any(part.startswith(".") for part in inner.split("/")):
                yield folder + inner, partial(_member, inner, size, load)
    except (Unreadable, OSError, EOFError, zlib.error, *BROKEN) as error:
        reason = str(error) if isinstance(error, Unreadable) else _reason(error)
        yield name or file.name, partial(_refuse, reason)


def _is_archive(file: Path) -> bool:
    return file.name.lower().endswith(ARCHIVES)


def _zipped(file: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size, partial(archive.read, member)


def _tarred(file: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(file) as archive:
        for member in archive:
            if (opened := archive.extractfile(member) if member.isfile() else None) is not None:
                yield member.name.removeprefix("./"), member.size, opened.read


def _bytes(name: str, file: Path) -> bytes:
    _require_plain(file)
    return _member(name, file.stat().st_size, file.read_bytes)


def _require_plain(file: Path) -> None:
    if not file.is_file():  # reading a pipe would wait for ever
        raise Unreadable("not a plain file, or a link to nothing")


def _member(name: str, size: int, load: Callable[[], bytes]) -> bytes:
    if _is_archive(Path(name)):
        raise Unreadable("an archive inside an archive; unpack it first")
    if _reader(name) is None:
        raise Unreadable(f"no reader for {Path(name).suffix or name!r}; there are {', '.join(READERS)}")
    if size > MOST_BYTES:
        raise Unreadable(f"{size >> 20} MiB is over the limit of {MOST_BYTES >> 20} MiB; split the file")
    data = load()
    return _unpacked(data) if name.lower().endswith(".gz") else data


def _refuse(reason: str) -> bytes:
    raise Unreadable(reason)


def _reader(name: str) -> Callable[[str, bytes], Read] | None:
    return READERS.get(Path(name.lower().removesuffix(".gz")).suffix)


def _parsed(name: str, data: bytes) -> Read:
    reader = _reader(name)
    assert reader is not None  # _member refuses a name without one
    if not data.strip():
        raise Unreadable("empty")
    found = reader(name, data)
    if not (found.documents or found.examples or found.quarantined):
        raise Unreadable("no text in it")
    return found


def _unpacked(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    out = unpacker.decompress(data, MOST_BYTES)
    if unpacker.unconsumed_tail:
        raise Unreadable(f"unpacks to more than {MOST_BYTES >> 20} MiB; split the file")
    if not unpacker.eof:
        raise Unreadable("truncated: the compressed data ends early")
    return out


def _without_duplicates(found: Read) -> Read:
    """One document per id and per content: a second file with the same id is quarantined, a copy becomes an alias."""
    kept: dict[str, Document] = {}
    by_content: dict[str, str] = {}
    for document in sorted(found.documents, key=lambda document: document.id):
        content = digest([(section.heading, section.text) for section in document.sections])
        if document.id in kept:
            if kept[document.id] != document:
                reason = f"a second document with the id {document.id!r}; rename one of them"
                found.quarantined.append(Quarantined(document.id, "", reason))
        elif content in by_content:
            found.aliases[document.id] = by_content[content]
        else:
            kept[document.id] = document
            by_content[content] = document.id
    found.documents = list(kept.values())
    return found
