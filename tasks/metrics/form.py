"""Is the answer in the form that was asked for, of a sensible length, and in the language of the question?"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pydantic import RootModel

from data.cleaning import language as written_in
from tasks.metrics.item import Item, answerable

FREE_WORDS = 20
"""Words that no answer is too long with."""
TELLING_CHARACTERS = 30
"""Length from which the language of an answer can be told; the shorter ones are mostly names and figures."""


class Json(RootModel[dict[str, Any] | list[Any]]):
    """An object or an array; a bare word or figure is not what somebody means who asks for JSON."""


def json_valid(item: Item) -> float | None:
    """1 if the answer is JSON, by DeepEval's JsonCorrectnessMetric; None unless the question asks for JSON."""
    return _formatted(item, r"\b(as|in|valid) JSON\b", "json")


def date_valid(item: Item) -> float | None:
    """1 if the answer is a date such as 2026-11-20, by DeepEval's PatternMatchMetric; None unless the question asks for
    YYYY-MM-DD."""
    return _formatted(item, r"\bYYYY-MM-DD\b", "date")


def length(item: Item) -> float | None:
    """1 up to twice the words of the longest accepted answer, FREE_WORDS at least, then that limit's share of the words
    said; an empty answer 0. None for an unanswerable question."""
    if not answerable(item):
        return None
    said = len(item.answer.text.split())
    most = max(FREE_WORDS, *(2 * len(accepted.split()) for accepted in item.golden.answers))
    return min(1.0, most / said) if said else 0.0


def language(item: Item) -> float | None:
    """0 if question and answer are surely in two languages, else 1.

    An abstention, and a text too short to tell, are not in the wrong one.
    """
    text = item.answer.text
    if item.answer.abstained or min(len(text), len(item.question)) < TELLING_CHARACTERS:
        return 1.0
    asked, said = written_in(item.question), written_in(text)
    return float(asked == said or not asked or not said)


def _formatted(item: Item, wish: str, name: str) -> float | None:
    if not answerable(item) or not re.search(wish, item.question, re.IGNORECASE):
        return None
    if item.answer.abstained or not item.answer.text.strip():
        return 0.0
    metrics, case = _deepeval()
    return float(metrics[name].measure(case(input="-", actual_output=item.answer.text), _show_indicator=False))


@cache
def _deepeval():
    from deepeval.metrics import JsonCorrectnessMetric, PatternMatchMetric
    from deepeval.models import DeepEvalBaseLLM
    from deepeval.test_case import LLMTestCase

    class NoModel(DeepEvalBaseLLM):
        """Stands where DeepEval wants a model although it asks none: else it takes OpenAI's, and wants its key."""

        def load_model(self):
            return None

        def generate(self, *_, **__):
            raise RuntimeError("a metric without a judge asked a model")

        a_generate = generate

        def get_model_name(self):
            return "none"

    json = JsonCorrectnessMetric(Json, model=NoModel(), async_mode=False, include_reason=False)
    return {"json": json, "date": PatternMatchMetric(r"\d{4}-\d{2}-\d{2}")}, LLMTestCase
