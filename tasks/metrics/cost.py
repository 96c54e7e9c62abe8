"""What an answer took, on the scale of the other metrics."""

from __future__ import annotations

from tasks.metrics.item import Item

HALF_TOKENS = 1000
"""Tokens at which an answer scores a half."""


def economy(item: Item) -> float | None:
    """Few tokens read and written: 1 / (1 + tokens / HALF_TOKENS).

    Every engine and provider counts tokens, and unlike seconds (the gate's `latency`) they do not depend on what else
    the machine does.
    """
    generation = item.answer.generation
    return 1 / (1 + (generation.prompt_tokens + generation.completion_tokens) / HALF_TOKENS)
