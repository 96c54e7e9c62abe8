"""Answers given again: to a question that asks what another did, of the same release and with the same rights.

`python -m serving.semantic` reports how often, what it saved, and on which pairs of questions.

Off unless the release has a `Reuse`. A request is searched for as ever; only the engine's work is saved. The earlier
generation is then finished anew, by the passages found for this very question, and is given only if that cites what it
cited before. So it can not cite what its asker may not see or what was deleted, and what the log, the drift detectors
and the reader are told about retrieval and grounding is measured, not remembered.

Kept in the memory of one endpoint: there is one, a lost entry costs one generation, and what a person asked to have
forgotten lies in no further file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rapidfuzz.distance import OSA

from data.cleaning import word_set
from data.copies import decisive, tokens
from data.ledger import Ledger, migrate
from data.records import Answer, Decoding, Filter, Generation, Reuse
from data.requests import RequestLog
from serving import rag
from settings import settings

if TYPE_CHECKING:
    from serving.exchange import Exchange

MOST = 4096
"""Answers kept of all assistants together; the oldest makes room."""
CLOSEST = 20
"""Of the known questions at most so many are looked at for one."""
TYPED = 5
"""Letters from which on a word may be mistyped."""
FORM = word_set("a an the please tell me us could would you i we know hello hi thanks thank my your our")
"""Words that say nothing of what is asked."""
ASKING = word_set("who whom whose when where why how")


# --- whether two questions ask the same -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """What of a question decides whether another asks the same.

    All in small letters and in order. `plain`: all of it but the mark at its end. `words`: without FORM. `figures`:
    numbers, signs and decisive words (data/copies). `names`: words that had a capital and are neither FORM nor ASKING.
    `asking`: what it asks for, as far as a word of ASKING says.
    """

    plain: str
    words: tuple[str, ...]
    figures: tuple[str, ...]
    names: tuple[str, ...]
    asking: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Question:
        found = tokens(text)
        small = [token.lower() for token in found]
        words = tuple(word for word in small if word not in FORM)
        names = tuple(
            word for token, word in zip(found, small, strict=True) if token != word and word not in FORM | ASKING
        )
        plain = " ".join(text.split()).rstrip(" ?.!").casefold()
        return cls(plain, words, tuple(decisive(found)), names, ASKING & set(small))


def needed(known: Question, asked: Question, reuse: Reuse, written: Set[str] = frozenset()) -> float:
    """The cosine from which on the answer to `known` is one to `asked`; infinite where it never is. `written`: the
    words of the passages that were found.

    A vector tells hardly anything of a number, a negation or a name: those have to be the same, in the same order, and
    so has what is asked for (who, when, how). Beyond that the same words in the same order need little, others a lot.
    """
    if known.plain == asked.plain:
        return -1.0
    if known.figures != asked.figures or not _named(known, asked) or not _named(asked, known):
        return np.inf
    if known.asking != asked.asking and known.asking and asked.asking:
        return np.inf
    same = len(known.words) == len(asked.words) and all(
        _mistyped(*pair, written) for pair in zip(known.words, asked.words, strict=True)
    )
    return reuse.same_words if same else reuse.other_words


def _named(one: Question, other: Question) -> bool:
    """Whether the other has every name of the one, in whatever letters, in the same order."""
    return [word for word in other.words if word in one.names] == list(one.names)


def _mistyped(one: str, other: str, written: Set[str]) -> bool:
    """Whether two words are one but for a letter too much or two in each other's place, not at the beginning. Two that
    both stand in passages are two words (contract, contact)."""
    if one == other:
        return True
    if (
        {one, other} <= written
        or one[0] != other[0]
        or min(len(one), len(other)) < TYPED
        or OSA.distance(one, other) > 1
    ):
        return False
    return len(one) != len(other) or sorted(one) == sorted(other)


# --- the cache --------------------------------------------------------------------------------


class Place(NamedTuple):
    """Whose answers may be given to a request: those of its release, its reader's rights and its settings."""

    release: str
    allowed: Filter
    decoding: Decoding


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that was given: what the engine wrote, the ids of the passages `shown` to it and of what its worked
    examples rest on, and id and text of those that the answer `cited`."""

    place: Place
    question: Question
    response: str
    generation: Generation
    shown: frozenset[str]
    cited: frozenset[tuple[str, str]]
    at: float


class SemanticCache:
    """The last `most` answers, found by the vectors of their questions. Used on one event loop; `clock`: seconds."""

    def __init__(self, most: int = MOST, clock: Callable[[], float] = time.monotonic):
        self.most, self.clock = most, clock
        self._kept: list[Kept | None] = []
        self._next = 0
        self._vectors, self._places = np.zeros((0, 0), np.float32), np.zeros(most, np.int64)

    def find(
        self, place: Place, question: Question, vector: np.ndarray, reuse: Reuse, written: Set[str] = frozenset()
    ) -> Iterator[Kept]:
        """Answers to what asks the same, in this place and not too old, those to the most similar questions first.
        `written`: as for `needed`."""
        if not self._kept:
            return
        here = np.flatnonzero(self._places[: len(self._kept)] == hash(place))
        cosines = (self._vectors[: len(self._kept)] @ vector)[here]  # all of them: picking rows would copy them
        for at in np.argsort(-cosines)[:CLOSEST]:
            kept = self._kept[here[at]]
            if kept is None or kept.place != place or self.clock() - kept.at > reuse.hours * 3600:
                continue
            if cosines[at] >= needed(kept.question, question, reuse, written):
                yield kept

    def keep(self, kept: Kept, vector: np.ndarray) -> None:
        """Take in an answer and its question's unit vector [dimensions]."""
        if not self._kept:
            self._vectors = np.zeros((self.most, len(vector)), np.float32)
        if len(self._kept) < self.most:
            self._kept.append(None)
        at = self._next
        self._kept[at], self._vectors[at], self._places[at] = kept, vector, hash(kept.place)
        self._next = (at + 1) % self.most

    def forget(self, response: str) -> None:
        """Never again give the answer with this response id."""
        self._kept = [kept if kept and kept.response != response else None for kept in self._kept]


def place(exchange: Exchange) -> Place | None:
    """Where answers to requests like this one are; None where each is written anew.

    Only what a user asks of the live release in one turn, greedily and in plain text: a follow-up means what was said
    before, a sampled text is one of many, and a canary or a probe has to measure the release itself.
    """
    chat, row = exchange.chat, exchange.row
    usual = row.source == "user" and row.arm == "live" and not row.flags
    alone = not chat.history and exchange.decoding.temperature == 0 and not exchange.structured
    if not (exchange.cache and exchange.release.reuse and exchange.hits and usual and alone):
        return None
    return Place(exchange.release.id, exchange.allowed, exchange.decoding)


def given_again(exchange: Exchange, buried: frozenset[str]) -> Answer | None:
    """An earlier answer to the exchange's question, finished by its own passages; None where there is none to give.

    `buried`: tombstones; an answer that was written from one of them is no more given, cited or not.
    """
    where, row = place(exchange), exchange.row
    if where is None:
        return None
    row.reuse, asked = "miss", Question.of(exchange.chat.question)
    written = {token.lower() for hit in exchange.hits for token in tokens(hit.chunk.text)}
    for kept in exchange.cache.find(where, asked, exchange.vector, exchange.release.reuse, written):
        answer = rag.finish(exchange.chat.question, kept.generation, exchange.hits, exchange.prompt)
        if kept.shown.isdisjoint(buried) and _cited(answer) == kept.cited:
            row.reuse, row.reuse_of = "exact" if kept.question.plain == asked.plain else "similar", kept.response
            row.saved_prompt_tokens = kept.generation.prompt_tokens
            row.saved_completion_tokens = kept.generation.completion_tokens
            return answer
    return None


def keep(exchange: Exchange) -> None:
    """Keep a finished answer for those who ask the same, if it cites something and is whole."""
    where, answer = place(exchange), exchange.answer
    if where is None or not answer.citations or answer.generation.finish_reason != "stop":
        return
    shown = frozenset(hit.chunk.id for hit in answer.hits).union(*(shot.rests_on for shot in exchange.prompt.shots))
    asked = Question.of(exchange.chat.question)
    kept = Kept(where, asked, exchange.row.response, answer.generation, shown, _cited(answer), exchange.cache.clock())
    exchange.cache.keep(kept, exchange.vector)


def _cited(answer: Answer) -> frozenset[tuple[str, str]]:
    """With their texts: a passage may be shown with its neighbours, or without one that was deleted since."""
    cited = {citation.chunk for citation in answer.citations}
    return frozenset((hit.chunk.id, hit.chunk.text) for hit in answer.hits if hit.chunk.id in cited)


# --- the report -------------------------------------------------------------------------------


def report(log: RequestLog, ledger: Ledger, since: float, pairs: int = 20) -> list[str]:
    """Per assistant: requests that an answer was looked for, share that got one, what that saved, how many of those
    were disliked; then the last `pairs` of questions that were taken for the same, for a person to look at."""
    lines = []
    for row in log.reused(since):
        disliked = {said["response"] for said in ledger.feedback(row["assistant"]) if said["rating"] == -1}
        given = log.given_again(row["assistant"], since)
        looked_for, found = row["looked_for"], row["exact"] + row["similar"]
        lines.append(
            f"{row['assistant']}: {found} of {looked_for} answers given again ({found / looked_for:.0%}), "
            f"{row['exact']} to the same question, {row['similar']} to a similar one; {row['saved_tokens']} tokens and "
            f"{row['saved_cost']:.4f} saved, {sum(one['response'] in disliked for one in given)} disliked"
        )
        similar = [one for one in given if one["reuse"] == "similar"][:pairs]
        lines += [
            f"  {one['question']!r} got the answer to {one['earlier'] or '(no longer logged)'!r}" for one in similar
        ]
    return lines


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m serving.semantic", description=report.__doc__)
    parser.add_argument("--days", type=float, default=7.0)
    asked, chosen = parser.parse_args(words), settings()
    migrate(chosen.ledger)
    lines = report(RequestLog(chosen.requests), Ledger(chosen.ledger), time.time() - 86_400 * asked.days)
    print(
        "\n".join(lines)
        or "no release that gives answers again was asked anything; see --reuse-answers of the lifecycle"
    )


if __name__ == "__main__":
    main()
