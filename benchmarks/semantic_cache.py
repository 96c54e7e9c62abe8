"""Answers given again, on pairs of questions half of which only look alike: wrong hits, and hits, against a cosine."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from benchmarks.machine import data, home

AIM = "wrong hits <= 1% (95% upper bound), 3x the hit rate of a cosine threshold tuned to 1%"
PAIRS = 2000
NUMBER = re.compile(r"\b\d+\b")
NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*")


@dataclass(frozen=True)
class Pair:
    """A question that was answered, one asked later, and whether the earlier answer is the right one (`same`)."""

    kind: str
    known: str
    asked: str
    same: bool


def met(value: dict) -> bool:
    plain = value["cosine alone"]
    return value["wrong_upper"] <= 0.01 and (plain is None or value["hit_rate"] >= 3 * plain["hit_rate"])


def measure(pairs: int = PAIRS, seed: int = 0) -> dict:
    """Thresholds are chosen on as many other pairs, of other articles, and measured with the vectors that serve."""
    with home():
        from data.embedding import load
        from serving.engine.models import embedder_folder

        halves = drawn(pairs, seed)
        texts = list(dict.fromkeys(text for half in halves for pair in half for text in (pair.known, pair.asked)))
        rows = dict(zip(texts, load(embedder_folder()).embed(texts), strict=True))
        first, second = (judged(half, rows) for half in halves)
        value = compared(first, second)
        value["halves exchanged"] = tuned(second, first)
        return {"value": value, "n": pairs, "against": "cosine alone, the same vectors", "limit": 0.01}


# --- the figures ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Pairs, their cosines, and what the guards make of each: 'same words', 'other words' or 'never'."""

    pairs: list[Pair]
    cosines: np.ndarray
    tiers: np.ndarray

    def hits(self, same_words: float, other_words: float) -> np.ndarray:
        """Which pairs are hits where the guards are asked."""
        return ((self.tiers == "same words") & (self.cosines >= same_words)) | (
            (self.tiers == "other words") & (self.cosines >= other_words)
        )

    def figures(self, hits: np.ndarray) -> dict:
        """Share of wrong hits with its 95% upper bound (Clopper & Pearson 1934), and of the pairs with one answer that
        hit, also by kind."""
        from scipy.stats import beta

        same = np.array([pair.same for pair in self.pairs])
        wrong, all_hits = int((hits & ~same).sum()), int(hits.sum())
        by_kind = Counter(pair.kind for pair, hit in zip(self.pairs, hits, strict=True) if hit)
        of_kind = Counter(pair.kind for pair in self.pairs)
        return {
            "hit_rate": round(float((hits & same).sum() / same.sum()), 4),
            "hits": all_hits,
            "wrong": wrong,
            "wrong_upper": round(float(beta.ppf(0.95, wrong + 1, all_hits - wrong)) if all_hits > wrong else 1.0, 4),
            "by_kind": {kind: f"{by_kind[kind]} of {n}" for kind, n in of_kind.items()},
        }


def judged(pairs: list[Pair], rows: dict[str, np.ndarray]) -> Judged:
    from data.records import Reuse
    from serving.semantic import Question, needed

    marks = Reuse(same_words=0.0, other_words=1.0)
    names = {0.0: "same words", 1.0: "other words", np.inf: "never", -1.0: "same words"}
    tiers = [names[needed(Question.of(pair.known), Question.of(pair.asked), marks)] for pair in pairs]
    cosines = [float(rows[pair.known] @ rows[pair.asked]) for pair in pairs]
    return Judged(pairs, np.array(cosines), np.array(tiers))


STEPS = np.round(np.arange(0.6, 1.0005, 0.01), 3)


def tuned(chosen_on: Judged, measured_on: Judged) -> dict:
    """Ours, with the thresholds that have most hits while the 95% upper bound of wrong ones is half the aim.

    Half, since the best of many flatters itself: how much it still does, the exchanged halves tell.
    """
    allowed = []
    for same_words, other_words in combinations_with_replacement(STEPS, 2):
        figures = chosen_on.figures(chosen_on.hits(same_words, other_words))
        if figures["wrong_upper"] <= 0.005:
            allowed.append((figures["hits"], float(other_words), float(same_words)))
    _, other_words, same_words = max(allowed)
    chosen = {"same_words": same_words, "other_words": other_words}
    return chosen | measured_on.figures(measured_on.hits(same_words, other_words))


def compared(chosen_on: Judged, measured_on: Judged) -> dict:
    """Ours and the plain cosine; its threshold is chosen by its count of wrong hits alone, which is easier to meet."""
    plain = [chosen_on.figures(chosen_on.cosines >= mark) | {"cosine": float(mark)} for mark in STEPS]
    plain = [one for one in plain if one["hits"] and one["wrong"] <= 0.01 * one["hits"]]
    mark = max(plain, key=lambda one: one["hits"])["cosine"] if plain else None
    alone = {"cosine": mark} | measured_on.figures(measured_on.cosines >= mark) if plain else None
    known = {f"{mark:g}": measured_on.figures(measured_on.cosines >= mark) for mark in (0.8, 0.9, 0.95)}
    return tuned(chosen_on, measured_on) | {"cosine alone": alone, "GPTCache's thresholds": known}


# --- the pairs --------------------------------------------------------------------------------


def drawn(pairs: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Two halves of `pairs` pairs each, from different articles and different questions to a bank."""
    draw = random.Random(seed)
    articles = _articles()
    bank = _bank()
    draw.shuffle(articles)
    draw.shuffle(bank)
    halves = []
    for half in (0, 1):
        paragraphs = [paragraph for article in articles[half::2] for paragraph in article]
        halves.append(_half(paragraphs, bank[half::2], pairs, random.Random(seed + half)))
    return halves[0], halves[1]


def _half(paragraphs: list[list[tuple]], bank: list[tuple[str, str]], pairs: int, draw: random.Random) -> list[Pair]:
    """Half with the same answer, half hard negatives (METHODS section 6), in equal parts of each kind.

    Same: by the rules of tasks/behaviour, typed in small letters, or two people's questions with one answer.
    """
    from tasks.behaviour import mistyped, reworded

    asked = [question for paragraph in paragraphs for question, _ in paragraph]
    texts = [*asked, *(text for text, _ in bank)]
    names = sorted({name for text in asked for name in NAME.findall(text)})
    made = {
        ("reworded", True): [(text, reworded(text)) for text in texts],
        ("mistyped", True): [(text, mistyped(text)) for text in texts],
        ("small letters", True): [(text, f"please tell me {text.lower().rstrip('?. ')}") for text in texts],
        ("asked by two", True): [pair for paragraph in paragraphs for pair in _beside(paragraph, same=True)],
        ("same paragraph", False): [pair for paragraph in paragraphs for pair in _beside(paragraph, same=False)],
        ("edited number", False): [(text, _edited(text, draw)) for text in texts if NUMBER.search(text)],
        ("other entity", False): [(text, _renamed(text, names, draw)) for text in asked if NAME.search(text)],
        ("other intent", False): list(_other_intents(bank)),
    }
    found = []
    for (kind, same), pairs_made in made.items():
        # The same letters with two intents are an error of the labels, and with one answer no test
        differing = sorted({pair for pair in pairs_made if _letters(pair[0]) != _letters(pair[1])})
        found += [Pair(kind, *pair, same) for pair in draw.sample(differing, pairs // len(made))]
    return found


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _beside(paragraph: list[tuple[str, tuple[str, ...]]], same: bool) -> Iterator[tuple[str, str]]:
    """Each question of a paragraph with the one most like it by its words, of those with the same answer, or with none
    in common (token F1 of the closest answers 1, or 0: what lies between is neither)."""
    from tasks.metrics.answers import f1

    for at, (question, answers) in enumerate(paragraph):
        held = set(question.lower().split())
        others = [
            (len(held & set(other.lower().split())), other)
            for other, theirs in paragraph[at + 1 :]
            if max(f1(one, two) for one in answers for two in theirs) == float(same)
        ]
        if others:
            yield question, max(others)[1]


def _edited(text: str, draw: random.Random) -> str:
    """The text with one of its numbers changed by a little."""
    number = draw.choice(list(NUMBER.finditer(text)))
    return text[: number.start()] + str(int(number[0]) + draw.choice((1, 2, 10))) + text[number.end() :]


def _renamed(text: str, names: list[str], draw: random.Random) -> str:
    """The text with one of its names replaced by another question's."""
    name = draw.choice(list(NAME.finditer(text)))
    return text[: name.start()] + draw.choice(names) + text[name.end() :]


def _other_intents(bank: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Each question to the bank with the one most like it by its words of another intent."""
    words = [(set(text.lower().split()), text, intent) for text, intent in bank]
    for held, text, intent in words:
        alike = ((len(held & other) / len(held | other), asked) for other, asked, theirs in words if theirs != intent)
        yield text, max(alike)[1]


def _articles() -> list[list[list[tuple[str, tuple[str, ...]]]]]:
    """The articles of SQuADShifts new-wiki, each a list of paragraphs, each a list of (question, answers)."""
    with gzip.open(data("squadshifts_new_wiki.json.gz"), "rt") as file:
        read = json.load(file)["data"]
    return [
        [
            [(asked["question"].strip(), tuple({answer["text"] for answer in asked["answers"]})) for asked in p["qas"]]
            for p in article["paragraphs"]
        ]
        for article in read
    ]


def _bank() -> list[tuple[str, str]]:
    """(question, intent) of Banking77's test part."""
    with gzip.open(data("banking77_test.csv.gz"), "rt", newline="") as file:
        return [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
