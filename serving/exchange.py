"""One question from its admission to its row in the log: retrieve, prompt, generate, cite. Streamed or not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from data.records import Answer, Decoding, Filter, Generation, Hit, Model, Prompt, Release, as_json
from data.redaction import redact
from data.requests import Logged
from serving import rag, screens, semantic
from serving.guard import Chat
from serving.refused import Refused
from serving.router import UNUSABLE

if TYPE_CHECKING:
    import numpy as np

    from serving.semantic import SemanticCache

Generate = Callable[[Model, str, Decoding], AsyncIterator[dict]]
"""Model, prompt, decoding -> pieces as `ModelReplica.stream` yields them; closing it cancels the generation."""
Find = Callable[[Release, str, str, frozenset[str], Filter], "tuple[tuple[Hit, ...], np.ndarray]"]
"""Release, question, the one before it or '', tombstones, what its asker may see -> hits, the question's unit vector.
Called in a thread."""


@dataclass
class Exchange:
    """One admitted request. Iterate `deltas` to its end, then `answer` is there; `settle` runs whatever happens.

    `allowed`: which chunks may be retrieved for it. `prompt`: the release's as it stands for it (rag.standing), None
    before `deltas`. `hits`: what was retrieved; `submitted_s`: seconds from arrival until the prompt was handed to the
    engine, None where it never was. `cache`: answers that may be given again, None to have it written anew.
    """

    chat: Chat
    release: Release
    decoding: Decoding
    allowed: Filter
    row: Logged
    arrived: float
    timeout_s: float
    settle: Callable[[Logged], None]
    answer: Answer | None = None
    prompt: Prompt | None = None
    hits: tuple[Hit, ...] = ()
    vector: np.ndarray | None = None
    submitted_s: float | None = None
    cache: SemanticCache | None = None
    tool_calls: list[dict] = field(default_factory=list)

    async def deltas(
        self, generate: Generate, find: Find, tombstones: frozenset[str], threads: Executor
    ) -> AsyncIterator[str]:
        """The answer's text as it is written, citation marks last, joined equal to `self.content`.

        Raises Refused 504 past the time limit, 503 when the index or the model can not answer now.
        """
        row = self.row
        row.status, row.error = 499, "the client went away"  # unless one of the following says otherwise
        try:
            async for text in self._deltas(generate, find, tombstones, threads):
                yield text
            row.status, row.error = 200, ""
        except TimeoutError:
            message = f"No complete answer within {self.timeout_s:g} s"
            row.status, row.error = 504, message
            raise Refused(504, message, "timeout_error", code="timeout") from None
        except Refused as refused:
            row.status, row.error = refused.status, refused.message
            raise
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            row.status, row.error = 500, type(error).__name__
            raise
        finally:
            row.total_s = time.perf_counter() - self.arrived
            self.settle(row)

    async def _deltas(
        self, generate: Generate, find: Find, tombstones: frozenset[str], threads: Executor
    ) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout_s - (time.perf_counter() - self.arrived)
        self.prompt = prompt = rag.standing(self.release, tombstones).prompt
        question, row = self.chat.question, self.row
        row.queue_s = time.perf_counter() - self.arrived
        hits: tuple[Hit, ...] = ()
        if self.chat.searches:
            try:
                async with asyncio.timeout_at(deadline):
                    asked = (self.release, question, self.chat.before, tombstones, self.allowed)
                    hits, vector = await loop.run_in_executor(threads, find, *asked)
            except UNUSABLE as error:
                if isinstance(error, TimeoutError):
                    raise
                message = "The documents of this release can not be searched now"
                raise Refused(503, message, "server_error", code="index_unavailable", retry_after=5) from error
            row.retrieval_s = time.perf_counter() - self.arrived - row.queue_s
            self.hits, self.vector = hits, vector
            _log_hits(row, hits, vector)
        if row.source == "user" and (self.decoding.tools or (not hits and self.chat.picks)):
            row.source = "direct"  # the answer says something about the client's choice, nothing about the release
        row.flags = screens.screen(question, [hit.chunk for hit in hits])
        if self.chat.searches and not (hits or self.decoding.tools):
            self._finish(rag.unanswered(question, prompt))
            yield self.answer.text
            return
        if earlier := semantic.given_again(self, tombstones):
            self._finish(earlier)
            yield self.content
            return

        full = rag.build_prompt(prompt, question, [hit.chunk for hit in hits], self.chat.history)
        submitted, first_s = time.perf_counter(), None
        self.submitted_s = submitted - self.arrived
        text, sent, last = "", "", {}
        pieces = generate(self.release.model, full, self.decoding)
        try:
            while True:
                async with asyncio.timeout_at(deadline):  # no yield in here: it belongs to the task that iterates
                    piece = await anext(pieces, None)
                if piece is None:
                    break
                if first_s is None:
                    first_s = time.perf_counter() - submitted
                    row.first_token_s = time.perf_counter() - self.arrived
                text, last = text + piece["text"], piece
                row.completion_tokens, row.prompt_tokens = piece["tokens"], piece["prompt_tokens"]
                shown = self._shown(text, final=bool(piece["finish_reason"]))
                leaked = screens.leak(shown, prompt)
                if leaked is not None:
                    row.flags += ("leak",)
                    text, last = sent or shown[:leaked] or prompt.abstain, piece | {"finish_reason": "content_filter"}
                    break
                if len(shown) > len(sent):
                    yield shown[len(sent) :]
                    sent = shown
        finally:
            row.answer = self._kept(self._shown(text))  # what was written so far, also of a request that breaks off
            await pieces.aclose()
        row.engine_s = time.perf_counter() - submitted
        if last.get("finish_reason") not in ("stop", "length", "content_filter", "tool_calls"):
            raise Refused(503, "The model stopped before its answer was complete", "server_error", code="interrupted")
        called = last.get("tool_calls", "")
        if called and screens.leak(called, prompt) is not None:
            row.flags += ("leak",)
            called, last = "", last | {"finish_reason": "content_filter"}
        self.tool_calls = json.loads(called) if called else []
        written = Generation(
            text, last["prompt_tokens"], last["tokens"], last["finish_reason"], first_s or 0.0, row.engine_s
        )
        finished = rag.finish(question, replace(written, text=said(text)), hits, prompt) if self.structured else None
        self._finish(replace(finished, text=text) if finished else rag.finish(question, written, hits, prompt))
        semantic.keep(self)
        if rest := self.content[len(sent) :]:
            yield rest

    @property
    def structured(self) -> bool:
        """Whether the answer follows a schema; it is passed on as it was written, without marks."""
        return bool(self.decoding.json_schema)

    @property
    def content(self) -> str:
        """What a client reads, once `answer` is there."""
        return self.answer.text if self.structured else rag.content(self.answer)

    @property
    def declined(self) -> bool:
        """Whether nothing was found for an answer that has to follow a schema: OpenAI's `refusal`, not `content`."""
        asked_nobody = self.answer is not None and self.chat.searches and not (self.answer.hits or self.decoding.tools)
        return self.structured and asked_nobody

    def _shown(self, text: str, final: bool = True) -> str:
        return text if self.structured else rag.clean(text, final)

    def _finish(self, answer: Answer) -> None:
        self.answer, row = answer, self.row
        row.answer, row.abstained = self._kept(answer.text), answer.abstained
        row.cited = tuple(citation.chunk for citation in answer.citations)
        silent = answer.abstained or self.tool_calls
        row.grounding = rag.grounding(answer.text, answer.hits) if answer.hits and not silent else None
        if screens.ungrounded(answer, row.grounding):
            row.flags += ("ungrounded",)

    def _kept(self, text: str) -> str:
        return redact(text).text if self.release.guard.redact_log else text


def _log_hits(row: Logged, hits: tuple[Hit, ...], vector: np.ndarray) -> None:
    row.chunks = tuple(hit.chunk.id for hit in hits)
    row.scores = tuple(float(hit.score) for hit in hits)
    row.similarity = max((float(hit.similarity) for hit in hits), default=None)
    row.embedding = vector.astype("<f2").tobytes()


def said(structured: str) -> str:
    """The texts and numbers in a JSON answer, as sentences; the answer itself where it broke off and is no JSON."""

    def leaves(value: object) -> list[str]:
        if isinstance(value, dict | list):
            held = value.values() if isinstance(value, dict) else value
            return [leaf for one in held for leaf in leaves(one)]
        return [] if value is None or isinstance(value, bool) else [str(value)]

    try:
        return ". ".join(leaves(json.loads(structured)))
    except ValueError:
        return structured


# --- what a client reads ----------------------------------------------------------------------


def citations(answer: Answer) -> list[dict]:
    """The answer's citations as JSON, each with the text it points to."""
    texts = {hit.chunk.id: hit.chunk.text for hit in answer.hits}
    return [as_json(citation) | {"text": texts[citation.chunk]} for citation in answer.citations]


def scores(answer: Answer) -> list[dict]:
    """What was retrieved, best first."""
    return [
        {"chunk": hit.chunk.id, "score": float(hit.score), "similarity": float(hit.similarity)} for hit in answer.hits
    ]


def usage(row: Logged) -> dict:
    """OpenAI's usage object. For an answer given again the whole prompt was cached, and nothing was written."""
    if row.reuse_of:
        read = row.saved_prompt_tokens
        counted = {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read}
        return counted | {"prompt_tokens_details": {"cached_tokens": read}}
    total = row.prompt_tokens + row.completion_tokens
    return {"prompt_tokens": row.prompt_tokens, "completion_tokens": row.completion_tokens, "total_tokens": total}


def completion(exchange: Exchange, created: int) -> dict:
    """The whole answer as OpenAI's chat.completion object."""
    answer, row = exchange.answer, exchange.row
    said_or_declined = (None, exchange.content) if exchange.declined else (exchange.content, None)
    message = {"role": "assistant"} | dict(zip(("content", "refusal"), said_or_declined, strict=True))
    if exchange.tool_calls:
        message |= {"content": exchange.content or None, "tool_calls": exchange.tool_calls}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.generation.finish_reason}
    return {
        "id": row.response,
        "object": "chat.completion",
        "created": created,
        "model": row.assistant,
        "system_fingerprint": row.release,
        "choices": [choice],
        "usage": usage(row),
        "citations": citations(answer),
        "retrieval_scores": scores(answer),
    }


def chunk(exchange: Exchange, created: int, delta: dict, finish_reason: str | None = None, **more: object) -> dict:
    """One chat.completion.chunk; `more` are further top-level fields."""
    return {
        "id": exchange.row.response,
        "object": "chat.completion.chunk",
        "created": created,
        "model": exchange.row.assistant,
        "system_fingerprint": exchange.row.release,
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        **more,
    }
