"""Answers given again, on pairs of questions of which half only look alike: wrong hits, hit rate, and a plain cosine."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

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
    """Thresholds are chosen on as many other pairs, from other paragraphs; shares are of the pairs measured."""
    with home():
        from data.embedding import load
        from serving.engine.models import embedder_folder

        halves = drawn(pairs, seed)
        embedder = load(embedder_folder())
        cosines = []
        for half in halves:
            texts = list(dict.fromkeys(text for pair in half for text in (pair.known, pair.asked)))
            rows = dict(zip(texts, embedder.embed(texts), strict=True))
            cosines.append(np.array([float(rows[pair.known] @ rows[pair.asked]) for pair in half]))
        return compared(halves, cosines)


# --- the pairs --------------------------------------------------------------------------------


def drawn(pairs: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Two halves of `pairs` pairs each, from different articles and different questions to a bank."""
    draw = random.Random(seed)
    articles = [article for name in ("new_wiki", "amazon") for article in _articles(name)]
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
        differing = sorted({pair for pair in pairs_made if pair[0].casefold() != pair[1].casefold()})
        found += [Pair(kind, *pair, same) for pair in draw.sample(differing, pairs // len(made))]
    return found


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
        alike = (
            (len(held & other) / len(held | other), asked) for other, asked, theirs in words if theirs != intent
        )
        yield text, max(alike)[1]


def _articles(name: str) -> list[list[list[tuple[str, tuple[str, ...]]]]]:
    """Articles, each a list of paragraphs, each a list of (question, answers)."""
    read = json.loads(gzip.decompress(open(data(f"squadshifts_{name}.json.gz"), "rb").read()))
    return [
        [
            [(asked["question"].strip(), tuple({answer["text"] for answer in asked["answers"]})) for asked in p["qas"]]
            for p in article["paragraphs"]
        ]
        for article in read["data"]
    ]


def _bank() -> list[tuple[str, str]]:
    """(question, intent) of Banking77's test part."""
    with gzip.open(data("banking77_test.csv.gz"), "rt", newline="") as file:
        return [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
