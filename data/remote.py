"""Files at a URL: https, object stores and the Hugging Face hub, by fsspec. Keys come from the environment."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from data.records import digest
from data.sections import Unreadable, utc

WEB = ("http://", "https://")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# How file systems name the checksum of a file, and the time it was changed, in what they list.
CHECKSUMS = ("ETag", "etag", "blob_id", "md5Hash", "Content-MD5", "Digest")
CHANGED = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "modified", "created")
_BLOCK = 1 << 20
_MOST_BLOCKS = 1024


class Unreachable(Exception):
    """A source that does not answer, which says nothing about its files; the message says why."""


def is_remote(uri: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri) is not None and not uri.startswith("file://")


def shown(uri: str) -> str:
    """A path, or a URL without user, password and query, which may hold a key: for messages."""
    return re.sub(r"//[^/@]*@", "//", uri.split("?")[0]) if is_remote(uri) else uri


def file_name(uri: str) -> str:
    """The last component of a path or URL."""
    return (unquote(urlsplit(uri).path) if uri.startswith(WEB) else uri).split("/")[-1]


def entries(url: str) -> list[tuple[str, str, str, str]]:
    """(path below the URL, URL, identity, modified) of every file there, as in `sources.File`; '' is the URL itself.

    Raises FileNotFoundError when it cannot be listed, ImportError when a package is missing.
    """
    import fsspec

    _require_allowed(url)
    try:
        system, root = fsspec.core.url_to_fs(url)
        system.invalidate_cache()  # the instance lives as long as the process, with what it listed before
        return [
            (name, system.unstrip_protocol(path), _identity(system, path, about), _changed(about))
            for name, path, about in _found(system, root)
        ]
    except ImportError as error:
        raise ImportError(f"{shown(url)!r} needs a package that is missing: {error}, with pip") from error
    except Exception as error:  # file systems raise errors of many kinds, and none of them is a deletion
        raise FileNotFoundError(
            f"cannot list {shown(url)!r}: {_why(error, url)}; check address, credentials and network "
            f"(nothing was changed)"
        ) from error


def fetched(uri: str, most_bytes: int) -> BinaryIO:
    """A remote file as a temporary one, at its beginning, that is gone when it is closed.

    Raises Unreadable past `most_bytes` and when one of many files is gone or forbidden, Unreachable on other failures.
    """
    import fsspec

    local, total = tempfile.TemporaryFile(), 0  # noqa: SIM115 (the caller closes it)
    too_large = Unreadable(f"over the limit of {most_bytes >> 20} MiB; split the file")
    try:
        system, path = fsspec.core.url_to_fs(uri)
        with _opened(system, path) as remote:
            if (getattr(remote, "size", None) or 0) > most_bytes:
                raise too_large
            for block in _blocks(remote):
                if (total := total + len(block)) > most_bytes:
                    raise too_large
                local.write(block)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        # A web address is the whole source, and fsspec calls every failure there a missing file.
        if isinstance(error, FileNotFoundError | PermissionError) and not uri.startswith(WEB):
            raise Unreadable(f"cannot be fetched: {_why(error, uri)}") from error
        raise Unreachable(f"cannot fetch {shown(uri)!r}: {_why(error, uri)}") from error
    local.seek(0)
    return local


def _require_allowed(url: str) -> None:
    if url.startswith("http://") and urlsplit(url).hostname not in LOOPBACK:
        raise ValueError(f"{shown(url)!r} is not encrypted; use https, or download it to a folder")
    if url.startswith("hf://"):
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"cannot list {url!r}: the hub is switched off here (HF_HUB_OFFLINE=1); set HF_HUB_OFFLINE=0, or save "
                f"the dataset with Dataset.save_to_disk and name that folder"
            )


def _found(system, root: str) -> Iterator[tuple[str, str, dict]]:
    """(path below `root`, path in the file system, what it says of the file)."""
    if root.startswith(WEB):
        if not file_name(root):
            raise ValueError("the address names no file")
        yield "", root, system.info(root)
        return
    if "*" in root:
        folder, inside = root.split("*")[0].rpartition("/")[0], system.glob(root, detail=True)
    else:
        about = system.info(root)
        if about["type"] == "file":
            yield "", root, about
            return
        folder, inside = about["name"], system.find(root, detail=True)
    for path, about in inside.items():
        if about["type"] == "file" and not path.endswith("/"):
            yield path.lstrip("/").removeprefix(folder.strip("/")).lstrip("/"), path, about


def _identity(system, path: str, about: dict) -> str:
    """From what the file system knows; where a web server tells nothing, the hash of what it sends."""
    if known := next((str(about[name]) for name in (*CHECKSUMS, *CHANGED) if about.get(name)), ""):
        return digest(known, about.get("size"))
    if not path.startswith(WEB):
        return system.ukey(path)
    sha = hashlib.sha256()
    with _opened(system, path) as file:
        for block in islice(_blocks(file), _MOST_BLOCKS):
            sha.update(block)
    return sha.hexdigest()


def _changed(about: dict) -> str:
    value = next((about[name] for name in CHANGED if about.get(name)), "")
    return utc(datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else value)


def _opened(system, path: str):
    # In one piece: not every web server sends ranges.
    return system.open(path, "rb", **({"block_size": 0} if path.startswith(WEB) else {}))


def _blocks(file) -> Iterator[bytes]:
    return iter(partial(file.read, _BLOCK), b"")


def _why(error: Exception, url: str) -> str:
    return f"{type(error).__name__}: {error}".replace(url, shown(url))
