"""What a corpus is cleaned of before it is indexed: unfit documents, and lines that are furniture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache

from data.fences import stretches
from data.records import Document

# Scripts written without blanks: there a character counts as a word.
_DENSE = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Vowel signs and other marks that Python's \w leaves out, so that a word in Hindi or Arabic stays one.
_MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u06d6-\u06ed\u0900-\u0903\u093a-\u0dff"
WORD = rf"[{_DENSE}]|[^\W{_DENSE}]+(?:(?:['’](?=\w)|[{_MARKS}]+)[^\W{_DENSE}]*)*"


def words(text: str) -> list[str]:
    """The words of a text as they stand; a character each in scripts without blanks."""
    return re.findall(WORD, text)


def word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def text_of(document: Document) -> str:
    return "\n".join(part for section in document.sections for part in (section.heading, section.text) if part)


# --- language ---------------------------------------------------------------------------------

SUREST = 0.5
_CODE = re.compile(r"[\[\]{}()=<>_;\\^+]")


def language(text: str) -> str:
    """ISO 639-1 of the prose at the start of a text, '' when it is uncertain, too short, or mostly code.

    By py3langid (Lui & Baldwin 2012, langid.py: naive Bayes over byte n-grams), whose 'zxx' is no language at all.
    """
    prose = "".join(part for code, part in stretches(text[:8000]) if not code)
    plain = "".join(line for line in prose.splitlines(True) if len(_CODE.findall(line)) <= 0.03 * len(line))[:1000]
    if 3 * len(plain) < len(prose[:1000]):
        return ""
    code, probability = _identifier().classify(plain)
    return code if probability >= SUREST and code != "zxx" else ""


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([code for code in identifier.labels if len(code) == 2 or code == "zxx"])
    return identifier


# --- quality ----------------------------------------------------------------------------------

# Characters of a document that are judged.
JUDGED = 1_000_000
FEWESTWORDS = 4
# UTF-8 as Windows-1252 shows it: the first byte of a letter in use, not ß or É before a closing quote, and the rest.
_REST = "[\xa0-¿€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(f"[ÂÃÄÅÎÏÐÑ×ØÙÚÛ]{_REST}|[á-ìîï]{_REST}{{2}}")
_LOREM = word_set(
    "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna "
    "aliqua enim minim veniam quis nostrud exercitation ullamco laboris nisi aliquip ex ea commodo consequat duis "
    "aute irure in reprehenderit voluptate velit esse cillum eu fugiat nulla pariatur excepteur sint occaecat "
    "cupidatat non proident sunt culpa qui officia deserunt mollit anim id est laborum"
)


def quality(document: Document) -> str:
    """'' when the document is fit to be indexed, else the reason, one for a person to read.

    The tests are those of Gopher (Rae et al. 2021, appendix A.1: words, letters, repeated lines and phrases) and of C4
    (Raffel et al. 2020, section 2.2: lorem ipsum), with limits so wide that short answers, tables and code pass.
    """
    text = text_of(document)[:JUDGED]
    found = words(text.lower())
    solid = len(re.sub(r"\s+|([^\w\s])(?=\1)", "", text))  # the rule of a table is one character
    letters = len(re.sub(r"[\W\d_]+", "", text))
    if reason := _packed(text, solid):
        return reason
    if not found:
        return "no words in it"
    if (count := len(words(document.title)) + len(found)) < FEWESTWORDS:
        return f"only {count} words, its title included"
    if solid >= 200 and letters < 0.08 * solid:
        return f"{1 - letters / solid:.0%} of it is not letters"
    return _repeated(text, found) or _lorem(found) or _mojibake(text, len(found))


def _packed(text: str, characters: int) -> str:
    """Runs of ASCII that nobody would write; addresses and the rules of tables do not count."""
    runs = re.findall(r"[!-~]{60,}", re.sub(r"\bhttps?://\S+", " ", text))
    packed = sum(len(run) for run in runs if len(re.findall(r"[^\W_]", run)) > len(run) / 2)
    if packed >= 1000 and packed > 0.6 * characters:
        return f"base64/minified data: {packed / characters:.0%} of it is runs of 60 or more characters without a blank"
    return ""


def _repeated(text: str, found: Sequence[str]) -> str:
    lines = Counter(line.strip() for line in text.split("\n") if line.strip())
    line, times = max(lines.items(), key=lambda item: len(item[0]) * item[1])
    if times >= 20 and 2 * len(line) * times > sum(len(line) * times for line, times in lines.items()):
        return f"the same line {times} times: {line[:60]!r}"
    phrases = len(found) - 4
    if phrases >= 200 and (again := 1 - len(set(zip(*(found[i:] for i in range(5)), strict=False))) / phrases) > 0.85:
        return f"{again:.0%} of its phrases of five words stand there before"
    return ""


def _lorem(found: Sequence[str]) -> str:
    latin = sum(word in _LOREM for word in found)
    return "looks like lorem ipsum" if "ipsum" in found and latin > 0.4 * len(found) else ""


def _mojibake(text: str, count: int) -> str:
    """UTF-8 that was read as Windows-1252, or replacement characters, more than one to twenty words."""
    wrong = Counter(_MOJIBAKE.findall(text))
    most = max(2, 0.05 * count)
    if wrong.total() > most:
        one = wrong.most_common(1)[0][0]
        return f"mojibake: {one!r} should be {one.encode('cp1252').decode()!r}; save it as UTF-8"
    if (lost := text.count("\ufffd")) > most:
        return f"mojibake: {lost} characters were lost; save it as UTF-8"
    return ""


# --- furniture --------------------------------------------------------------------------------

# Lines of a document, counted from either end, among which furniture is looked for.
EDGE = 10
FEWEST_DOCUMENTS = 20
_COPYRIGHT = re.compile(r"©|\(c\)|copyright|all rights reserved", re.IGNORECASE)


def lines(document: Document) -> set[int]:
    """Hashes, 63 bits, of the lines that could be furniture.

    They stand near an end of the document, have three words or more, and are neither code nor a row of a table nor,
    copyright notices aside, a line with figures: what differs from document to document is not furniture, and an
    opening time or a telephone number is worth keeping wherever it stands.
    """
    return set(_edges(document).values())


def _edges(document: Document) -> dict[tuple[int, int], int]:
    """{(section, line): hash} of the lines that could be furniture."""
    placed = [
        ((number, index), line)
        for number, section in enumerate(document.sections)
        for index, (code, line) in enumerate(_lines(section.text))
        if not code and line.strip()
    ]
    return {place: _hash(line) for place, line in placed[:EDGE] + placed[-EDGE:] if _plain(line)}


def _lines(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is code, line with its line feed); joined they are the text again."""
    for code, part in stretches(text):
        for line in re.findall(r"[^\n]*\n|[^\n]+", part):
            yield code, line


def _plain(line: str) -> bool:
    if "|" in line or (re.search(r"\d", line) and not _COPYRIGHT.search(line)):
        return False
    return len(words(line)) >= 3


def _hash(line: str) -> int:
    import xxhash

    return xxhash.xxh3_64_intdigest(" ".join(line.casefold().split()).encode()) >> 1  # Parquet's integers are signed


def boilerplate(counts: Mapping[int, int], documents: int, before: frozenset[int] = frozenset()) -> frozenset[int]:
    """The lines that are furniture: `counts` says in how many of `documents` documents each stands.

    A line becomes furniture in half of at least FEWEST_DOCUMENTS documents, and one of `before` stays so while it is in
    30% of at least 60% as many: one document more or less must not rewrite a whole corpus.
    """
    new, old = documents >= FEWEST_DOCUMENTS, documents >= 0.6 * FEWEST_DOCUMENTS
    return frozenset(
        line
        for line, count in counts.items()
        if (new and count >= 0.5 * documents) or (old and line in before and count >= 0.3 * documents)
    )


def without_boilerplate(document: Document, boilerplate: Iterable[int]) -> Document:
    """The document without those of its `lines`; sections left without text go too.

    A document that would be left without any text is returned as it is.
    """
    furniture = frozenset(boilerplate)
    if not (gone := {place for place, line in _edges(document).items() if line in furniture}):
        return document
    kept = []
    for number, section in enumerate(document.sections):
        if any(place[0] == number for place in gone):
            left = [line for index, (_, line) in enumerate(_lines(section.text)) if (number, index) not in gone]
            section = replace(section, text="".join(left).strip("\n"))
        if section.text.strip():
            kept.append(section)
    return replace(document, sections=tuple(kept)) if kept else document


def without_page_furniture(pages: Sequence[str]) -> list[str]:
    """The pages without running titles and page numbers.

    Those are among the four lines at the top or bottom of a page, on at least half of at least four pages. A line may
    hold a number that counts up with the pages; then it needs three words besides, or none but those of 'Page 3 of 9'.
    Page numbers go everywhere, other lines stay where they stand first: they may say what nothing else does.
    """
    split = [page.split("\n") for page in pages]
    edges = [list(_page_edges(page)) for page in split]
    counts = Counter(
        key for page, edge in enumerate(edges) for key in {key for _, s, line in edge for key in _keys(s, line, page)}
    )
    full = sum(bool(edge) for edge in edges)
    furniture = {key for key, count in counts.items() if full >= 4 and 2 * count >= full}
    seen: set[tuple[str, str]] = set()
    for page, edge in enumerate(edges):
        for index, side, line in edge:
            same = furniture & _keys(side, line, page)
            if same & seen or (_only_number(line) and any("\0" in key for _, key in same)):
                split[page][index] = ""
            seen |= same
    return ["\n".join(page).strip("\n") for page in split] if furniture else list(pages)


def _page_edges(page: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """(line number, side, line) of the outer lines of a page; on a short page one may stand on both sides."""
    full = [index for index, line in enumerate(page) if line.strip()]
    for side, indices in (("top", full[:4]), ("bottom", full[-4:])):
        for index in indices:
            if len(page[index]) <= 200:
                yield index, side, page[index]


def _keys(side: str, line: str, page: int) -> set[tuple[str, str]]:
    """What a line is known by: as it stands, and with its first or last number counted from the page."""
    line = " ".join(line.casefold().split())
    keys = {(side, line)}
    numbers = list(re.finditer(r"(?<!\d)\d{1,5}(?!\d)", line))
    if numbers and (_only_number(line) or len(words(line)) > 3):
        for one in (numbers[0], numbers[-1]):
            keys.add((side, f"{line[: one.start()]}\0{int(one[0]) - page}\0{line[one.end() :]}"))
    return keys


_PAGEWORDS = word_set(
    "page pages p pg of seite seiten von página páginas pagina pagine de di van sur sida side av af sivu strona z "
    "страница стр из 第 页 頁 共 ペ ー ジ 페이지 쪽"
)


def _only_number(line: str) -> bool:
    """Whether a line is a page number: figures, and at most the words of 'Page 3 of 9'."""
    found = words(line.casefold())
    return any(word.isnumeric() for word in found) and all(word.isnumeric() or word in _PAGEWORDS for word in found)
