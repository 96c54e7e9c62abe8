"""A release as one file: a plain tar that opens with a manifest naming every other file with its size and sha256.

Nothing in it is compressed: weights and Parquet do not get smaller, and so a bundle holds what it says and no more.
The reader takes the headers apart itself. It knows plain files in the order of the manifest and nothing else, so there
is no link, no device, no path and no second copy of a name to be careful with. Every refusal is a ValueError that says
what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.records import ASSISTANT, Decision, Record, Release, Snapshot, Sources, as_json, file_sha256

FORMAT = "perennial-bundle-1"
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 << 20
SPARE_BYTES = 1 << 30
"""What stays free on the disk after a bundle is unpacked."""
NAMES = re.compile(
    r"index\.parquet|report\.(json|md)|snapshot/(COMPLETE|[a-z_]+\.parquet)|base/\w[\w.-]*|"
    r"model/(model\.gguf|adapter/adapter_(config\.json|model\.safetensors)|card/(README\.md|training\.json|loss\.png))"
)
"""The files that a bundle may hold: a release's rows, report, snapshot, base model, artifact, adapter, model card."""
TIMES_LARGER, MARGIN_BYTES = 20, 64 << 20
"""What a Parquet file may unpack to: so many times its size, and a margin for small ones."""
ROWS_COUNTED = 4096
BLOCK = 512
AGAIN = "export it again, or copy it again from where it was made"


@dataclass(frozen=True)
class Packed(Record):
    """One file: its name, its size in bytes, its sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest(Record):
    """What a bundle holds: the release with its `kind`, its snapshot, whose sources it was made from, what the gate
    said where it comes from (None: nothing), and the files. Places are left out: they are the reader's to choose.
    """

    id: str
    kind: str
    release: Release
    snapshot: Snapshot
    sources: Sources
    decision: Decision | None = None
    files: tuple[Packed, ...] = ()
    format: str = FORMAT

    @property
    def names(self) -> set[str]:
        return {file.name for file in self.files}


def pack(target: Path, manifest: Manifest, places: Mapping[str, Path]) -> Manifest:
    """Writes the bundle of `manifest` with the files at `places` (name -> place) in one step; the manifest with them.

    Each file is read twice, once for its sha256; nothing is held in memory.
    """
    held = tuple(Packed(name, place.stat().st_size, file_sha256(place)) for name, place in sorted(places.items()))
    manifest = replace(manifest, files=held)
    head = json.dumps(as_json(manifest)).encode()
    partial = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        with open(partial, "wb") as out:
            out.write(_header(MANIFEST, len(head)) + head + _padding(len(head)))
            for file in held:
                out.write(_header(file.name, file.size))
                with open(places[file.name], "rb") as source:
                    _copy(source, out, file, str(places[file.name]))
                out.write(_padding(file.size))
            out.write(bytes(2 * BLOCK))
        read_manifest(partial)  # what could not be read is not written
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


def read_manifest(file: Path) -> Manifest:
    """What a bundle says it holds, checked against its size and its form, not yet against its contents."""
    with _opened(file) as source:
        return _manifest(source, file)


def unpack(file: Path, folder: Path) -> Manifest:
    """Writes the files of a bundle into the empty `folder`, each verified by its sha256; the bundle's manifest."""
    with _opened(file) as source:
        manifest = _manifest(source, file)
        wanted = sum(held.size for held in manifest.files)
        if wanted + SPARE_BYTES > (free := shutil.disk_usage(folder).free):
            raise refuse(file, f"holds {wanted >> 20} MiB, and {free >> 20} MiB are free", "free some space")
        for held in manifest.files:
            if _next(source, file) != (held.name, held.size):
                raise refuse(file, f"does not go on with {held.name} of {held.size} bytes, as its manifest says", AGAIN)
            place = folder / held.name
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "xb") as out:
                _copy(source, out, held, f"{held.name} in {file}")
            _skip(source, held.size, file)
        while rest := source.read(1 << 20):
            if rest.strip(b"\0"):
                raise refuse(file, "holds more than its manifest names", AGAIN)
    return manifest


def readable(file: Path, fits: Callable[[pa.Schema], bool]) -> pq.ParquetFile:
    """A Parquet file of a bundle, opened; refused when its columns do not fit or it unpacks to far more than it is."""
    most = TIMES_LARGER * file.stat().st_size + MARGIN_BYTES
    try:
        held = pq.ParquetFile(file)
        about = held.metadata
        fitting = fits(held.schema_arrow)
        size = sum(about.row_group(n).total_byte_size for n in range(about.num_row_groups))
        if fitting and size <= most:
            size = _decoded(file, held, most)
    except (pa.ArrowException, OSError, ValueError, KeyError) as problem:
        raise refuse(file.name, f"is no Parquet file that this reads ({problem})"[:300], AGAIN) from problem
    if not fitting:
        raise refuse(file.name, "has other columns than this version writes", "use the same version on both sides")
    if size > most:
        raise refuse(
            file.name, f"unpacks from {file.stat().st_size >> 20} to {size >> 20} MiB or more", "do not use it"
        )
    return held


def _decoded(file: Path, held: pq.ParquetFile, most: int) -> int:
    """How many bytes the rows are in memory, counted up to `most`. A text that is stored once and named a million times
    is in no size that the file states, so texts are left stored once while they are counted.
    """
    leaves = [held.schema.column(n) for n in range(held.metadata.num_columns)]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    size = 0
    for batch in pq.ParquetFile(file, read_dictionary=texts).iter_batches(batch_size=ROWS_COUNTED):
        for column in batch.columns:
            inner = column.flatten() if pa.types.is_list(column.type) else column
            size += inner.nbytes
            if pa.types.is_dictionary(inner.type):
                lengths = pc.binary_length(inner.dictionary)
                size += (pc.sum(lengths.take(inner.indices)).as_py() or 0) - inner.dictionary.nbytes
        if size > most:
            break
    return size


def refuse(file: Path | str, why: str, instead: str) -> ValueError:
    return ValueError(f"{file} {why}; {instead}")


# --- the manifest -----------------------------------------------------------------------------


def _manifest(source: BinaryIO, file: Path) -> Manifest:
    name, size = _next(source, file)
    if name != MANIFEST or size > MANIFEST_BYTES:
        raise refuse(file, f"opens with {name[:60]!r} of {size} bytes, not with a manifest", "give a file of `export`")
    try:
        said = json.loads(source.read(size))
        version = said["format"]
    except (ValueError, RecursionError, TypeError, KeyError) as problem:
        raise refuse(file, f"has a damaged manifest ({type(problem).__name__})", AGAIN) from problem
    if version != FORMAT:
        raise refuse(file, f"is of format {str(version)[:60]!r}, this reads {FORMAT!r}", "use the same version of both")
    try:
        manifest = Manifest.of(said)
        check_types(manifest, Manifest, "manifest")
    except (ValueError, RecursionError, TypeError, AttributeError) as problem:
        why = f"has a manifest that this version does not read ({problem})"[:300]
        raise refuse(file, why, "use the same version on both sides") from problem
    _skip(source, size, file)
    _check_names(manifest, file)
    _check_files(manifest, file)
    return manifest


def _check_names(manifest: Manifest, file: Path) -> None:
    """Whatever becomes part of a path is a name or a hash."""
    release, snapshot = manifest.release, manifest.snapshot
    hashes = (release.model.sha256, release.model.base, release.model.adapter or "0" * 64, release.index.checksum)
    forms = (
        (ASSISTANT, release.assistant),
        *((r"snap-[0-9a-f]{20}", one) for one in (snapshot.id, release.index.snapshot)),
    )
    forms += tuple((r"[0-9a-f]{64}", one) for one in hashes)
    for form, value in forms:
        if not re.fullmatch(form, value):
            raise refuse(file, f"names something {value[:60]!r}, which does not look like {form}", "do not use it")
    others = {release.index.assistant, snapshot.assistant, manifest.sources.assistant} - {release.assistant}
    if manifest.id != release.id or others:
        why = f"says {manifest.id} and holds {release.id}, of {', '.join({release.assistant, *others})}"
        raise refuse(file, why, "it was altered, or made by another version: export it again")


def _check_files(manifest: Manifest, file: Path) -> None:
    for held in manifest.files:
        if not NAMES.fullmatch(held.name):
            raise refuse(file, f"holds {held.name[:80]!r}, which is no part of a release", "do not use it")
        if held.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", held.sha256):
            raise refuse(file, f"gives {held.name} the size {held.size} or a sha256 that is none", AGAIN)
    if len(manifest.names) < len(manifest.files):
        raise refuse(file, "names a file twice", AGAIN)
    if missing := {"index.parquet", "snapshot/COMPLETE"} - manifest.names:
        raise refuse(file, f"lacks {sorted(missing)[0]}", AGAIN)
    wanted, there = sum(held.size for held in manifest.files), file.stat().st_size
    if wanted > there:
        raise refuse(file, f"has {there} bytes, and its manifest names {wanted}", "it was cut short: copy it again")


def check_types(value: object, kind: type, name: str) -> None:
    """Raises TypeError when a value of a record, or one in it, is not of the declared kind."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if type(None) in arguments:
        if value is not None:
            check_types(value, next(one for one in arguments if one is not type(None)), name)
    elif is_dataclass(kind) and isinstance(value, kind):
        hints = typing.get_type_hints(kind)
        for field in fields(kind):
            check_types(getattr(value, field.name), hints[field.name], f"{name}.{field.name}")
    elif origin is tuple and isinstance(value, tuple):
        for inner in value:
            check_types(inner, arguments[0], name)
    elif type(value) is not kind and (type(value), kind) != (int, float):
        raise TypeError(f"{name} is {str(value)[:60]!r}")


# --- tar, the plain part of it ------------------------------------------------------------------


def _opened(file: Path) -> BinaryIO:
    if not file.is_file():
        raise refuse(file, "is no file", "give the file that `export --to` wrote")
    return open(file, "rb")


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def _next(source: BinaryIO, file: Path) -> tuple[str, int]:
    """Name and size of the next file; only plain ones are known."""
    try:
        member = tarfile.TarInfo.frombuf(source.read(BLOCK), "ascii", "strict")
    except (tarfile.HeaderError, UnicodeError) as problem:
        raise refuse(file, f"ends or breaks where a file should begin ({problem})", AGAIN) from problem
    if member.type != tarfile.REGTYPE or member.size < 0:
        what = "a link, a folder, or another thing that is no plain file"
        raise refuse(file, f"holds {member.name[:80]!r}, {what}", "do not use it")
    return member.name, member.size


def _copy(source: BinaryIO, out: BinaryIO, held: Packed, what: str) -> None:
    """Copies exactly the bytes of a file, and refuses others than were promised."""
    sha, left = hashlib.sha256(), held.size
    while left and (block := source.read(min(left, 1 << 20))):
        sha.update(block)
        out.write(block)
        left -= len(block)
    if left or sha.hexdigest() != held.sha256:
        raise refuse(what, f"is not what the manifest says: {left} bytes missing, or another sha256", AGAIN)


def _padding(size: int) -> bytes:
    return bytes(-size % BLOCK)


def _skip(source: BinaryIO, size: int, file: Path) -> None:
    if source.read(-size % BLOCK).strip(b"\0"):
        raise refuse(file, "hides bytes between its files", "do not use it")
