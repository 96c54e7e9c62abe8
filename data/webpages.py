"""HTML into an outline of what a person reads on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator

from data.fences import fenced
from data.markup import KEYS, front_matter
from data.sections import Outline

_INLINE = re.compile(
    "a|abbr|b|bdi|cite|code|del|dfn|em|font|i|img|ins|kbd|label|mark|q|s|samp|small|span|strong|sub|sup|time|tt|u|var|wbr"
)
_NEVER = {"nav", "footer", "script", "style", "noscript", "template", "svg", "iframe", "head", "title"}
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])", re.I)
_ROLES = {"navigation", "banner", "contentinfo", "search"}
# Classes and ids of what generators and consent tools put around a text; each matches a whole class name.
_FURNITURE = re.compile(
    r"(?:[\w-]*[-_])?(?:cookie[-_]?(?:consent|banner|notice|bar|message|popup|law|dialog)|cc[-_]window)(?:[-_][\w-]*)?"
    r"|onetrust-[\w-]+|CybotCookiebot\w*|gdpr[-_]\w+"
    r"|(?:[\w-]*[-_])?bread-?crumbs?(?:[-_][\w-]*)?"
    r"|(?:[\w-]*[-_])?skip[-_]?(?:link|links|nav|navigation|to[-_]\w+)(?:[-_][\w-]*)?"
    r"|headerlink|header-anchor|hash-link|linenos|lineno",
    re.I,
)
# An aside of these is a note of the text itself.
_NOTE = re.compile(r"note|tip|hint|info|important|warning|caution|danger|admonition|callout", re.I)
_LANGUAGE = re.compile(r"(?:language|lang|highlight-source|highlight)-([\w+#-]{1,32})")
_CHANGED = {"last-modified", "dcterms.modified", "article:modified_time"}


def html(text: str) -> Outline:
    """An outline of the one <main> on a page, else of its body, without menus, scripts and hidden elements; a table row
    is 'a | b', preformatted text stays as it is. What looks like furniture is read where nothing else is left."""
    from bs4 import BeautifulSoup

    title, labels, text = front_matter(text)
    page = BeautifulSoup(text, "html.parser")
    title = page.title.get_text() if page.title else title
    labels += _labels(page)
    for furniture in (False, True):
        page = page if not furniture else BeautifulSoup(text, "html.parser")
        _clear(page, furniture)
        mains = page.find_all(lambda tag: tag.name == "main" or tag.get("role") == "main")
        for root in [*mains, page] if len(mains) == 1 else [page]:
            blocks = list(_blocks(root))
            if any(level == 0 and line for level, line in blocks):
                return Outline(title, blocks, labels)
    return Outline(title, blocks, labels)


def _labels(page) -> list[tuple[str, object]]:
    labels: list[tuple[str, object]] = []
    for meta in page.find_all("meta"):
        name = str(meta.get("name") or meta.get("property") or meta.get("http-equiv") or "").strip().lower()
        if name in ("access", "tenant", "modified"):
            labels.append((KEYS[name], str(meta.get("content") or "")))
        elif name in _CHANGED:
            labels.append(("modified", meta.get("content")))
    if page.html:
        labels.append(("language", page.html.get("lang") or page.html.get("xml:lang")))
    return labels


def _clear(page, furniture: bool) -> None:
    """Takes out what nobody sees and, unless it is to stay, furniture; what holds the text or its title is none."""
    holding = {id(parent) for tag in page.find_all(["main", "h1"]) for parent in tag.parents}
    for tag in page.find_all(True):
        gone = not tag.decomposed and (
            _is_unseen(tag) or (not furniture and id(tag) not in holding and _is_furniture(tag))
        )
        if gone:
            tag.decompose()


def _is_unseen(tag) -> bool:
    return tag.name in _NEVER or tag.has_attr("hidden") or bool(_HIDDEN.search(str(tag.get("style") or "")))


def _is_furniture(tag) -> bool:
    """Whether a tag stands around the text rather than in it."""
    names = [*tag.get("class", ()), tag.get("id") or ""]
    role = tag.get("role")
    aside = tag.name == "aside" and role != "note" and not any(map(_NOTE.search, names))
    named = aside or role in _ROLES or any(map(_FURNITURE.fullmatch, names))
    return named and tag.name not in ("html", "body", "main")


def _blocks(page) -> Iterator[tuple[int, str]]:
    """Walked with a stack of its own, so deep nesting cannot exhaust Python's. On it besides nodes: (level,) ends a
    line, a list is lines of their own."""
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
        elif isinstance(node, list):
            yield from ((0, text) for text in node)
            line = []  # a list mark that waited
        elif isinstance(node, NavigableString):
            # Exactly a text: comments, declarations and CDATA are subclasses.
            if type(node) is NavigableString:
                line.append(str(node))
        elif node.name == "pre":
            stack += [_code(node), (0,)]
        elif node.name == "tr" and not node.find(["pre", "table", "h1", "h2", "h3", "h4", "h5", "h6"]):
            cells = (" ".join(cell.get_text(" ").split()) for cell in node.find_all(["td", "th"]))
            stack += [(0,), NavigableString(" | ".join(cells)), (0,)]
        elif node.name == "table":
            stack += [[""], (0,), *reversed(node.contents), [""], (0,)]
        elif node.name == "br":
            stack.append((0,))
        elif _INLINE.fullmatch(node.name):
            stack += reversed(node.contents)
        else:
            level = int(node.name[1]) if re.fullmatch(r"h[1-6]", node.name) else 0
            marks = [NavigableString("- ")] if node.name == "li" else []
            stack += [(level,), *reversed(node.contents), *marks, (0,)]


def _code(pre) -> list[str]:
    """A <pre> between fences, with the language that its class, or one around it, gives."""
    from bs4 import NavigableString

    around = [pre.find("code"), pre, pre.parent, pre.parent and pre.parent.parent]
    names = [name for tag in around if tag for name in tag.get("class", ())]
    named = next((found[1] for name in names if (found := _LANGUAGE.fullmatch(name))), "")
    texts = (
        "\n" if node.name == "br" else node
        for node in pre.descendants
        if type(node) is NavigableString or node.name == "br"
    )
    return fenced("".join(texts).split("\n"), "" if named in ("default", "none", "plaintext") else named)
