"""Is the answer right? Each accepted answer is compared and the best counts; an abstention scores 0."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from functools import cache

from tasks.metrics.item import Item, answerable

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """SQuAD normalisation (Rajpurkar et al. 2016): lower case, no punctuation, no articles, single spaces.

    >>> normalise("The  Röntgen-Prize, of 1901.")
    'röntgenprize of 1901'
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def f1(text: str, accepted: str) -> float:
    """Token F1 of two texts after normalisation; two empty texts agree.

    >>> round(f1("in May 2018", "May 18, 2018"), 3)
    0.667
    """
    said, wanted = normalise(text).split(), normalise(accepted).split()
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def best(item: Item, compare: Callable[[str, str], float]) -> float | None:
    """The best agreement of the answer with any accepted one; None for an unanswerable question."""
    if not answerable(item):
        return None
    if item.answer.abstained:
        return 0.0
    return max(compare(item.answer.text, accepted) for accepted in item.golden.answers)


def token_f1(item: Item) -> float | None:
    """Token F1 against the best accepted answer."""
    return best(item, f1)


def exact_match(item: Item) -> float | None:
    """1 if the normalised answer equals an accepted one, by DeepEval's ExactMatchMetric."""
    return best(item, _exact)


def rouge_l(item: Item) -> float | None:
    """ROUGE-L F-measure, stemmed, by Ragas."""
    return best(item, lambda text, accepted: _ragas("RougeScore", text, accepted))


def bleu(item: Item) -> float | None:
    """BLEU by sacrebleu, without the orders of n-grams that a short answer is too short for.

    Not Ragas' BleuScore: it scores two equal words 0, and takes the sentences of one reference for alternatives.
    """
    return best(item, lambda text, accepted: _bleu()(text.lower(), [accepted.lower()]).score / 100)


def chrf(item: Item) -> float | None:
    """Character n-gram F-score, by Ragas and sacrebleu: forgiving of inflection and spelling."""
    return best(item, lambda text, accepted: _ragas("CHRFScore", text, accepted))


def similarity(item: Item) -> float | None:
    """1 - normalised Levenshtein distance, by Ragas and rapidfuzz."""
    return best(item, lambda text, accepted: _ragas("NonLLMStringSimilarity", text, accepted))


def semantic_similarity(item: Item) -> float | None:
    """Cosine of the embeddings, 0 where it is negative, NaN without vectors.

    What Ragas' SemanticSimilarity computes, which asks its embedder for one text at a time.
    """
    return best(item, lambda text, accepted: _cosine(item, text, accepted))


def compared(item: Item) -> Iterator[str]:
    """The texts whose vectors `semantic_similarity` needs."""
    if item.golden.answers and not item.answer.abstained:
        yield from (item.answer.text, *item.golden.answers)


def facts(text: str) -> set[str]:
    """What an answer must not get wrong: its words with a figure in them, and its names and codes (words with a capital
    letter, but for the first word's, which any sentence has).

    >>> sorted(facts("Ask Ada Lovelace for order ZX-44 within 30 days"))
    ['30', 'ada', 'lovelace', 'zx44']
    """
    told = text.split()
    kept = [
        word
        for at, word in enumerate(told)
        if any(sign.isdigit() for sign in word) or (word != "I" and any(map(str.isupper, word if at else word[1:])))
    ]
    return set(normalise(" ".join(kept)).split())


def must_include(item: Item) -> float | None:
    """Share of the facts of an accepted answer that the answer holds as whole words, of the best accepted one.

    None where no accepted answer has facts. Beside one that has, an accepted answer without facts, such as one with its
    figures written out, must stand there as it is.

    Not Ragas' StringPresence: it finds 10 in 2010.
    """
    if not any(map(facts, item.golden.answers)):
        return None
    return best(item, _held)


def _held(text: str, accepted: str) -> float:
    wanted, said = facts(accepted), normalise(text)
    if not wanted:
        return float(f" {normalise(accepted)} " in f" {said} ")
    return len(wanted & set(said.split())) / len(wanted)


def _cosine(item: Item, text: str, accepted: str) -> float:
    if not text.strip():
        return 0.0
    if text not in item.vectors or accepted not in item.vectors:
        return math.nan
    return min(1.0, max(0.0, float(item.vectors[text] @ item.vectors[accepted])))


@cache
def _bleu():
    from sacrebleu import sentence_bleu

    return sentence_bleu


def finish(coroutine: Coroutine):
    """The result of a coroutine that never waits.

    Ragas has asynchronous methods only, or ones that patch the running event loop (nest_asyncio), which breaks a
    flow or server that owns it. Its model-free metrics never wait, so they are driven by hand, with no loop at all.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError(f"{coroutine.__qualname__} waited for something; only metrics without a model belong here")


@cache
def _collection(name: str):
    from ragas.metrics import collections

    return getattr(collections, name)()


def _ragas(name: str, text: str, accepted: str) -> float:
    if not text.strip():
        return 0.0
    result = finish(_collection(name).ascore(reference=accepted.lower(), response=text.lower()))
    return min(1.0, max(0.0, float(result.value)))


@cache
def _deepeval():
    from deepeval.metrics import ExactMatchMetric
    from deepeval.test_case import LLMTestCase

    return ExactMatchMetric(), LLMTestCase


def _exact(text: str, accepted: str) -> float:
    metric, case = _deepeval()
    said, wanted = normalise(text), normalise(accepted)
    if not said or not wanted:
        return float(said == wanted)
    return float(metric.measure(case(input="-", actual_output=said, expected_output=wanted), _show_indicator=False))
