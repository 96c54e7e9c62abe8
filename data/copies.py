"""Which documents are copies of others, or nearly: MinHash fingerprints that are compared without the texts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from data.cleaning import WORD, text_of, word_set
from data.records import Document, digest

_SIGN = r"[$€£¥₹%‰°±<>≤≥≠]|(?<![\w)])[-−](?=\d)"
PERMUTATIONS, BANDS = 128, 16
NEAR = 0.9
# What turns a sentence round though it is but one word of hundreds: negations, limits, opposites, numbers.
_DECISIVE = word_set(
    "no not nor never none nothing neither cannot without except unless only must may might should shall can any all "
    "before after until since more less most least over under above below minimum maximum increase increased decrease "
    "decreased enable enabled enables disable disabled disables allow allowed allows deny denied forbidden prohibited "
    "required optional include included includes exclude excluded excludes yes true false free paid valid invalid "
    "safe unsafe internal internally external externally incoming outgoing inbound outbound ascending descending upper "
    "lower first last input inputs output outputs import imports imported export exports exported upload uploads "
    "uploaded download downloads downloaded open opens opened close closes closed "
    "one two three four five six seven eight nine ten eleven twelve twenty thirty hundred thousand half "
    "double daily weekly monthly yearly am pm nicht kein keine keinen keinem keiner nie niemals ohne nur außer muss "
    "müssen darf dürfen vor nach ein eine zwei ne pas jamais aucun aucune sans sauf seulement doit peut avant après "
    "un une deux nunca sin salvo solo sólo debe puede antes después uno una dos não sem nem exceto somente deve pode "
    "depois dois non mai senza tranne deve può prima dopo due niet geen nooit zonder alleen behalve moet mag voor na "
    "twee не ни нет без никогда только кроме два "
    "不 没 沒 无 無 未 非 勿 别 別 〇 一 二 两 兩 三 四 五 六 七 八 九 十 百 千 万 萬 億 "
)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells whether a document is a copy of another, without its text.

    `content`: hash of headings and texts. `signature`: MinHash of its phrases of five words (five characters in scripts
    without blanks), little-endian uint32. `figures`: hash of what no near copy may differ in: its figures, signs and
    decisive words, in order, and its names. `reader`: tenant and access; there are no copies across readers.
    """

    document: str
    content: str
    signature: bytes
    figures: str
    modified: str
    reader: str


def fingerprint(document: Document) -> Fingerprint:
    """The fingerprint of a document (Broder 1997, On the resemblance and containment of documents)."""
    found = tokens(text_of(document))
    return Fingerprint(
        document=document.id,
        content=digest([(section.heading, section.text) for section in document.sections]),
        signature=_signature(found),
        figures=_figures(found),
        modified=document.modified,
        reader=f"{document.tenant}\n{document.access}",
    )


def _signature(tokens: Sequence[str]) -> bytes:
    minhash, starts = _fresh().copy(), range(max(1, len(tokens) - 4))
    for batch in (starts[i : i + 4096] for i in range(0, len(starts), 4096)):  # 512 bytes of memory a phrase
        minhash.update_batch({" ".join(tokens[start : start + 5]).lower().encode() for start in batch})
    return minhash.digest().astype("<u4").tobytes()


@cache
def _fresh():
    import xxhash
    from datasketch import MinHash

    return MinHash(num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest, scheme="affine32")


def tokens(text: str) -> list[str]:
    """The words of a text, its numbers among them, and the signs that change what a number says."""
    return re.findall(f"{_SIGN}|{WORD}", text)


def decisive(tokens: Sequence[str]) -> list[str]:
    """Of a text's tokens those that turn it round though they are few: numbers, signs, negations, limits; in order."""
    kinds = {
        token
        for token in set(tokens)
        if (word := token.lower()) in _DECISIVE or (not word.isalpha() and re.search(r"\d|n['’]t$|^\W", word))
    }
    return [token.lower() for token in tokens if token in kinds]


def _figures(tokens: Sequence[str]) -> str:
    """A name is a word that never stands in lower case; where a script has no case, every word may be one."""
    kinds = set(tokens)
    lower = {token for token in kinds if token.islower()}
    names = {word for token in kinds - lower if (word := token.lower()) not in lower}
    return digest(decisive(tokens), sorted(names))


def duplicates(fingerprints: Sequence[Fingerprint], near: bool = True) -> dict[str, tuple[str, str]]:
    """{dropped id: (kept id, 'exact' or 'near')}: of copies the newest is kept, of those the smallest id.

    Near copies have the same figures and an estimated Jaccard similarity of NEAR or more to the document that is kept.
    No dropped document is named as kept, so in a chain a ~ b ~ c the ends stay when they are too far apart. The order
    given does not matter. Raises ValueError when an id stands there twice.
    """
    first: dict[tuple[str, str], Fingerprint] = {}
    dropped: dict[str, tuple[str, str]] = {}
    if twice := [name for name, times in Counter(one.document for one in fingerprints).items() if times > 1]:
        raise ValueError(f"two fingerprints of {min(twice)!r}; give one for each document")
    ordered = sorted(sorted(fingerprints, key=lambda one: one.document), key=lambda one: one.modified, reverse=True)
    for one in ordered:
        kept = first.setdefault((one.reader, one.content), one)
        if kept is not one:
            dropped[one.document] = (kept.document, "exact")
    if not near:
        return dropped
    alike = defaultdict(list)
    for one in first.values():
        alike[one.reader, one.figures].append(one)
    nearly = {loser: kept for group in alike.values() if len(group) > 1 for loser, kept in _near(group)}
    exact = {
        loser: (nearly[kept], "near") if kept in nearly else (kept, kind) for loser, (kept, kind) in dropped.items()
    }
    return exact | {loser: (kept, "near") for loser, kept in nearly.items()}


def _near(group: Sequence[Fingerprint]) -> Iterator[tuple[str, str]]:
    """(dropped, kept) of a group in order of preference.

    Candidates share one of BANDS bands of the signature (Leskovec et al., Mining of Massive Datasets, 3.4): at a
    similarity of 0.9 a pair is missed once in 10,000 times.
    """
    import numpy as np

    signatures = np.frombuffer(b"".join(one.signature for one in group), "<u4").reshape(len(group), PERMUTATIONS)
    width = 4 * PERMUTATIONS // BANDS
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for row, one in enumerate(group):
        bands = [(start, one.signature[start : start + width]) for start in range(0, 4 * PERMUTATIONS, width)]
        rivals = sorted({rival for band in bands for rival in buckets.get(band, ())})
        if rivals:
            agreeing = (signatures[rivals] == signatures[row]).mean(axis=1)
            if agreeing.max() >= NEAR:
                yield one.document, group[rivals[int(agreeing.argmax())]].document
                continue
        for band in bands:
            buckets[band].append(row)
