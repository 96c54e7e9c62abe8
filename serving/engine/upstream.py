"""An engine elsewhere: any endpoint that speaks OpenAI's chat completions, as vLLM and most providers do.

It is named `URL#MODEL`, as in `http://10.0.0.5:8000/v1#qwen3`, or `URL#MODEL#VERSION`. There is no file to verify, so
nobody here can see that another model answers under the name: raise VERSION when that is so, and all is evaluated anew.
The key is settings().upstream_key, and stands nowhere else.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from itertools import count
from urllib.parse import urlsplit

import httpx

from data.records import Decoding, Generation, Model, digest
from serving.engine import Piece, Unavailable
from serving.schema import ANYTHING
from settings import settings

PATH = "/chat/completions"
BATCH, SLICE = 8, 32
"""Prompts that are asked at once, and those among which a failure may lose the answers of others."""
CONNECT_S = 10.0
PATIENCE_S, BATCH_PATIENCE_S = 6.0, 300.0
"""How long one generation may wait in all between tries: while a client waits for it, and in an evaluation."""
AGAIN = frozenset((408, 409, 429, 500, 502, 503, 504, 529))
TO_DO = {
    401: "; set PERENNIAL_UPSTREAM_KEY on every node, then stop and start the stack",
    403: "; set PERENNIAL_UPSTREAM_KEY on every node to a key that may use this model, then stop and start the stack",
    404: "; give the address up to its /v1, and a model that is there",
}
INSTEAD = {"max_tokens": "max_completion_tokens", "temperature": "", "top_p": ""}
"""What some models refuse, as OpenAI's that reason do, and what they are sent instead, '' for nothing."""
ENDS = frozenset(("stop", "length", "content_filter", "tool_calls"))
PLACE = re.compile(r"\w+://[^\s'\"]+|(?<!\w)/[\w.-]+/[\w./-]*")
CHARACTERS_PER_TOKEN = 4
SHOWN = 300


def is_upstream(name: str | None) -> bool:
    """Whether a base model's name is that of an upstream: `URL#MODEL`."""
    return bool(name) and name.startswith(("http://", "https://"))


def address(uri: str) -> tuple[str, str, str]:
    """URL, the model's name there, and its version, '' for none. Raises ValueError for what is no `URL#MODEL`."""
    url, name, version = (*uri.split("#", 2), "", "")[:3]
    parts = urlsplit(url)
    if not (parts.hostname and name):
        raise ValueError(f"{uri!r} names no model; an upstream is URL#MODEL, as in http://10.0.0.5:8000/v1#qwen3")
    if parts.query or "@" in parts.netloc:  # the address stands in records, logs and reports
        raise ValueError(f"the address of {name!r} carries a key or a query; put the key in PERENNIAL_UPSTREAM_KEY")
    return url.rstrip("/"), name, version


def upstream_model(uri: str) -> Model:
    """The record of an upstream. Its sha256 is of its name, and its base is the name itself: there are no weights."""
    name = "#".join(filter(None, address(uri)))
    return Model(digest("upstream", name), name, "upstream", name)


def untunable(model: Model) -> str:
    """Why no adapter can be trained for `model`, '' where one can."""
    return f"{model.uri} is served elsewhere, where no adapter of ours can go" if model.engine == "upstream" else ""


class Filtered(Exception):
    """The provider's filter held this prompt back: it alone, and for good."""


class UpstreamEngine:
    """See serving.engine.Engine. Prompts are in the chat format `messages` (serving/chat.py).

    An answer may take the request timeout, and in an evaluation at least BATCH_PATIENCE_S, from its beginning.
    """

    def __init__(self, model: Model):
        url, self._name, _ = address(model.uri)
        self._key = settings().upstream_key or ""
        held = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._timeout_s = settings().request_timeout_s
        silence = httpx.Timeout(self._timeout_s, connect=CONNECT_S)
        self._client = httpx.Client(base_url=url, headers=held, timeout=silence)
        self._refused: frozenset[str] = frozenset()  # of INSTEAD
        self._threads = ThreadPoolExecutor(BATCH, thread_name_prefix="upstream")
        self.version = f"upstream {model.uri}"

    def stream(self, prompt: str, decoding: Decoding) -> Iterator[Piece]:
        return self._stream(prompt, decoding, PATIENCE_S)

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> Iterator[Generation]:
        for start in range(0, len(prompts), SLICE):
            yield from self._threads.map(lambda prompt: self._whole(prompt, decoding), prompts[start : start + SLICE])

    def count(self, text: str) -> int:
        """An estimate: what the upstream counts is known only from its answers."""
        return -(-len(text) // CHARACTERS_PER_TOKEN)

    def check(self) -> None:
        """Nothing: a new replica would reach the upstream no better, and asking it costs money."""

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _whole(self, prompt: str, decoding: Decoding) -> Generation:
        start, first_s, pieces = time.perf_counter(), 0.0, []
        for piece in self._stream(prompt, decoding, BATCH_PATIENCE_S):
            if piece.text or piece.finish_reason:
                first_s = first_s or time.perf_counter() - start
                pieces.append(piece)
        text, last = "".join(piece.text for piece in pieces), pieces[-1]
        total_s = time.perf_counter() - start
        return Generation(text, last.prompt_tokens, last.tokens, last.finish_reason, first_s, total_s)

    def _stream(self, prompt: str, decoding: Decoding, patience_s: float) -> Iterator[Piece]:
        try:
            with self._answer(self._asked(prompt, decoding), patience_s) as response:
                yield from self._read(prompt, decoding, response, max(self._timeout_s, patience_s))
        except Filtered:
            yield Piece("", 0, "content_filter")

    def _read(self, prompt: str, decoding: Decoding, response: httpx.Response, most_s: float) -> Iterator[Piece]:
        """Pieces as they come; the last one waits for the usage, which follows the finish reason.

        A line without text is a piece without text: at each piece the generation can be cancelled.
        """
        text, reason, usage, calls, declined = "", "", {}, {}, False
        until = time.monotonic() + most_s
        for event in self._events(response):
            if time.monotonic() > until:
                raise Unavailable(f"{self._name} did not end its answer within {most_s:g} s")
            new = ""
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                delta, reason = choice.get("delta") or {}, choice.get("finish_reason") or reason
                _gather(calls, delta.get("tool_calls") or ())
                declined = declined or bool(delta.get("refusal"))
                new += delta.get("content") or delta.get("refusal") or ""
            text += new
            yield Piece(new, self.count(text))
        if reason not in ENDS:
            raise Unavailable(f"{self._name} broke off: its stream ended with {reason or 'no finish reason'}")
        if decoding.json_schema and reason == "stop" and not (calls or declined or _is_json(text)):
            raise Unavailable(f"{self._name} can not be held to JSON: it passed over response_format; ask without it")
        made = json.dumps([calls[at] for at in sorted(calls)], ensure_ascii=False) if calls else ""
        read, wrote = usage.get("prompt_tokens"), usage.get("completion_tokens")
        read = self.count(prompt) if read is None else read
        wrote = self.count(text + made) if wrote is None else wrote
        yield Piece("", wrote, reason, read, made)

    def _asked(self, prompt: str, decoding: Decoding) -> dict:
        body = {"model": self._name, "messages": json.loads(prompt), "max_tokens": decoding.max_new_tokens}
        body |= {"temperature": decoding.temperature, "stream": True, "stream_options": {"include_usage": True}}
        if decoding.temperature > 0:
            body |= {"top_p": decoding.top_p, "seed": decoding.seed}
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if decoding.json_schema:
            body["response_format"] = _held_to(json.loads(decoding.json_schema))
        if decoding.tools:
            offered = json.loads(decoding.tools)
            body["messages"] += offered.pop("messages")
            body |= offered
        return _instead(body, self._refused)

    @contextmanager
    def _answer(self, body: dict, patience_s: float) -> Iterator[httpx.Response]:
        """The open answer. Leaving it hangs up, which ends the generation there.

        While the upstream is busy or away it is asked again, as long as `patience_s` lasts: nothing was written yet.
        """
        for attempt in count():
            try:
                response = self._sent(body)
                break
            except Unavailable as problem:
                wait_s = 0.5 * 2**attempt if problem.retry_after is None else problem.retry_after
                if not problem.again or wait_s > patience_s:
                    raise
                patience_s -= max(wait_s, 0.1)
                time.sleep(wait_s)
        try:
            yield response
        except httpx.TransportError as error:
            raise Unavailable(f"{self._name} broke off while it answered: {error!r}") from error
        finally:
            response.close()

    def _sent(self, body: dict) -> httpx.Response:
        """One try: the answer as it begins. What of INSTEAD is refused is sent no more once that has helped.

        Raises Filtered, ValueError where something else about the request is at fault, else Unavailable.
        """
        try:
            response = self._client.send(self._client.build_request("POST", PATH, json=body), stream=True)
            if response.is_success:
                return response
            response.read()
        except httpx.TransportError as error:
            away = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.RemoteProtocolError)
            raise Unavailable(f"{self._client.base_url} can not be reached: {error!r}", again=away) from error
        (told, code), status = self._told(response), response.status_code
        if status == 400 and code == "content_filter":
            raise Filtered(told)
        refused = frozenset(name for name in INSTEAD if name in body and f"'{name}'" in told and "support" in told)
        if status == 400 and refused:
            response = self._sent(_instead(body, refused))
            self._refused |= refused
            return response
        if status in (400, 413, 422):
            raise ValueError(told)
        said = f"{self._name} at {self._client.base_url} answered {status}: {told}{TO_DO.get(status, '')}"
        raise Unavailable(said, _retry_after(response.headers.get("retry-after", "")), status in AGAIN)

    def _told(self, response: httpx.Response) -> tuple[str, str]:
        """What an error says for itself, short, and without places and the key: a client may read it. And its code."""
        text, code = response.text, ""
        with suppress(ValueError, TypeError, KeyError):
            error = json.loads(text)["error"]
            text, code = str(error["message"]), str(error.get("code") or "")
        return PLACE.sub("[place]", text.replace(self._key, "[key]") if self._key else text)[:SHOWN], code

    def _events(self, response: httpx.Response) -> Iterator[dict]:
        """The JSON of each line with data up to [DONE], {} for another. Raises Unavailable for an error among them."""
        for line in _lines(response.iter_bytes()):
            if not line.startswith(b"data:"):
                yield {}
                continue
            if (data := line.removeprefix(b"data:").strip()) == b"[DONE]":
                return
            event = None
            with suppress(ValueError):
                event = json.loads(data)
            if not isinstance(event, dict):
                raise Unavailable(f"{self._name} sent what is no JSON object: {data[:SHOWN]!r}")
            if event.get("error"):
                raise Unavailable(f"{self._name} failed while it answered: {str(event['error'])[:SHOWN]}")
            yield event


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines that end in a line feed. httpx's own would end one at U+2028 too, which JSON may hold as it is."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from whole
    yield rest


def _gather(calls: dict[int, dict], deltas: Sequence[dict]) -> None:
    """Add pieces of tool calls to what there is of each, by its index."""
    for delta in deltas:
        made = delta.get("function") or {}
        call = calls.setdefault(
            delta.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = call["id"] or delta.get("id") or ""
        call["function"]["name"] = call["function"]["name"] or made.get("name") or ""
        call["function"]["arguments"] += made.get("arguments") or ""


def _instead(body: dict, refused: frozenset[str]) -> dict:
    """`body` with what INSTEAD has for the names that are refused."""
    named = ((INSTEAD[name] if name in refused else name, value) for name, value in body.items())
    return {name: value for name, value in named if name}


def _held_to(schema: dict) -> dict:
    """The `response_format` for a schema; any object needs none."""
    if schema == ANYTHING:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def _retry_after(said: str) -> float | None:
    """Seconds from a Retry-After header, which has seconds or a date (RFC 9110); None for neither."""
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
