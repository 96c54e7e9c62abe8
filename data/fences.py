"""Code inside a text: lines between fences of backticks, as in CommonMark, whatever format it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_OPENING = re.compile(r"(`{3,})[^`\n]*\n?")
_LANGUAGE = re.compile(r"\s*\{?\s*\.?([\w+#-]{1,32})(?![\w=+#-])")


def fenced(lines: Sequence[str], language: str = "") -> list[str]:
    """The lines of code between two fences that none of them can close; empty lines at both ends are left out."""
    start, end = 0, len(lines)
    while start < end and not lines[start].strip():
        start += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    code = [line.rstrip() for line in lines[start:end]]
    longest = max((len(line) - len(line.lstrip("`")) for line in map(str.strip, code)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, *code, fence] if code else []


def language(info: str) -> str:
    """The language word of what stands behind an opening fence: 'py' of 'py title="x"', '' where there is none."""
    named = _LANGUAGE.match(info)
    return named[1] if named else ""


def stretches(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is code with its fences, lines) in order; joined they are the text again.

    A fence that nothing closes runs to the end, as in CommonMark.
    """
    fence, held = "", []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):  # not splitlines, which also splits at U+2028
        opening = None if fence else _OPENING.fullmatch(line)
        if opening:
            if held:
                yield False, "".join(held)
            fence, held = opening[1], [line]
            continue
        held.append(line)
        if fence and line.startswith(fence) and not line.strip().strip("`"):
            yield True, "".join(held)
            fence, held = "", []
    if held:
        yield bool(fence), "".join(held)
