"""Engines: what turns a prompt into text. A new one is one module, one row in ENGINES, and one test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.records import Decoding, Generation, Model, digest, file_sha256
from serving.engine.safety import check_adapter, files
from serving.engine.weights import check_gguf, check_safetensors

SAFE_SUFFIXES = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Piece:
    """A stretch of streamed text: the new text, completion tokens so far, '' or on the last one why it ended.

    `finish_reason` is 'stop' (end token or stop string) or 'length' (max_new_tokens reached), of an upstream also
    'content_filter' or 'tool_calls'. `tool_calls`: on the last one, what is to be called, OpenAI's list as JSON.
    """

    text: str
    tokens: int
    finish_reason: str = ""
    prompt_tokens: int = 0
    tool_calls: str = ""


class Unavailable(RuntimeError):
    """The model can not answer now. `retry_after`: seconds, by its own word; `again`: whether another try may help."""

    def __init__(self, message: str, retry_after: float | None = None, again: bool = False):
        super().__init__(message, retry_after, again)  # all of them, so that it can be sent between processes
        self.retry_after, self.again = retry_after, again

    def __str__(self) -> str:
        return self.args[0]


class Engine(Protocol):
    """A loaded model. Every method may be called from many threads at once."""

    version: str

    def stream(self, prompt: str, decoding: Decoding) -> Iterator[Piece]:
        """Pieces as they are written. The request starts with the first `next`; closing the iterator cancels it."""

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> Iterable[Generation]:
        """All prompts at once, batched; answers in the order of the prompts.

        Where each is paid for they come as they are there, so that a failure takes only those after it.
        """

    def count(self, text: str) -> int:
        """How many tokens the model reads `text` as; role marks count as one each."""

    def check(self) -> None:
        """Raise when it can not answer and a new one in its place could."""

    def close(self) -> None:
        """Stop what is running and free the model; running requests raise RuntimeError."""


def _openvino(model: Model) -> Engine:
    from serving.engine.openvino import OpenVINOEngine

    return OpenVINOEngine(model)


def _transformers(model: Model) -> Engine:
    from serving.engine.transformers import TransformersEngine

    return TransformersEngine(model)


def _upstream(model: Model) -> Engine:
    from serving.engine.upstream import UpstreamEngine

    return UpstreamEngine(model)


ENGINES = {"openvino": _openvino, "transformers": _transformers, "upstream": _upstream}
CONSTRAINED = ("openvino", "upstream")
"""The engines that can be held to a JSON schema; the others raise ValueError for one."""
CALLING = ("upstream",)
"""The engines that pass on tools and what came of calling them; the others must not be asked to."""
ALIVE = Decoding(max_new_tokens=1)
"""One token of anything: what `check` asks of a model in this process."""


def artifact_sha256(uri: str | Path, adapter: str | None = None) -> str:
    """The hash a Model record carries: of the file at `uri`, or for a folder of its file names and their hashes.

    With the sha256 of an `adapter` that is served beside it, of both: two adapters on one base are two artifacts.
    """
    path = Path(uri)
    held = {str(file.relative_to(path)): file_sha256(file) for file in _files(path)} if path.is_dir() else None
    found = file_sha256(path) if held is None else digest(held)
    return digest(found, adapter) if adapter else found


def open_engine(model: Model) -> Engine:
    """Load `model` after verifying every file it names by sha256.

    Raises ValueError for an unknown engine, a file format that can run code, or a hash that differs.
    """
    if model.engine not in ENGINES:
        raise ValueError(f"no engine {model.engine!r}; serving.engine.ENGINES has {', '.join(sorted(ENGINES))}")
    verify_model(model)
    return ENGINES[model.engine](model)


def verify_model(model: Model) -> None:
    """`verify` for every file that `model` is served from; an upstream has none, only its name can be compared."""
    if model.engine == "upstream":
        from serving.engine.upstream import upstream_model

        if (named := upstream_model(model.uri)).sha256 != model.sha256:
            raise ValueError(f"{model.uri} has sha256 {named.sha256}, its record says {model.sha256}; name it anew")
        return
    if not (model.adapter_uri and model.engine == "transformers"):  # elsewhere the adapter is merged into the file
        return verify(model.uri, model.sha256)
    verify(model.adapter_uri, model.adapter)
    verify(model.uri, model.sha256, model.adapter)
    weights = base_sha256(Path(model.uri))
    if weights != model.base:
        raise ValueError(f"{model.uri} holds the base {weights}, the adapter was made for {model.base}; use that base")
    check_adapter(Path(model.adapter_uri).parent, Path(model.uri), model.base)


def base_sha256(folder: Path) -> str:
    """The hash of a base: of its weights file, or of all of them by name."""
    parts = {file.name: file_sha256(file) for file in _files(folder) if file.suffix == ".safetensors"}
    return next(iter(parts.values())) if len(parts) == 1 else digest(parts)


def verify(uri: str, sha256: str, adapter: str | None = None) -> None:
    """Refuse formats that can run code on loading, compare hashes, and check the weights' headers (invariant 12).

    `sha256` is that of `artifact_sha256(uri, adapter)`. About 0.5 s for 145 MB.
    """
    path = Path(uri)
    if not path.exists():
        raise FileNotFoundError(f"{uri} is gone; build the model again, or for the base run serving.engine.models")
    held = files(path) if path.is_dir() else {path.name: path}
    weights = [place for name, place in held.items() if Path(name).suffix in SAFE_SUFFIXES]
    if not weights:
        raise ValueError(f"{uri} holds no weights; only {' and '.join(SAFE_SUFFIXES)} files are served")
    if (found := artifact_sha256(path, adapter)) != sha256:
        raise ValueError(f"{uri} has sha256 {found}, its record says {sha256}; it was altered, do not serve it")
    for place in weights:
        check_gguf(place) if place.suffix == ".gguf" else check_safetensors(place)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "COMPLETE")


def settled(text: str, stops: Sequence[str], ended: bool) -> tuple[str, bool]:
    """The part of `text` that later tokens cannot change, and whether a stop string was met (the text ends before it).

    While more may come, an unfinished character (U+FFFD at the end) and a tail that may begin a stop string are held.
    >>> settled("Answer: 3 days\\nQues", ["\\nQuestion"], ended=False)
    ('Answer: 3 days', False)
    """
    found = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    if found:
        return text[: min(found)], True
    if ended:
        return text, False
    held = len(text) - len(text.rstrip("�"))
    for stop in stops:
        held = max(held, next((n for n in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:n])), 0))
    return text[: len(text) - held], False
