"""What an answer took, on the scale of the other metrics."""

from __future__ import annotations

from tasks.metrics.item import Item

HALF_TOKENS = 1000
"""Tokens at which an answer scores a half."""


def economy(item: Item) -> float | None:
    """Few tokens read and written: 1 / (1 + tokens / HALF_TOKENS). Tokens are what every engine and provider counts, and
    unlike seconds they do not depend on what else the machine does; seconds are the gate's `latency`."""
    generation = item.answer.generation
    return 1 / (1 + (generation.prompt_tokens + generation.completion_tokens) / HALF_TOKENS)
