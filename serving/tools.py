"""Function calling: what a client offers to be called, and what came of the calls. OpenAI's shapes, passed on.

Only an engine in `serving.engine.CALLING` is given any of it. The client runs the functions, never this server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.records import Release
from serving.chat import chat_format
from serving.engine import CALLING
from serving.refused import Refused

if TYPE_CHECKING:
    from serving.guard import Chat

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["function"]
    function: Function


class Called(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    name: Name
    arguments: str


class Call(BaseModel):
    """A call that an earlier answer asked for."""

    model_config = ConfigDict(strict=True, extra="ignore")
    id: Annotated[str, Field(max_length=128)]
    type: Literal["function"] = "function"
    function: Called


class Named(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    name: Name


class Choice(BaseModel):
    """The one function that must be called."""

    model_config = ConfigDict(strict=True, extra="ignore")
    type: Literal["function"]
    function: Named


def asked(chat: Chat, release: Release) -> str:
    """What `chat` says of tools, as JSON: OpenAI's parameters, and under `messages` the calls since the question with
    their results. '' for nothing. Raises Refused 400 where the engine of the release can not be given it.

    Of earlier turns only what was said is kept, as without tools.
    """
    request, engine = chat.request, release.model.engine
    forced = request.tool_choice not in (None, "none", "auto")
    if forced and not request.tools:
        raise Refused(400, "'tool_choice' names what to call, and there are no 'tools'", param="tool_choice")
    spoken = any(message.role == "tool" or message.tool_calls for message in request.messages)
    if engine not in CALLING and (request.tools or spoken):
        message = f"This assistant is served by {engine!r}, which can not call tools; leave 'tools' out"
        param = "tools" if request.tools else "messages"
        raise Refused(400, message, param=param, code="unsupported_parameter")
    if not (request.tools or chat.calls):
        return ""
    named = ("tools", "tool_choice", "parallel_tool_calls") if request.tools else ()
    given = request.model_dump(include=set(named), exclude_none=True) | {"messages": chat.calls}
    return chat_format(release.prompt.chat).escape(json.dumps(given, ensure_ascii=False))
