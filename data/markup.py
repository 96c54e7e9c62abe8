"""Markdown, plain text, HTML and reStructuredText into (title or '', blocks).

A block is (level, line): 0 for text, 1 to 6 a heading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

Blocks = list[tuple[int, str]]

_INLINE = re.compile(
    "a|abbr|b|bdi|cite|code|del|dfn|em|font|i|img|ins|kbd|label|mark|q|s|samp|small|span|strong|sub|sup|time|tt|u|var|wbr"
)
# Tags taken out of Markdown; anything else in angle brackets is the author's text ('press <Enter>').
_TAG = re.compile(
    r"</?(?:a|abbr|b|br|center|code|details|div|em|figcaption|figure|hr|i|img|kbd|p|picture|small|source|span|strong"
    r"|sub|summary|sup|table|tbody|td|th|thead|tr|u|video)(?:\s[^<>]*)?/?>",
    re.I,
)
_RST_ROLE = re.compile(r":[\w:+.-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_RST_OPTION = re.compile(r":[\w-]+:")
_LEFT_OUT = ["nav", "footer", "script", "style", "noscript", "template", "svg", "iframe", "head", "title"]
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])", re.I)


def markdown(text: str) -> tuple[str, Blocks]:
    """Blocks without links, emphasis, table rules and fences; lines inside a fence stay as they are."""
    text = re.sub(r"<!--.*?-->", "", text.replace("\r\n", "\n"), flags=re.S)
    title = ""
    if front := re.match(r"---\n(.*?)\n(?:---|\.\.\.)[ \t]*\n", text, re.S):
        if named := re.search(r"^title:\s*(.+)$", front[1], re.M):
            title = named[1].strip().strip("'\"")
        text = text[front.end() :]
    return title, list(_markdown_blocks(text.split("\n")))


def _markdown_blocks(lines: list[str]) -> Iterator[tuple[int, str]]:
    fence = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        mark = re.match(r"[ \t]*(```+|~~~+)", line)
        if fence:
            if mark and mark[1].startswith(fence) and not line.strip().strip("`~"):
                fence = ""
            else:
                yield 0, line
        elif mark:
            fence = mark[1]
        elif heading := re.match(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", line):
            yield len(heading[1]), plain(re.sub(r"\s*\{[:#.][^}]*\}$", "", heading[2]))
        elif _underline(following) and line.strip() and not _underline(line) and "|" not in line:
            yield _underline(following), plain(line.strip())
        elif _underline(line) or _is_table_rule(line):
            continue
        elif re.match(r"\s*\|.*\|\s*$", line):
            yield 0, " | ".join(plain(cell.strip()) for cell in line.strip().strip("|").split("|"))
        else:
            yield 0, plain(line)


def _is_table_rule(line: str) -> bool:
    """Whether a line is the `|---|:--:|` under a table's header."""
    return "|" in line and "-" in line and not line.strip(" \t|:-")


def _underline(line: str) -> int:
    """The level that an underline gives the line above it: 1 for ===, 2 for ---, 0 when the line is none."""
    return 1 if re.fullmatch(r"={3,}\s*", line) else 2 if re.fullmatch(r"-{3,}\s*", line) else 0


def plain(line: str) -> str:
    """A line of Markdown without its marks; what stands between backticks stays as it is."""
    codes: list[str] = []

    def keep(match: re.Match) -> str:
        codes.append(match[2])
        return f"\0{len(codes) - 1}\0"  # readers refuse text that has this character, so it stands for code alone

    line = re.sub(r"(`+)(.+?)\1", keep, line)
    line = re.sub(r"!?\[([^\[\]]*)\](?:\([^()\s]*(?:\s+\"[^\"]*\")?\)|\[[^\[\]]*\])", r"\1", line)
    line = re.sub(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", r"\2", line)
    line = re.sub(r"(?<![\w*])\*(?=[^\s*])([^*]+?)(?<=\S)\*(?![\w*])", r"\1", line)
    line = unescape(_TAG.sub("", line))
    return re.sub(r"\0(\d+)\0", lambda match: codes[int(match[1])], line)


def text(text: str) -> tuple[str, Blocks]:
    """Blocks of plain text: a line underlined with === is a heading of level 1, with --- of level 2."""
    lines = text.replace("\r\n", "\n").split("\n")
    blocks, underlined = [], False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        level = _underline(following) if line.strip() and not _underline(line) else 0
        if not underlined:
            blocks.append((level, line.strip() if level else line))
        underlined = bool(level)
    return "", blocks


def html(text: str) -> tuple[str, Blocks]:
    """Blocks of what a person sees on the page: no menus, scripts or hidden elements; a table row is 'a | b'."""
    from bs4 import BeautifulSoup

    page = BeautifulSoup(text, "html.parser")
    title = page.title.get_text() if page.title else ""
    hidden = page.find_all(lambda tag: tag.has_attr("hidden") or bool(_HIDDEN.search(str(tag.get("style") or ""))))
    for element in [*page(_LEFT_OUT), *hidden]:
        if not element.decomposed:
            element.decompose()
    return title, list(_html_blocks(page))


def _html_blocks(page) -> Iterator[tuple[int, str]]:
    """Walked with a stack of its own, so deep nesting cannot exhaust Python's. A (level,) on it ends a line."""
    from bs4 import NavigableString

    line: list[str] = []
    stack: list = [(0,), page]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            joined = " ".join("".join(line).split())
            # A list mark waits for the text of a paragraph inside its item.
            if joined and joined != "-":
                yield node[0], joined
                line = []
        elif isinstance(node, NavigableString):
            # Exactly a text: comments, declarations and CDATA are subclasses.
            if type(node) is NavigableString:
                line.append(str(node))
        elif node.name == "tr":
            cells = (" ".join(cell.get_text(" ").split()) for cell in node.find_all(["td", "th"]))
            stack += [(0,), NavigableString(" | ".join(cells)), (0,)]
        elif node.name == "pre":
            for row in reversed(node.get_text().split("\n")):
                stack += [(0,), NavigableString(row)]
            stack.append((0,))
        elif node.name == "br":
            stack.append((0,))
        elif _INLINE.fullmatch(node.name):
            stack += reversed(node.contents)
        else:
            level = int(node.name[1]) if re.fullmatch(r"h[1-6]", node.name) else 0
            marks = [NavigableString("- ")] if node.name == "li" else []
            stack += [(level,), *reversed(node.contents), *marks, (0,)]


def rst(text: str) -> tuple[str, Blocks]:
    """Blocks of reStructuredText by docutils, which includes no file here; Sphinx's own roles and directives keep
    their text."""
    from docutils.core import publish_doctree

    settings = {
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "report_level": 5,
        "halt_level": 5,
        "doctitle_xform": False,
        "_disable_config": True,
    }
    return "", list(_rst_blocks(publish_doctree(text, settings_overrides=settings), 0))


def _rst_blocks(node, level: int) -> Iterator[tuple[int, str]]:
    from docutils import nodes

    for child in node.children:
        if isinstance(child, nodes.section):
            yield from _rst_blocks(child, level + 1)
        elif isinstance(child, nodes.title):
            yield max(level, 1), _rst_text(child)
        elif isinstance(child, nodes.row):
            yield 0, " | ".join(map(_rst_text, child.children))
        elif isinstance(child, nodes.literal_block):
            yield from ((0, line) for line in [*child.astext().split("\n"), ""])
        elif isinstance(child, nodes.system_message):  # a directive docutils does not know: its text without options
            for block in child.findall(nodes.literal_block):
                lines = [line.strip() for line in block.astext().split("\n")[1:]]
                yield from ((0, line) for line in [*(line for line in lines if not _RST_OPTION.match(line)), ""])
        elif isinstance(child, nodes.Invisible):
            continue
        elif isinstance(child, nodes.TextElement):
            yield from ((0, line) for line in (_rst_text(child), ""))
        else:
            yield from _rst_blocks(child, level)


def _rst_text(node) -> str:
    """One line of text; `:ref:`the limits <limits>`` is 'the limits'."""
    return _RST_ROLE.sub(r"\1", " ".join(node.astext().split()))
