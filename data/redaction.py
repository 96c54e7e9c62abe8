"""Personal data and secrets in text: where they are, and the text without them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from data import credentials, identity, personal

Span = tuple[int, int]


@dataclass(frozen=True)
class Near:
    """Where in a text, in lower case, a slower pattern is worth trying: around what a faster one finds."""

    pattern: re.Pattern
    before: int
    after: int

    def places(self, text: str) -> list[Span]:
        places: list[Span] = []
        for it in self.pattern.finditer(text):
            start, end = max(0, it.start() - self.before), it.end() + self.after
            places.append((places.pop()[0] if places and start <= places[-1][1] else start, end))
        return places


ANYWHERE = Near(re.compile(r"\A"), 0, sys.maxsize)
DIGITS = Near(re.compile(r"[0-9](?:[^0-9]{0,4}[0-9]){5,}+"), 20, 40)
"""Digits close together: no number below has fewer than six."""
SIGN = Near(re.compile(r"@|＠|%40|&#64;"), 70, 260)
SPELT = Near(re.compile(r"[ \[({<](?:(?<! )\s?(?:at|@|dot|\.)\s?[\])}>]|(?<= )(?:@|dot) )"), 100, 200)
COLONS = Near(re.compile(":[0-9a-f]{0,4}:"), 50, 50)
NAME = Near(credentials.NAME, 0, 400)


@dataclass(frozen=True)
class Rule:
    """One form of one kind. `span` says which part of a match is of that kind, or None; `published`, whether that part
    is what an organisation makes known on purpose."""

    kind: str
    pattern: re.Pattern
    span: Callable[[re.Match], Span | None] = re.Match.span
    near: Near = ANYWHERE
    published: Callable[[str], bool] = lambda _: False


RULES = (
    Rule("secret", credentials.PRIVATE_KEY, credentials.private_key),
    Rule("secret", credentials.TOKEN, credentials.token),
    Rule("secret", credentials.IN_URL, credentials.in_url),
    Rule("secret", credentials.AUTHORIZATION, credentials.authorization),
    Rule("secret", credentials.ASSIGNED, credentials.assigned, NAME),
    Rule("email", personal.EMAIL, personal.email, SIGN, personal.role),
    Rule("email", personal.SPELT, near=SPELT, published=personal.role),
    Rule("iban", identity.IBAN, identity.iban, DIGITS),
    Rule("card", identity.CARD, identity.card, DIGITS),
    Rule("national_id", identity.NATIONAL_ID, identity.national_id, DIGITS),
    Rule("ip", personal.IPV6, personal.ipv6, COLONS, personal.shared),
    Rule("ip", personal.IPV4, personal.ipv4, published=personal.shared),
    Rule("phone", personal.PHONE, personal.phone, DIGITS, personal.toll_free),
)
"""In order of precedence: what one rule takes, the next ones do not see."""

KINDS = tuple(dict.fromkeys(rule.kind for rule in RULES))


@dataclass(frozen=True)
class Found:
    """`text[start:end]` is of this kind."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Redacted:
    """A text with `[kind]` in each place, and how many of each kind there were."""

    text: str
    found: dict[str, int]


def find(text: str, kinds: Collection[str] = KINDS, public: bool = False) -> list[Found]:
    """Where `text` holds personal data or secrets, in order, without overlaps.

    `public` is for documents: what an organisation publishes on purpose stays, that is mailboxes of a role
    (support@), toll-free numbers, addresses of private networks. A name is not found: that takes a language model.
    Raises ValueError for a kind that is not in KINDS.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"no kind {sorted(unknown)} of personal data; there are {', '.join(KINDS)}")
    lowered = text.replace("İ", "I").lower()  # the one letter that is longer in lower case
    rules, found = [rule for rule in RULES if rule.kind in kinds], []
    places = {near: near.places(lowered) for near in {rule.near for rule in rules}}
    for rule in rules:
        taken = list(_spans(rule, text, places[rule.near]))
        found += [Found(rule.kind, *span) for span in taken if not (public and rule.published(text[slice(*span)]))]
        text = _with(text, [(span, "\0" * (span[1] - span[0])) for span in taken])
    return sorted(found, key=lambda place: place.start)


def redact(text: str, kinds: Collection[str] = KINDS, public: bool = False) -> Redacted:
    """`text` with `[kind]` for whatever `find` finds in it. Redacting twice changes nothing more."""
    places = find(text, kinds, public)
    kept = _with(text, [((place.start, place.end), f"[{place.kind}]") for place in places])
    return Redacted(kept, dict(Counter(place.kind for place in places)))


def _spans(rule: Rule, text: str, places: list[Span]) -> Iterator[Span]:
    at = 0
    for start, end in places:
        at = max(at, start)
        while match := rule.pattern.search(text, at, end):
            span = rule.span(match)
            at = span[1] if span else match.start() + 1
            if span:
                yield span


def _with(text: str, changes: list[tuple[Span, str]]) -> str:
    parts, at = [], 0
    for (start, end), new in changes:
        parts += [text[at:start], new]
        at = end
    return "".join([*parts, text[at:]]) if changes else text
