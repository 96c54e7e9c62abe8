"""What every reader is made of: decoded and clean text, documents of sections, and the labels on them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from data.fences import stretches
from data.records import Document, Example, Quarantined, Section

# A file, or what a compressed file unpacks to, past this is refused: it would not be a document.
MOST_BYTES = 64 << 20
# Characters that are seen by a model but not by a person: bidirectional marks, zero width, tags, controls.
_INVISIBLE = dict.fromkeys(
    code
    for code in (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F),
                 *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000),
                 *range(0xE0000, 0xE0080))
    if code not in (0x09, 0x0A)
)  # fmt: skip
_LABEL = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass
class Read:
    """What was found: `aliases` maps the id of a dropped exact duplicate to the document that was kept."""

    documents: list[Document] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        return len(self.aliases)


class Unreadable(ValueError):
    """A file or document that cannot be used; the message is the reason in its quarantine row."""


class Part(NamedTuple):
    """A section before it is cleaned; `page` counts from 1."""

    heading: str
    text: str
    page: int | None = None


class Outline(NamedTuple):
    """A marked-up page: its title or '', its blocks, and what it says about itself, for `labels`.

    A block is (level, line): 0 for text, 1 to 6 a heading.
    """

    title: str
    blocks: list[tuple[int, str]]
    labels: Sequence[tuple[str, object]] = ()


def decoded(data: bytes) -> str:
    """Text, its lines ending in a line feed, of UTF-8, or of UTF-16 with a byte order mark.

    Raises UnicodeDecodeError; Unreadable on binary data.
    """
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if "\0" in text:
        raise Unreadable("binary data, not text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def clean(text: str) -> str:
    """Text as it is stored: NFC, nothing invisible, single blanks inside a line, never two empty lines together.

    Blanks and empty lines between code fences stay as they are.
    """
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " "))
    text = re.sub(r"[ \t]+(?=\n)", "", text.translate(_INVISIBLE))
    return "".join(part if code else _squeezed(part) for code, part in stretches(text)).strip("\n").rstrip()


def _squeezed(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\A\n+", "\n", re.sub(r"(?<=\S)[ \t]+", " ", text)))


def one_line(value: object) -> str:
    """A title, id, heading, question or answer: one clean line."""
    return " ".join(clean(str(value)).split()) if value is not None else ""


def stem(name: str) -> str:
    """A title for a document that has none: its file name in words."""
    return re.sub(r"[-_]+", " ", Path(name).name.split(".")[0]).strip().capitalize() or name


def sectioned(
    document_id: str, title: str, parts: Iterable[Part], found: Iterable[tuple[str, object]] = ()
) -> list[Document]:
    """A list with the document made of the parts that have text, or an empty list when none has.

    Headings become unique within the document ('Example', 'Example (2)'), so that document and heading name a section.
    Raises Unreadable on bad `labels`.
    """
    document_id, title, used, sections = one_line(document_id), one_line(title), set(), []
    for heading, text, page in parts:
        if not (text := clean(text)):
            continue
        heading = base = one_line(heading)
        number = 1
        while heading in used:
            number += 1
            heading = f"{base} ({number})".strip()
        used.add(heading)
        sections.append(Section(document_id, title, heading, text, page))
    marks = labels(found)
    return [Document(document_id, title, tuple(sections), **marks)] if sections else []


def outlined(name: str, outline: Outline) -> list[Document]:
    """A document from an outline: the first heading of level 1 is the title, the other headings make sections."""
    path: list[tuple[int, str]] = []
    parts: list[tuple[str, list[str]]] = [("", [])]
    heading_title = ""
    for level, text in outline.blocks:
        if level == 0:
            parts[-1][1].append(text)
        elif level == 1 and not heading_title:
            heading_title = text
        else:
            path = [(depth, heading) for depth, heading in path if depth < level] + [(level, text)]
            parts.append((" > ".join(heading for _, heading in path), []))
    title = heading_title or outline.title or stem(name)
    return sectioned(name, title, (Part(heading, "\n".join(lines)) for heading, lines in parts), outline.labels)


def labels(found: Iterable[tuple[str, object]]) -> dict[str, str]:
    """`modified` (the latest), `language`, `access` and `tenant` of a document, from all that it says of them.

    None stands for a row that does not say; for access and tenant that is a disagreement with one that does. Raises
    Unreadable then, and on a label that is no plain word: a document must never become public by a slip of the pen.
    """
    said: dict[str, list[object]] = {"modified": [], "language": [], "access": [], "tenant": []}
    for name, value in found:
        said[name].append(value)
    languages = {code for code in map(_language, said["language"]) if code}
    return {
        "modified": max(map(utc, said["modified"]), default=""),
        "language": languages.pop() if len(languages) == 1 else "",
        "access": _agreed("access", said["access"]),
        "tenant": _agreed("tenant", said["tenant"]),
    }


def _agreed(name: str, values: list[object]) -> str:
    given = set()
    for value in values:
        word = "" if value is None else str(value).strip() if isinstance(value, str | int) else None
        if value is not None and (isinstance(value, bool) or word is None or not _LABEL.fullmatch(word)):
            raise Unreadable(
                f"{name} is {str(value)[:80]!r}, no plain word (1 to 64 of A-Z a-z 0-9 _ . : -), so nobody may read "
                f"this document; correct the label, or take it out if everybody may"
            )
        given.add(word)
    if len(given) > 1:
        raise Unreadable(
            f"{name} is said to be {' and '.join(repr(word) for word in sorted(given))}; give all of the document "
            f"the same label"
        )
    return given.pop() if given else ""


def _language(value: object) -> str:
    """'en' of 'en', 'EN-gb' and 'en_US'; '' of anything that does not begin with a code of two letters."""
    code = re.match(r"\s*([A-Za-z]{2})(?![A-Za-z])", value) if isinstance(value, str) else None
    return code[1].lower() if code else ""


def utc(value: object) -> str:
    """A time (ISO 8601, a mail or HTTP date, a date or datetime) as YYYY-MM-DDTHH:MM:SSZ, '' if it is none.

    One without a time zone counts as UTC.
    """
    try:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError:
                value = parsedate_to_datetime(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if not isinstance(value, datetime):
            return ""
        value = value.astimezone(UTC) if value.tzinfo else value
        return value.replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
    except (ValueError, TypeError, OverflowError):
        return ""
