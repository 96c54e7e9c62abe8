"""What a request may ask for, checked before anything is queued."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.records import Constrained, Decoding, Filter, Guard, Release
from serving import tools
from serving.engine import CONSTRAINED
from serving.rag import HISTORY_MESSAGES
from serving.refused import Refused
from serving.schema import ANYTHING, checked
from serving.tools import Call, Choice, Tool

MAX_BODY_BYTES = 1_000_000
MAX_TOOLS_CHARACTERS = 100_000
"""Of what may be called and what came of it, about 25,000 tokens: each of them goes to an upstream that is paid."""
CHOICE = re.compile(r"str\Z|list\[|literal\[|Choice\Z")
"""What pydantic adds to the place of an error to say which type of several it tried."""


# --- the shape of a request -------------------------------------------------------------------


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    @property
    def call(self) -> dict:
        """As one of the messages that tell of tool calls: what is to be called, or what came of it."""
        if self.role == "tool":
            return {"role": "tool", "tool_call_id": self.tool_call_id, "content": self.text}
        return {"role": "assistant", "content": self.text or None} | self.model_dump(include={"tool_calls"})


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool = False


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None


class Filters(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    languages: Annotated[list[Annotated[str, Field(pattern=r"^[a-z]{2}$")]], Field(max_length=20)] = []
    modified_after: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?$")] = ""


class ChatRequest(BaseModel):
    """The fields of OpenAI's chat completion request that mean something here (API reference, chat/create).

    Ours are `documents` and `filters`, which narrow what is searched, and `retrieval`, 'off' to search nothing.
    """

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
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    documents: Annotated[list[Annotated[str, Field(max_length=1000)]], Field(min_length=1, max_length=100)] | None = (
        None
    )
    filters: Filters = Filters()
    retrieval: Literal["on", "off"] = "on"


NEUTRAL: dict[str, tuple] = {
    "n": (None, 1),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
}
"""OpenAI parameters that this endpoint does not offer, and the values at which asking for them asks for nothing."""

NO_EFFECT = frozenset(("metadata", "store", "service_tier", "reasoning_effort", "verbosity")) | {
    "prompt_cache_key",
    "safety_identifier",
    "prediction",
}
"""OpenAI parameters that do not change what is answered; accepted and unused."""


@dataclass(frozen=True)
class Chat:
    """A request as the endpoint uses it: the last user message, the one before it ('' in a first turn), and what was
    said so far, oldest first. `calls`: the messages since the question that tell of tool calls."""

    request: ChatRequest
    question: str
    before: str
    history: tuple[dict, ...]
    calls: tuple[dict, ...] = ()

    @property
    def include_usage(self) -> bool:
        return bool(self.request.stream_options and self.request.stream_options.include_usage)

    @property
    def searches(self) -> bool:
        return self.request.retrieval == "on"

    @property
    def picks(self) -> bool:
        """Whether the client itself chose what is searched: nothing, some documents, what its filters leave."""
        return not self.searches or bool(self.request.documents) or self.request.filters != Filters()

    def narrows(self, sees: Filter) -> Filter:
        """Of what its asker `sees`, what is searched."""
        asked = self.request
        languages, documents = tuple(asked.filters.languages), tuple(asked.documents or ())
        return replace(sees, documents=documents, languages=languages, modified_after=asked.filters.modified_after)


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
        place = ".".join(str(part) for part in first["loc"] if not CHOICE.match(str(part)))[:200]
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
    last = max((at for at, message in enumerate(asked.messages) if message.role == "user"), default=None)
    if last is None:
        raise Refused(400, "There is no message with role 'user' to answer", param="messages")
    question = asked.messages[last].text.replace("\x00", " ").strip()
    if not question:
        raise Refused(400, "The last message with role 'user' is empty", param="messages")
    given = "\n".join(message.text for message in asked.messages if message.role in ("system", "developer"))
    context = [{"role": "user", "content": given}] if given.strip() else []
    spoken = [message for message in asked.messages[:last] if message.role in ("user", "assistant")]
    turns = [{"role": message.role, "content": message.text} for message in spoken if message.text]
    kept = turns[-(HISTORY_MESSAGES - len(context)) :]
    before = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    calls = tuple(one.call for one in asked.messages[last + 1 :] if one.role == "tool" or one.tool_calls)
    return Chat(asked, question, before, (*context, *kept), calls)


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
    return Constrained(
        max_new_tokens=min(chosen.max_new_tokens, limit) if tokens is None else tokens,
        temperature=temperature,
        top_p=chosen.top_p if asked.top_p is None else float(asked.top_p),
        seed=seed,
        stop=stop,
        json_schema=_schema(asked.response_format, release.model.engine),
        tools=_tools(chat, release),
    )


def _tools(chat: Chat, release: Release) -> str:
    asked = tools.asked(chat, release)
    if (length := len(asked)) > MAX_TOOLS_CHARACTERS:
        message = f"The tools and their results have {length} characters; at most {MAX_TOOLS_CHARACTERS} are read"
        raise Refused(400, message, param="messages", code="context_length_exceeded")
    return asked


def _schema(asked: ResponseFormat | None, engine: str) -> str:
    if asked is None or asked.type == "text":
        return ""
    if engine not in CONSTRAINED:
        message = f"This assistant is served by {engine!r}, which can not be held to JSON; leave 'response_format' out"
        raise Refused(400, message, param="response_format", code="unsupported_parameter")
    if asked.type == "json_object":
        return checked(ANYTHING)
    if "schema" not in (asked.json_schema or {}):
        raise Refused(400, "'response_format.json_schema' needs a 'schema'", param="response_format")
    return checked(asked.json_schema["schema"])
