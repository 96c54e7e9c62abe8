"""What people do to an assistant, as they would: ask over HTTP, rate and correct the answers, review what was said."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from data import feedback
from data.ledger import Ledger
from data.records import Example, Record
from settings import settings

CLIENTS = 4
PAUSE_S = 1.0


@dataclass(frozen=True)
class Reply(Record):
    """An answer of the endpoint to a question whose right answers are known; `citations` are documents."""

    question: str
    right: tuple[str, ...]
    text: str
    response: str
    release: str
    citations: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether a right answer stands in it, as whole words."""
        from tasks.metrics.answers import normalise

        return any(f" {normalise(accepted)} " in f" {normalise(self.text)} " for accepted in self.right)


def ask(assistant: str, question: str, right: Sequence[str] = (), user: str = "ann") -> Reply:
    """One question over HTTP. Raises httpx.HTTPError when it is not answered."""
    body = {"model": assistant, "messages": [{"role": "user", "content": question}], "user": user}
    said = post("/v1/chat/completions", body)
    text, cited = said["choices"][0]["message"]["content"], tuple(c["document"] for c in said["citations"])
    return Reply(question, tuple(right), text, said["id"], said["system_fingerprint"], cited)


def ask_all(assistant: str, examples: Sequence[Example]) -> list[Reply]:
    """Every question, a few people at a time, each question by another user."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, assistant, one.question, one.answers, f"user {n}") for n, one in enumerate(examples)]
        return [reply.result() for reply in asked]


def share_correct(replies: Sequence[Reply]) -> float:
    return sum(reply.correct for reply in replies) / len(replies)


def label(book: Ledger, assistant: str, replies: Sequence[Reply]) -> int:
    """Thumbs on every answer, with the right text where it was wrong, and a reviewer who accepts each; how many."""
    last = max((row["seq"] for row in book.feedback(assistant)), default=0)
    for number, reply in enumerate(replies):
        said = {"rating": 1} if reply.correct else {"rating": -1, "edit": reply.right[0]}
        post("/v1/feedback", {"response_id": reply.response, "user": f"user {number}"} | said)
    rows = book.feedback(assistant, after=last)
    for row in rows:
        feedback.review_feedback(book, row["seq"], "accepted", "the demo's reviewer")
    return len(rows)


@contextmanager
def asking(assistant: str, question: str) -> Iterator[list[Reply | None]]:
    """Someone who goes on asking meanwhile; the replies so far, None for a question that was not answered."""
    seen: list[Reply | None] = []
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(PAUSE_S):
            try:
                seen.append(ask(assistant, question))
            except httpx.HTTPError:
                seen.append(None)

    person = threading.Thread(target=go_on)
    person.start()
    try:
        yield seen
    finally:
        stop.set()
        person.join()


def post(path: str, body: dict) -> dict:
    headers = {"authorization": f"Bearer {settings().api_key}"} if settings().api_key else {}
    reply = httpx.post(f"{settings().endpoint}{path}", json=body, headers=headers, timeout=120)
    return reply.raise_for_status().json()
