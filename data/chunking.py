"""Sections into chunks: what is embedded, searched by words, shown to the model and cited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from data.records import Chunk, ChunkSettings, Document, digest

# Part of every chunker hash: raise it when `split` or `passage` changes what comes out.
VERSION = "chunks-1"

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]”’]*\s+(?=[\"'(\[“‘]?[A-Z0-9À-Þ])|(?<=[。！？])")


def chunker_hash(settings: ChunkSettings) -> str:
    """16 hex digits: equal exactly when the same sections give the same chunks and the same embedded text."""
    return digest(VERSION, settings)[:16]


def passage(title: str, section: str, text: str) -> str:
    """The text of a chunk as it is embedded and searched by words: its title and heading give it context."""
    return "\n".join(part for part in (title, section, text) if part)


def chunk_ids(contents: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Ids of chunks given as (document, title, section, text): 32 hex digits, equal contents told apart by ordinal.

    The title is part of the id because it is shown to the model: a new title makes a new chunk.
    """
    seen: Counter = Counter()
    ids = []
    for content in contents:
        ids.append(digest(*content, seen[content])[:32])
        seen[content] += 1
    return ids


def split(document: Document, settings: ChunkSettings, count: Callable[[str], int]) -> list[Chunk]:
    """Chunks of a document in reading order; `count` gives the tokens of a text in the embedder.

    A chunk never crosses a section. A section over `max_tokens` is cut into parts of about equal size, at line and
    sentence ends; only a sentence that is itself over the budget is cut between words. A part under `min_tokens`
    at the end of a section joins the one before it, so a part may exceed the budget by that much.
    Every section that has text gives at least one chunk.
    """
    if settings.max_tokens < 8 or not 0 <= settings.min_tokens < settings.max_tokens:
        raise ValueError(f"cannot split with {settings}; set max_tokens to 8 or more and min_tokens below it")
    cut = [(section, text) for section in document.sections for text in _parts(section.text, settings, count)]
    ids = chunk_ids((document.id, document.title, section.heading, text) for section, text in cut)
    return [
        Chunk(chunk_id, document.id, document.title, section.heading, section.hash, text)
        for chunk_id, (section, text) in zip(ids, cut, strict=True)
    ]


def _parts(text: str, settings: ChunkSettings, count: Callable[[str], int]) -> list[str]:
    """The parts of one section's text."""
    if not text.strip():
        return []
    total = count(text)
    if total <= settings.max_tokens:
        return [text.strip()]
    aim = total / -(-total // settings.max_tokens)
    parts: list[tuple[str, int]] = []
    current, size = "", 0
    for unit, tokens in _units(text, settings.max_tokens, count):
        # Closed when the next unit does not fit, or when stopping here is nearer to an equal share than going on.
        if current and (size + tokens > settings.max_tokens or size + tokens / 2 > aim):
            parts.append((current, size))
            current, size = "", 0
        current, size = current + unit, size + tokens
    if parts and size < settings.min_tokens:
        before, tokens = parts.pop()
        current, size = before + current, tokens + size
    parts.append((current, size))
    return [part.strip() for part, _ in parts if part.strip()]


def _units(text: str, most: int, count: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    """The text in pieces that are not to be cut, each with its tokens; joined they are the text again."""
    for line in text.splitlines(keepends=True):
        start = 0
        for end in [match.end() for match in _SENTENCE_END.finditer(line)] + [len(line)]:
            sentence, start = line[start:end], end
            if not sentence:
                continue
            tokens = count(sentence)
            if tokens <= most:
                yield sentence, tokens
            else:
                yield from _words(sentence, most, count)


def _words(sentence: str, most: int, count: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    """A sentence over the budget, cut between words; a single word over the budget is cut between characters."""
    current, size = "", 0
    for word in re.findall(r"\s*\S+\s*$|\s*\S+", sentence):
        # A token is at least one character, so a piece of `most` characters always fits.
        for piece in [word] if count(word) <= most else [word[i : i + most] for i in range(0, len(word), most)]:
            tokens = count(piece)
            if current and size + tokens > most:
                yield current, size
                current, size = "", 0
            current, size = current + piece, size + tokens
    if current:
        yield current, size
