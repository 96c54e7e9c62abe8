"""One file into what it holds: itself or the members of an archive, unpacked within limits, each by its reader."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from data import saved
from data.readers import MOST_BYTES, READERS, Read, Unreadable
from data.records import Quarantined
from data.remote import Unreachable, fetched, file_name, is_remote
from data.sources import File, is_archive, is_hidden, printable

# What all files of one archive may unpack to.
MOST_ARCHIVE_BYTES = 16 * MOST_BYTES


def parts(file: File) -> Iterator[tuple[str, Callable[[], Read]]]:
    """(name, how to read it) of the file itself, or of each visible file in the archive that it is.

    Reading raises MemoryError and Unreachable; whatever else goes wrong is a row in the quarantine of what was read.
    """
    name = file.name or file_name(file.uri)
    if not is_archive(name):
        yield name, partial(_guarded, name, partial(_whole, name, file.uri))
        return
    total, visible, folder = 0, 0, f"{file.name}/" if file.name else ""
    try:
        with _opened(file.uri) as stream:
            members = _zipped(stream) if name.lower().endswith(".zip") else _tarred(stream)
            for member, size, load in members:
                total += size
                if total > MOST_ARCHIVE_BYTES:
                    raise Unreadable(f"unpacks to more than {MOST_ARCHIVE_BYTES >> 20} MiB; the rest was left out")
                if not is_hidden(member):
                    visible, inner = visible + 1, folder + member
                    yield inner, partial(_guarded, inner, partial(_parsed, inner, size, load))
        if not visible:
            raise Unreadable("an archive with no visible file in it")
    except (MemoryError, Unreachable):
        raise
    except Exception as error:  # as in _guarded
        yield name, partial(_refused, name, error)


def _guarded(name: str, load: Callable[[], Read]) -> Read:
    try:
        return load()
    except (MemoryError, Unreachable):
        raise
    except Exception as error:  # of any library that reads: this file is at fault, the next one is not
        return _refused(name, error)


def _refused(name: str, error: Exception) -> Read:
    if isinstance(error, Unreadable):
        reason = str(error)
    elif isinstance(error, UnicodeDecodeError):
        reason = f"not UTF-8 at byte {error.start}"
    elif isinstance(error, RecursionError):
        reason = "nested too deeply"
    else:
        reason = f"cannot be read: {type(error).__name__}: {error}"
    return Read(quarantined=[Quarantined(name, "", reason)])


def _opened(uri: str) -> BinaryIO:
    if is_remote(uri):
        return fetched(uri, MOST_ARCHIVE_BYTES)
    _require_plain(uri)
    return open(uri, "rb")


def _require_plain(uri: str) -> None:
    if not Path(uri).is_file():  # reading a pipe would wait for ever
        raise Unreadable("not a plain file, or a link to nothing")


def _zipped(stream: BinaryIO) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield printable(member.filename), member.file_size, partial(archive.read, member)


def _tarred(stream: BinaryIO) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(fileobj=stream) as archive:
        for member in archive:
            if (opened := archive.extractfile(member) if member.isfile() else None) is not None:
                yield printable(member.name.removeprefix("./")), member.size, opened.read


def _whole(name: str, uri: str) -> Read:
    if is_remote(uri):
        return _parsed(name, 0, partial(_bytes, uri))
    if Path(uri).is_dir():
        if not saved.is_dataset(Path(uri)):
            raise Unreadable("a folder that may not be opened")
        return saved.read(name, Path(uri), MOST_ARCHIVE_BYTES)
    _require_plain(uri)
    return _parsed(name, Path(uri).stat().st_size, Path(uri).read_bytes)


def _bytes(uri: str) -> bytes:
    with fetched(uri, MOST_BYTES) as file:
        return file.read()


def _parsed(name: str, size: int, load: Callable[[], bytes]) -> Read:
    """What the reader of the name's suffix finds; nothing is loaded that would be refused."""
    if is_archive(name):
        raise Unreadable("an archive inside an archive; unpack it first")
    reader = READERS.get(Path(name.lower().removesuffix(".gz")).suffix)
    if reader is None:
        raise Unreadable(f"no reader for {Path(name).suffix or name!r}; there are {', '.join(READERS)}")
    if size > MOST_BYTES:
        raise Unreadable(f"{size >> 20} MiB is over the limit of {MOST_BYTES >> 20} MiB; split the file")
    data = _unpacked(load()) if name.lower().endswith(".gz") else load()
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
