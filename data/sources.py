"""The files of a source: a local folder, file or glob, or a URL."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from data import remote, saved
from data.records import Record, digest, file_sha256
from data.sections import utc

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class File(Record):
    """A file of a source, listed and not yet read.

    `name`: its path below the source, '' of a single archive. `uri`: a local path, or an fsspec URL. `identity`: other
    content has another one: the sha256 of a local file ('' of one that cannot be opened), a checksum that the server
    tells of a remote one. `modified`: UTC as YYYY-MM-DDTHH:MM:SSZ, '' unknown.
    """

    name: str
    uri: str
    identity: str
    modified: str = ""


def listed(path: str) -> list[File]:
    """Every visible file at `path`, sorted by name: a local folder, file or glob, `https://` with one file, or another
    fsspec URL such as `s3://bucket/prefix` and `hf://datasets/organisation/name`.

    A folder written by `Dataset.save_to_disk` is one file. Raises FileNotFoundError when nothing is there or a URL
    cannot be listed: a share that is not mounted must not look like a deletion. ImportError when a package is missing.
    """
    if not remote.is_remote(path):
        return _local(path)
    found = []
    for below, *about in remote.entries(path):
        name = below or remote.file_name(about[0])
        if not is_hidden(name):
            found.append(File("" if not below and is_archive(name) else name, *about))
    return sorted(_some(found, remote.shown(path)), key=lambda file: file.name)


def files(path: str) -> list[tuple[str, Path]]:
    """(name, file) of every visible local file at `path`, sorted by name. Raises FileNotFoundError when there is none.

    A single archive has the name '': its files are named as in a folder of its own.
    """
    start = _start(path)
    if start.is_file():
        return [("" if is_archive(start.name) else printable(start.name), start)]
    if start.is_dir():
        root, chosen = start, _walked(start)
    else:
        fixed = re.split(r"[*?\[]", str(start), maxsplit=1)[0]
        root = Path(fixed) if fixed.endswith("/") else Path(fixed).parent
        chosen = [Path(match) for match in glob.glob(str(start), recursive=True) if Path(match).is_file()]
    named = sorted((printable(file.relative_to(root).as_posix()), file) for file in chosen)
    return _some([(name, file) for name, file in named if not is_hidden(name)], path)


def is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def printable(name: str) -> str:
    """A file name that can be stored as text: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _some(found: list, path: str) -> list:
    if not found:
        raise FileNotFoundError(f"no files at {path!r}; name a folder, a file or a glob that exists")
    return found


def _start(path: str) -> Path:
    return Path(path.removeprefix("file://")).expanduser()


def _walked(root: Path) -> list[Path]:
    """All files below a folder, and the folders that may not be opened: quarantined then, rather than passed over."""
    denied: list[Path] = []

    def refused(error: OSError) -> None:
        if not isinstance(error, PermissionError):
            raise error
        denied.append(Path(error.filename))

    return [Path(at) / name for at, _, names in os.walk(root, onerror=refused) for name in names] + denied


def _local(path: str) -> list[File]:
    found = files(path)
    states = [file for _, file in found if file.name == "state.json"] if _start(path).is_dir() else []
    datasets = {file.parent for file in states if saved.is_dataset(file.parent)}
    made_of: dict[tuple[str, Path], list[Path]] = {}
    for name, file in found:
        place = file
        if file.parent in datasets and saved.belongs(file.name):
            name, place = name.rpartition("/")[0] or printable(file.parent.resolve().name), file.parent
        elif file.name == "dataset_dict.json" and any(folder.parent == file.parent for folder in datasets):
            continue  # it only names the splits beside it
        made_of.setdefault((name, place), []).append(file)
    listed_here = [
        File(name, os.path.abspath(place), _content(place, parts), _modified(parts))
        for (name, place), parts in made_of.items()
    ]
    return sorted(listed_here, key=lambda file: file.name)


def _content(place: Path, parts: list[Path]) -> str:
    return _sha256(place) if parts == [place] else digest([(file.name, _sha256(file)) for file in parts])


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file) if file.is_file() else ""  # opening a pipe would wait for ever
    except OSError:
        return ""


def _modified(parts: Iterable[Path]) -> str:
    try:
        return utc(datetime.fromtimestamp(max(file.stat().st_mtime for file in parts), UTC))
    except OSError:
        return ""
