"""Markdown, plain text and reStructuredText into outlines; the front matter that Markdown and HTML begin with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from textwrap import dedent

from data.fences import fenced, language
from data.sections import Outline, Unreadable

# The label that a key of front matter gives.
KEYS = {
    "access": "access",
    "tenant": "tenant",
    "lang": "language",
    "language": "language",
    **dict.fromkeys(("modified", "last_modified", "last_modified_at", "lastmod", "updated"), "modified"),
}
_FRONT = re.compile(r"\s*+(?:<!--(?>.*?-->)\s*+)*+---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)
_FENCE = (
    r"(?P<lead>(?:[ \t]|>|[-*+][ \t]|\d{1,9}[.)][ \t])*)(?P<fence>`{3,}|~{3,})(?P<info>(?:(?<=`)[^`\n]*|(?<=~)[^\n]*))$"
)
_CODE_OR_COMMENT = re.compile(
    rf"^{_FENCE}.*?(?:^[ \t>]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?P<ticks>`{1,9})[^`\n]+(?P=ticks)"
    r"|(?P<comment><!--.*?(?:-->|(?P<open>\Z)))",
    re.M | re.S,
)
# Tags taken out of Markdown; anything else in angle brackets is the author's text ('press <Enter>').
_TAG = re.compile(
    r"</?(?:a|abbr|b|br|center|code|details|div|em|figcaption|figure|hr|i|img|kbd|p|picture|small|source|span|strong"
    r"|sub|summary|sup|table|tbody|td|th|thead|tr|u|video)(?:\s[^<>]*)?/?>",
    re.I,
)
_RST_ROLE = re.compile(r":[\w:+.-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_RST_DIRECTIVE = re.compile(r"\.\.[ \t]+([\w:+.-]+)::[ \t]*(.*)")
_RST_CODE = ("code", "code-block", "sourcecode", "prompt")
# Directives whose argument is text: what they describe.
_RST_NAMING = ("function", "class", "method", "attribute", "data", "exception", "option", "envvar")
_RST_PYTHON = ("doctest", "testcode", "testoutput", "testsetup")


def front_matter(text: str) -> tuple[str, list[tuple[str, object]], str]:
    """(title or '', labels, the text behind it) of a page that begins with a YAML mapping between --- and ---.

    All values are read as the text that stands there. Raises Unreadable when a label cannot be trusted.
    """
    import yaml

    front = _FRONT.match(text)
    if not front:
        return "", [], text
    try:
        node = yaml.compose(front[1], Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        if re.search(r"^\W*(?:access|tenant)\b", front[1], re.I | re.M):
            raise Unreadable(f"front matter with a label is not YAML: {error}; correct it") from error
        title = re.search(r"^title:\s*(.+)$", front[1], re.M)
        return (title[1].strip(" '\"") if title else ""), [], text[front.end() :]
    if not isinstance(node, yaml.MappingNode):
        return "", [], text
    title, labels = "", []
    for key, value in node.value:
        word = str(key.value).strip().lower()
        if word in KEYS:
            labels.append((KEYS[word], value.value if isinstance(value, yaml.ScalarNode) else f"a {value.id}"))
        elif word == "title" and isinstance(value, yaml.ScalarNode):
            title = value.value
    return title, labels, text[front.end() :]


def markdown(text: str) -> Outline:
    """An outline without links, emphasis, table rules and comments; a table row is 'a | b', code stays as it is."""
    title, labels, text = front_matter(text)
    # What only looks like a comment, since nothing ends it, is taken in one piece: looked at again it takes for ever.
    text = _CODE_OR_COMMENT.sub(lambda match: "" if match["comment"] and match["open"] is None else match[0], text)
    return Outline(title, list(_markdown_blocks(text.split("\n"))), labels)


def _markdown_blocks(lines: list[str]) -> Iterator[tuple[int, str]]:
    fence, code, table = None, [], False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if fence and ">" in fence["lead"] and not line.lstrip().startswith(">"):  # the quotation ends, so does its code
            yield from _code(fence, code)
            fence = None
        if fence:
            if line.lstrip(" \t>").startswith(fence["fence"]) and not line.strip(" \t>`~"):
                yield from _code(fence, code)
                fence = None
            else:
                code.append(_without_lead(line, fence["lead"]))
            continue
        table = "|" in line and (table or _is_table_rule(following))
        if fence := re.match(_FENCE, line):
            code = []
            if mark := fence["lead"].strip(" \t>"):  # of a list
                yield 0, mark
        elif heading := re.match(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$", line):
            yield len(heading[1]), plain(re.sub(r"\s*\{[:#.][^}]*\}$", "", heading[2]))
        elif _underline(following) and line.strip() and not _underline(line) and "|" not in line:
            yield _underline(following), plain(line.strip())
        elif _underline(line) or _is_table_rule(line):
            continue
        elif table or re.match(r"\s*\|.*\|\s*$", line):
            yield 0, " | ".join(map(plain, _cells(line.strip())))
        else:
            yield 0, plain(line)
    if fence:
        yield from _code(fence, code)


def _code(fence: re.Match, lines: list[str]) -> Iterator[tuple[int, str]]:
    yield from ((0, line) for line in fenced(lines, language(fence["info"])))


def _without_lead(line: str, lead: str) -> str:
    """A line of code without what stands before its fence, as far as it is there: blanks, quotation marks."""
    if line.startswith(lead):
        return line[len(lead) :]
    marks = "[ \t>]" if ">" in lead else "[ \t]"
    return re.sub(rf"^{marks}{{0,{len(lead)}}}", "", line)


def _cells(row: str) -> list[str]:
    """The cells of a table row; a pipe that is escaped or inside code divides nothing."""
    row = re.sub(r"(`+)(.+?)\1", lambda match: match[0].replace("|", "\0"), row.replace(r"\|", "\0"))
    return [cell.strip().replace("\0", "|") for cell in row.removeprefix("|").removesuffix("|").split("|")]


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


def text(text: str) -> Outline:
    """An outline of plain text: a line underlined with === is a heading of level 1, with --- of level 2."""
    lines = text.split("\n")
    blocks, underlined = [], False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        level = _underline(following) if line.strip() and not _underline(line) else 0
        if not underlined:
            blocks.append((level, line.strip() if level else line))
        underlined = bool(level)
    return Outline("", blocks)


def rst(text: str) -> Outline:
    """An outline of reStructuredText by docutils, which includes no file here; Sphinx's own roles and directives keep
    their text, literal blocks stay as they are."""
    return Outline("", list(_rst_blocks(_doctree(text), 0)))


def _doctree(text: str):
    from docutils.core import publish_doctree

    settings = {
        "file_insertion_enabled": False,
        "raw_enabled": False,
        "report_level": 5,
        "halt_level": 5,
        "doctitle_xform": False,
        "syntax_highlight": "none",
        "_disable_config": True,
    }
    return publish_doctree(text, settings_overrides=settings)


def _rst_blocks(node, level: int) -> Iterator[tuple[int, str]]:
    from docutils import nodes

    for child in node.children:
        if isinstance(child, nodes.section):
            yield from _rst_blocks(child, level + 1)
        elif isinstance(child, nodes.title) and isinstance(node, nodes.section):
            yield max(level, 1), _rst_text(child)
        elif isinstance(child, nodes.table):
            yield from [(0, ""), *_rst_blocks(child, level), (0, "")]
        elif isinstance(child, nodes.row):
            yield 0, " | ".join(map(_rst_text, child.children))
        elif isinstance(child, nodes.literal_block | nodes.doctest_block):
            words = [word for word in child["classes"] if word not in ("code", "doctest")]
            yield from ((0, line) for line in [*fenced(child.astext().split("\n"), language(" ".join(words))), ""])
        elif isinstance(child, nodes.system_message):
            for block in child.findall(nodes.literal_block):
                yield from _unknown(block.astext(), level)
        elif isinstance(child, nodes.Invisible):
            continue
        elif isinstance(child, nodes.TextElement):
            yield from ((0, line) for line in (_rst_text(child), ""))
        else:
            yield from _rst_blocks(child, level)


def _unknown(text: str, level: int) -> Iterator[tuple[int, str]]:
    """What docutils could not make sense of: a directive's text without options, parsed again; anything else as is."""
    first, _, rest = text.partition("\n")
    directive = _RST_DIRECTIVE.match(first)
    if not directive:
        yield from ((0, line) for line in fenced(text.split("\n")))
        return
    body = dedent(re.sub(r"\A(?:[ \t]+:[\w-]+:(?:[ \t][^\n]*)?(?:\n|\Z))*", "", rest))
    if directive[1] in _RST_CODE + _RST_PYTHON:
        named = "python" if directive[1] in _RST_PYTHON else language(directive[2])
        yield from ((0, line) for line in [*fenced(body.split("\n"), named), ""])
    else:
        if directive[1].rpartition(":")[2] in _RST_NAMING:
            yield from ((0, line) for line in (directive[2], ""))
        yield from _rst_blocks(_doctree(body), level)


def _rst_text(node) -> str:
    """One line of text; `:ref:`the limits <limits>`` is 'the limits'."""
    return _RST_ROLE.sub(r"\1", " ".join(node.astext().split()))
