"""Sections into chunks: what is embedded, searched by words, shown to the model and cited."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from data.fences import stretches
from data.records import Chunk, ChunkSettings, Document, Section, digest

# Part of every chunker hash: raise it when `split` or `passage` changes what comes out.
VERSION = "chunks-2"

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]”’]*\s+(?=[\"'(\[“‘]?[A-Z0-9À-Þ])|(?<=[。！？])")
_ROW = re.compile(r"(?:^|\s)\|(?:\s|$)")

Count = Callable[[str], int]


class Unit(NamedTuple):
    """Text that is not to be cut, with its tokens."""

    text: str
    tokens: int


def chunker_hash(settings: ChunkSettings) -> str:
    """16 hex digits: equal exactly when the same sections give the same chunks and the same embedded text."""
    return digest(VERSION, settings)[:16]


def passage(title: str, section: str, text: str) -> str:
    """The text of a chunk as it is embedded and searched by words: its title and heading give it context."""
    return "\n".join(part for part in (title, section, text) if part)


def chunk_ids(contents: Iterable[tuple[str, ...]]) -> list[str]:
    """Ids of chunks given as (document, title, section, text), or with access and tenant behind these: 32 hex digits,
    equal contents told apart by ordinal.

    The title is part of the id because it is shown to the model: a new title makes a new chunk. Access and tenant are
    part of it where one is set. Equal contents only occur within a section, so ids can be made section by section.
    """
    seen: Counter = Counter()
    ids = []
    for content in contents:
        content = content if any(content[4:]) else content[:4]
        ids.append(digest(*content, seen[content])[:32])
        seen[content] += 1
    return ids


def split(document: Document, settings: ChunkSettings, count: Count) -> list[Chunk]:
    """Chunks of a document in reading order: those of its sections, one after the other."""
    return [chunk for section in document.sections for chunk in split_section(document, section, settings, count)]


def split_section(document: Document, section: Section, settings: ChunkSettings, count: Count) -> list[Chunk]:
    """Chunks of one section in reading order, at least one if it has text; `count` gives the tokens of a text.

    A chunk never crosses a section. What is at most `max_tokens` long is one chunk (but see `sentence`). A part under
    `min_tokens` joins a neighbour, so a chunk may exceed the budget by less than that. Raises ValueError on settings
    that cannot work.
    """
    require_sound(settings)
    if not section.text.strip():
        return []
    texts = STRATEGIES[settings.strategy](section.text, settings, count)
    mark, place = section.hash, (document.id, document.title, section.heading)
    ids = chunk_ids((*place, text, document.access, document.tenant) for text in texts)
    return [
        Chunk(chunk_id, *place, mark, text, part, section.page, document.modified, document.language, document.access,
              document.tenant)
        for part, (chunk_id, text) in enumerate(zip(ids, texts, strict=True))
    ]  # fmt: skip


def require_sound(settings: ChunkSettings) -> None:
    """Raises ValueError, saying what to set instead, on settings that cannot work."""
    if settings.strategy not in STRATEGIES:
        raise ValueError(f"no chunk strategy {settings.strategy!r}; set strategy to one of {', '.join(STRATEGIES)}")
    if settings.max_tokens < 8 or not 0 <= settings.min_tokens < settings.max_tokens:
        raise ValueError(f"cannot split with {settings}; set max_tokens to 8 or more and min_tokens below it")
    if settings.overlap and settings.strategy != "window":
        raise ValueError(
            f"overlap is {settings.overlap} for {settings.strategy!r}; set it to 0, or strategy to 'window'"
        )
    if not 0 <= settings.overlap <= settings.max_tokens // 2:
        raise ValueError(f"overlap is {settings.overlap}; set it to 0 up to half of max_tokens, {settings.max_tokens}")


# --- strategies -------------------------------------------------------------------------------


def structure(text: str, settings: ChunkSettings, count: Count) -> list[str]:
    """Parts of about equal size, cut at line and sentence ends; tables and fenced code are whole where they fit.

    A table over the budget repeats its header row in each part; code over it is cut at empty lines, else at line ends,
    and each part is fenced again. Only a sentence, row or line that is itself over the budget is cut between words.
    """
    total = count(text)
    if total <= settings.max_tokens:
        return [text.strip()]
    return _texts(_packed(_units(text, settings, count), total, settings.max_tokens, settings.min_tokens))


def window(text: str, settings: ChunkSettings, count: Count) -> list[str]:
    """As many whole sentences as fit; the next part begins with the last of them, up to `overlap` tokens.

    Blind to tables and code: a plain window to compare with.
    """
    if count(text) <= settings.max_tokens:
        return [text.strip()]
    units = list(_sentences(text, settings.max_tokens, count, settings.overlap))
    windows: list[tuple[int, int]] = []
    start = end = 0
    while end < len(units):
        fresh, size = end, _tokens(units[start:end])
        while end < len(units) and (end == fresh or size + units[end].tokens <= settings.max_tokens):
            size += units[end].tokens
            end += 1
        if windows and end == len(units) and _tokens(units[fresh:]) < settings.min_tokens:
            start, _ = windows.pop()
        windows.append((start, end))
        start, kept = end, 0
        while end < len(units):
            kept += units[start - 1].tokens
            if kept > min(settings.overlap, settings.max_tokens - units[end].tokens):
                break
            start -= 1
    return _texts(_sum(units[start:end]) for start, end in windows)


def sentence(text: str, settings: ChunkSettings, count: Count) -> list[str]:
    """As few whole sentences as make `min_tokens`; tables and fenced code as in `structure`."""
    parts: list[Unit] = []
    for unit in _units(text, settings, count):
        if parts and parts[-1].tokens < settings.min_tokens and _tokens([parts[-1], unit]) <= settings.max_tokens:
            parts[-1] = _sum([parts[-1], unit])
        else:
            parts.append(unit)
    return _texts(_joined(parts, settings.max_tokens, settings.min_tokens))


STRATEGIES: dict[str, Callable[[str, ChunkSettings, Count], list[str]]] = {
    "structure": structure,
    "window": window,
    "sentence": sentence,
}


# --- units ------------------------------------------------------------------------------------


def _units(text: str, settings: ChunkSettings, count: Count) -> Iterator[Unit]:
    """The text in units, each counted once; parts of code and tables may exceed the budget by under `min_tokens`."""
    for kind, block in _blocks(text):
        if kind == "prose":
            yield from _sentences(block, settings.max_tokens, count)
        elif (tokens := count(block)) <= settings.max_tokens:
            yield Unit(block, tokens)
        else:
            yield from _cut(kind, block, tokens, settings, count)


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    """(prose, table or code, text): a table is two lines or more with cells, code comes with its fences."""
    for code, stretch in stretches(text):
        if code:
            yield "code", stretch
            continue
        for cells, lines in groupby(stretch.splitlines(keepends=True), lambda line: bool(_ROW.search(line))):
            lines = list(lines)
            yield "table" if cells and len(lines) > 1 else "prose", "".join(lines)


def _cut(kind: str, block: str, tokens: int, settings: ChunkSettings, count: Count) -> Iterator[Unit]:
    """Code or a table over the budget in parts, each with the fences or the header row of the whole."""
    opening, body = block.split("\n", 1)
    opening, closing, pieces = f"{opening}\n", "", _lines
    if kind == "code":
        closing = "`" * (len(opening) - len(opening.lstrip("`")))
        body, closing, pieces = re.sub(rf"^{closing}`*[ \t]*\n*\Z", "", body, flags=re.M), f"{closing}\n", _paragraphs
    around = count(opening) + count(closing)
    room = settings.max_tokens - around
    if room < settings.max_tokens // 2:  # a header or language so long that it is not worth repeating
        yield from _sentences(block, settings.max_tokens, count)
        return
    for part in _packed(pieces(body, room, count), tokens - around, room, settings.min_tokens):
        inside = part.text.strip("\n")
        yield Unit(f"{opening}{inside}\n{closing}", part.tokens + around)


def _paragraphs(text: str, most: int, count: Count) -> Iterator[Unit]:
    """Code in stretches that end with empty lines; one over the budget in lines."""
    for stretch in re.split(r"(?<=\n\n)(?!\n)", text):
        if (tokens := count(stretch)) <= most:
            yield Unit(stretch, tokens)
        else:
            yield from _lines(stretch, most, count)


def _lines(text: str, most: int, count: Count) -> Iterator[Unit]:
    for line in text.splitlines(keepends=True):
        yield from _fitting(line, most, most, count)


def _sentences(text: str, most: int, count: Count, piece: int = 0) -> Iterator[Unit]:
    """The text in sentences and line ends; joined they are the text again. One over the budget is cut between words,
    into pieces of at most `piece` tokens (0: the budget)."""
    for line in text.splitlines(keepends=True):
        start = 0
        for end in [match.end() for match in _SENTENCE_END.finditer(line)] + [len(line)]:
            if line[start:end]:
                yield from _fitting(line[start:end], most, piece or most, count)
            start = end


def _fitting(text: str, most: int, piece: int, count: Count) -> Iterator[Unit]:
    """One unit, or if it is over the budget, units cut between words; a word over it is cut between characters."""
    if (tokens := count(text)) <= most:
        yield Unit(text, tokens)
        return
    current = Unit("", 0)
    for word in re.findall(r"\s*\S+\s*$|\s*\S+", text):
        parts = [Unit(word, count(word))]
        if parts[0].tokens > piece:
            # A token is at least one character, so a piece of as many characters always fits.
            cut = [word[at : at + piece] for at in range(0, len(word), piece)]
            parts = [Unit(part, count(part)) for part in cut]
        for part, tokens in parts:
            if current.text and current.tokens + tokens > piece:
                yield current
                current = Unit("", 0)
            current = Unit(current.text + part, current.tokens + tokens)
    if current.text:
        yield current


# --- parts ------------------------------------------------------------------------------------


def _packed(units: Iterable[Unit], total: int, most: int, fewest: int) -> list[Unit]:
    """Units, `total` tokens in all, in parts of about equal size within the budget."""
    aim = total / -(-total // most)
    parts: list[Unit] = []
    current: list[Unit] = []
    size = 0
    for unit in units:
        # Closed where the next unit does not fit, or where stopping is nearer to an equal share than going on.
        equal = size >= aim / 2 and size + unit.tokens / 2 > aim
        if current and (size + unit.tokens > most or equal):
            parts.append(_sum(current))
            current, size = [], 0
        current.append(unit)
        size += unit.tokens
    return _joined([*parts, _sum(current)], most, fewest)


def _joined(parts: list[Unit], most: int, fewest: int) -> list[Unit]:
    """Parts under `fewest` tokens joined to the part behind them, which they mostly introduce, else to the one before,
    as long as that exceeds the budget by less than `fewest`."""
    joined: list[Unit] = []
    for part in reversed(parts):
        small = joined and min(part.tokens, joined[-1].tokens) < fewest
        if small and part.tokens + joined[-1].tokens < most + fewest:
            joined[-1] = _sum([part, joined[-1]])
        else:
            joined.append(part)
    return joined[::-1]


def _sum(units: Sequence[Unit]) -> Unit:
    return Unit("".join(unit.text for unit in units), _tokens(units))


def _tokens(units: Sequence[Unit]) -> int:
    return sum(unit.tokens for unit in units)


def _texts(parts: Iterable[Unit]) -> list[str]:
    return [text for part in parts if (text := part.text.strip())]
