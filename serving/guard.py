"""What a request may ask for, checked before anything is queued."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.records import Decoding, Guard, Release
from serving.rag import HISTORY_MESSAGES

MAX_BODY_BYTES = 1_000_000


class Refused(Exception):
    """A request that is answered with an error, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.retry_after = retry_after

    def body(self) -> dict:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


# --- the shape of a request -------------------------------------------------------------------


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields of OpenAI's chat completion request that mean something here (API reference, chat/create)."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[Annotated[str, Field(min_length=1, max_length=100)]] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


NEUTRAL: dict[str, tuple] = {
    "n": (None, 1),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
}
"""OpenAI parameters that this endpoint does not offer, and the values at which asking for them asks for nothing."""

NO_EFFECT = frozenset(("metadata", "store", "service_tier", "parallel_tool_calls", "reasoning_effort", "verbosity")) | {
    "prompt_cache_key",
    "safety_identifier",
    "prediction",
}
"""OpenAI parameters that do not change what is answered; accepted and unused."""


@dataclass(frozen=True)
class Chat:
    """A request as the endpoint uses it: the last user message, the one before it ('' in a first turn), and what was
    said so far, oldest first."""

    request: ChatRequest
    question: str
    before: str
    history: tuple[dict, ...]

    @property
    def include_usage(self) -> bool:
        return bool(self.request.stream_options and self.request.stream_options.include_usage)


def read_json(body: bytes) -> Any:
    """`body` as JSON. Raises Refused 400 for anything else: bad UTF-8, NaN, nesting too deep to read."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refused(400, f"The body could not be read as JSON: {reason}") from None


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def read(model: type[BaseModel], body: bytes) -> Any:
    """`body` as a `model`. Raises Refused 400 naming the first parameter that is wrong."""
    data = read_json(body)
    if not isinstance(data, dict):
        raise Refused(400, f"The body must be a JSON object, not {type(data).__name__}")
    if not _encodable(data):
        raise Refused(400, "The body holds half of a surrogate pair, which is not text")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[TextPart]"))[:200]
        raise Refused(400, f"Invalid '{place}': {first['msg']}", param=place) from None


def _encodable(data: dict) -> bool:
    try:
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_chat(body: bytes) -> Chat:
    """The chat request in `body`. Raises Refused 400 naming what is wrong or not offered."""
    asked: ChatRequest = read(ChatRequest, body)
    for name, value in (asked.model_extra or {}).items():
        if name in NO_EFFECT or any(_same(value, neutral) for neutral in NEUTRAL.get(name, ())):
            continue
        if name in NEUTRAL:
            raise Refused(400, f"'{name}' is not supported; leave it out", param=name, code="unsupported_parameter")
        shown = name[:60].encode("ascii", "replace").decode()
        raise Refused(400, f"Unrecognized request argument: {shown}", param=shown, code="unknown_parameter")
    spoken = [message for message in asked.messages if message.role in ("user", "assistant")]
    last = max((at for at, message in enumerate(spoken) if message.role == "user"), default=None)
    if last is None:
        raise Refused(400, "There is no message with role 'user' to answer", param="messages")
    question = spoken[last].text.replace("\x00", " ").strip()
    if not question:
        raise Refused(400, "The last message with role 'user' is empty", param="messages")
    given = "\n".join(message.text for message in asked.messages if message.role in ("system", "developer"))
    context = [{"role": "user", "content": given}] if given.strip() else []
    turns = [{"role": message.role, "content": message.text} for message in spoken[:last] if message.text]
    kept = turns[-(HISTORY_MESSAGES - len(context)) :]
    before = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    return Chat(asked, question, before, (*context, *kept))


def _same(value: object, neutral: object) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


# --- what a release allows --------------------------------------------------------------------


def check(chat: Chat, guard: Guard) -> None:
    """Raises Refused 400 when the request is longer than `guard` allows."""
    if (count := len(chat.request.messages)) > guard.max_messages:
        raise Refused(400, f"{count} messages; at most {guard.max_messages} are read", param="messages")
    if (length := len(chat.question)) > guard.max_question_characters:
        limit = guard.max_question_characters
        message = f"The question has {length} characters; at most {limit} are read"
        raise Refused(400, message, param="messages", code="context_length_exceeded")


def decoding(chat: Chat, release: Release) -> Decoding:
    """The release's decoding with the request's overrides. Raises Refused 400 beyond the guard's limits.

    A request that samples without a seed gets a fresh one, as it would elsewhere; greedy answers do not need one.
    """
    asked, chosen, limit = chat.request, release.decoding, release.guard.max_new_tokens
    name = "max_completion_tokens" if asked.max_completion_tokens is not None else "max_tokens"
    tokens = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    if tokens is not None and tokens > limit:
        raise Refused(400, f"'{name}' is {tokens}; this assistant writes at most {limit}", param=name)
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or chosen.stop)
    if len(stop) > 4 or not all(0 < len(text) <= 100 for text in stop):
        raise Refused(400, "'stop' takes at most 4 texts of 1 to 100 characters", param="stop")
    temperature = chosen.temperature if asked.temperature is None else float(asked.temperature)
    if asked.seed is not None:
        seed = asked.seed % 2**32
    else:
        seed = secrets.randbelow(2**32) if asked.temperature else chosen.seed
    return replace(
        chosen,
        max_new_tokens=min(chosen.max_new_tokens, limit) if tokens is None else tokens,
        temperature=temperature,
        top_p=chosen.top_p if asked.top_p is None else float(asked.top_p),
        seed=seed,
        stop=stop,
    )


class Throttle:
    """Counts bad keys per address. After `limit` of them within `seconds`, an address is told to wait.

    A right key is never throttled. At most `addresses` are remembered, the oldest forgotten first.
    """

    def __init__(self, limit: int = 20, seconds: float = 60.0, addresses: int = 10_000):
        self.limit, self.seconds, self.addresses = limit, seconds, addresses
        self._failures: dict[str, list[float]] = {}

    def failed(self, address: str) -> None:
        """Count one bad key. Raises Refused 401, or 429 once there have been too many."""
        now = time.monotonic()
        recent = [at for at in self._failures.pop(address, ()) if now - at < self.seconds][-self.limit :]
        self._failures[address] = [*recent, now]
        while len(self._failures) > self.addresses:
            del self._failures[next(iter(self._failures))]
        if len(recent) >= self.limit:
            message = "Too many wrong API keys from this address"
            raise Refused(429, message, "rate_limit_error", code="too_many_bad_keys", retry_after=int(self.seconds))
        raise Refused(401, "Incorrect API key provided", "authentication_error", code="invalid_api_key")
