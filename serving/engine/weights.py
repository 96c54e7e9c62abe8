"""Weights files, read with suspicion: headers against the file, before a library trusts their counts and offsets.

Each refusal is a ValueError that names the file and says what to do.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections import Counter
from pathlib import Path

import numpy as np

WEIGHTS = re.compile(r"[\w.-]+\.safetensors")
INDEX = "model.safetensors.index.json"
JSON_BYTES = 64 << 20
HEADER_BYTES = 100 << 20  # the limit of the safetensors library itself
MOST_TENSORS = 100_000
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
WIDE = {"<I": 4, "<Q": 8}
VALUES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF value type -> bytes
EXPONENTS = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0x7F8 << 20), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def refuse(file: Path | str, why: str, instead: str) -> ValueError:
    return ValueError(f"{file} {why}; {instead}")


def read_json(file: Path) -> dict:
    """A JSON object without doubled keys, at most 64 MiB of it."""
    if not file.is_file():
        raise refuse(file, "is missing", "give the whole folder of a Hugging Face model")
    if file.stat().st_size > JSON_BYTES:
        raise refuse(file, f"is larger than {JSON_BYTES >> 20} MiB", "no model needs that: do not use it")
    return _parse(file, file.read_bytes())


def _parse(file: Path, text: bytes) -> dict:
    def once(pairs):
        if len(read := dict(pairs)) < len(pairs):
            doubled = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise ValueError(f"{doubled!r} stands there twice")
        return read

    try:
        read = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as problem:
        raise refuse(file, f"is damaged or no JSON ({problem})"[:300], "get the file again") from problem
    if not isinstance(read, dict):
        raise refuse(file, "holds no JSON object", "get the file again")
    return read


def shapes(folder: Path, finite: bool = False) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape over all safetensors files of a folder, which an index file has to agree with."""
    parts = sorted(file.name for file in folder.iterdir() if WEIGHTS.fullmatch(file.name))
    if not parts:
        raise refuse(folder, "holds no weights", "only safetensors weights are read: convert them")
    held = {name: check_safetensors(folder / name, finite) for name in parts}
    found = {tensor: shape for tensors in held.values() for tensor, shape in tensors.items()}
    if sum(map(len, held.values())) > len(found):
        raise refuse(folder, "has a tensor in two files", "get the files again")
    if (folder / INDEX).exists():
        places = read_json(folder / INDEX).get("weight_map")
        for tensor, name in places.items() if isinstance(places, dict) else [("weight_map", places)]:
            if not isinstance(name, str) or not WEIGHTS.fullmatch(name):
                raise refuse(folder / INDEX, f"leads to {name!r}", "an index names files beside it: get it again")
            if tensor not in held.get(name, ()):
                raise refuse(folder / INDEX, f"looks for {tensor!r} in {name} in vain", "get the files again")
    elif len(parts) > 1:
        raise refuse(folder, f"has {len(parts)} files of weights but no {INDEX}", "get the files again")
    return found


def check_safetensors(file: Path, finite: bool = False) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, after checking the header against the file; `finite`: the numbers too.

    The tensors must fill the file without gap or overlap (format: huggingface/safetensors README).
    """
    again = "it is damaged or not safetensors: get it again, or convert it"
    size = file.stat().st_size
    with open(file, "rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            raise refuse(file, f"says its header has {length} bytes, in a file of {size}", again)
        header = _parse(file, opened.read(length))
    if not isinstance(header.pop("__metadata__", {}), dict) or len(header) > MOST_TENSORS:
        raise refuse(file, f"lists {len(header)} tensors", again)
    spans = []
    for name, about in header.items():
        kind, shape, place = (about.get(key) for key in ("dtype", "shape", "data_offsets")) if about else (None,) * 3
        whole = [isinstance(part, list) and all(type(n) is int and n >= 0 for n in part) for part in (shape, place)]
        if not all(whole) or len(place) != 2:
            raise refuse(file, f"describes tensor {name!r} wrongly", again)
        if kind not in SIZES:
            raise refuse(file, f"holds {name!r} as {kind}", f"give unquantized weights ({', '.join(SIZES)})")
        if place[1] - place[0] != math.prod(shape) * SIZES[kind]:
            raise refuse(file, f"gives {place[1] - place[0]} bytes to {name!r} of shape {shape} {kind}", again)
        spans.append((*place, name, kind))
    end = 0
    for start, stop, name, _ in sorted(spans):
        if start != end:
            raise refuse(file, f"has a gap or an overlap before {name!r}", again)
        end = stop
    if 8 + length + end != size:
        raise refuse(file, f"should have {8 + length + end} bytes and has {size}", again)
    if finite and size > 8 + length:
        data = np.memmap(file, np.uint8, "r", offset=8 + length)
        for start, stop, name, kind in spans:
            if kind in EXPONENTS and not _finite(data[start:stop], kind):
                raise refuse(file, f"holds NaN or infinite numbers in {name!r}", "training diverged: use other weights")
    return {name: tuple(about["shape"]) for name, about in header.items()}


def _finite(data: np.ndarray, kind: str) -> bool:
    """A float is NaN or infinite exactly when its exponent is all ones."""
    number, ones = EXPONENTS[kind]
    words = np.frombuffer(data.tobytes(), number) if len(data) < 1 << 20 else data.view(number)
    mask = words.dtype.type(ones)
    return all(not ((words[at : at + (1 << 22)] & mask) == mask).any() for at in range(0, len(words), 1 << 22))


def check_gguf(file: Path) -> None:
    """Read the whole header of a GGUF file (format: ggml docs/gguf.md) against the file's size, before any reader does.

    gguf and OpenVINO GenAI trust counts and offsets. Raises ValueError for counts, lengths or places outside the file.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    again, at = "it is damaged: export it again, or get it again", 4
    with open(file, "rb") as opened:
        if opened.read(4) != b"GGUF":
            raise refuse(file, "does not begin with GGUF", again)
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def take(form: str) -> int:
        nonlocal at
        wide = WIDE[form]
        if at + wide > len(data):
            raise refuse(file, f"ends in its header, at byte {at} of {len(data)}", again)
        (number,) = struct.unpack_from(form, data, at)
        at += wide
        return number

    def skip(count: int, each: int = 1) -> None:
        nonlocal at
        if count * each > len(data) - at:
            raise refuse(file, f"promises {count} values at byte {at}, more than it holds", again)
        at += count * each

    def value(kind: int, depth: int = 0) -> None:
        if kind in VALUES:
            skip(VALUES[kind])
        elif kind == 8:
            skip(take("<Q"))
        elif kind == 9 and depth == 0:
            inner, count = take("<I"), take("<Q")
            if inner in VALUES:
                return skip(count, VALUES[inner])
            if count > len(data) // 8:
                raise refuse(file, f"promises a list of {count} at byte {at}", again)
            for _ in range(count):
                value(inner, 1)
        else:
            raise refuse(file, f"has a value of unknown type {kind} at byte {at}", again)

    version, tensors, pairs = take("<I"), take("<Q"), take("<Q")
    if version not in (2, 3) or tensors > MOST_TENSORS or pairs > MOST_TENSORS:
        raise refuse(file, f"says version {version}, {tensors} tensors, {pairs} settings", again)
    for _ in range(pairs):
        skip(take("<Q"))
        value(take("<I"))
    spans = []
    for _ in range(tensors):
        skip(take("<Q"))
        dimensions = take("<I")
        if dimensions > 4:
            raise refuse(file, f"has a tensor of {dimensions} dimensions", again)
        count, kind, start = math.prod(take("<Q") for _ in range(dimensions)), take("<I"), take("<Q")
        if kind not in list(GGMLQuantizationType):
            raise refuse(file, f"has a tensor of unknown type {kind}", again)
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        spans.append((start, start + count // block * width))
    first, end = at + -at % 32, 0
    for start, stop in sorted(spans):
        if start < end or first + stop > len(data):
            raise refuse(file, "has tensors that overlap or lie behind its end", again)
        end = stop
