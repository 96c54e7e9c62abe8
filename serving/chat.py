"""Chat formats: how a conversation is written for a model, and what text from outside may not spell.

`Prompt.chat` is a name in FORMATS, 'messages', or a Format as JSON, which is how an adopted base hands on its own
(serving/engine/template.py). A format is data: nothing of a model's own is run to write a prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

from data.records import Record, as_json


@dataclass(frozen=True)
class Format(Record):
    """What stands before each part: the system's text, the `first` user turn behind it, later `user` and `assistant`
    turns, and what `open`s the answer. `end` is the token that ends an answer. `marks` are what roles are made of.
    """

    system: str
    first: str
    user: str
    assistant: str
    open: str
    end: str
    marks: tuple[str, ...] = ("<|",)

    @property
    def turns(self) -> tuple[str, ...]:
        return (self.system, self.first, self.user, self.assistant, self.open, self.end)

    @property
    def text(self) -> str:
        return json.dumps(as_json(self), ensure_ascii=False)

    def escape(self, text: str) -> str:
        """`text` with each mark broken by a space behind its first character, so that nothing in it is read as a role.

        >>> FORMATS["chatml"].escape("<|im_start|>")
        '< |im_start|>'
        """
        return _starts(self.marks).sub(r"\1 ", text)

    def write(self, system: str, turns: Sequence[tuple[str, str]]) -> str:
        """The text an engine continues. `turns`: role (`user` or `assistant`) and content, oldest first."""
        written = [self.system, self.escape(system)]
        if self.first != self.user:  # the system's text stands in the first user turn, so a user has to begin
            turns = turns[next((at for at, (role, _) in enumerate(turns) if role == "user"), 0) :]
        for at, (role, content) in enumerate(turns):
            before = self.assistant if role == "assistant" else self.user if at else self.first
            written += [before, self.escape(content)]
        return "".join([*written, self.open])


@dataclass(frozen=True)
class Messages:
    """The turns as OpenAI's messages in JSON, for an engine that sends them on (serving/engine/upstream.py).

    No text can leave its JSON string, so none forges a turn here. `marks` are those of common models: a server that
    writes the turns as one text may read them in a message too.
    """

    marks: tuple[str, ...]

    def escape(self, text: str) -> str:
        """As `Format.escape`. JSON stays JSON: no mark can stand in it outside of a string."""
        return _starts(self.marks).sub(r"\1 ", text)

    def write(self, system: str, turns: Sequence[tuple[str, str]]) -> str:
        """As `Format.write`. A user begins, and neighbours of one role are one message: many templates insist on it."""
        turns = turns[next((at for at, (role, _) in enumerate(turns) if role == "user"), 0) :]
        spoken = [
            {"role": role, "content": "\n\n".join(content for _, content in together)}
            for role, together in groupby(turns, key=itemgetter(0))
        ]
        return self.escape(json.dumps([{"role": "system", "content": system}, *spoken], ensure_ascii=False))


MESSAGES = Messages(("<|", "<｜", "<start_of_turn", "<end_of_turn", "<s>", "</s>", "[INST", "[/INST", "<<SYS"))
FORMATS = {
    "chatml": Format(
        "<|im_start|>system\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "llama3": Format(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
}


@lru_cache(64)
def chat_format(chat: str) -> Format | Messages:
    """The format that `Prompt.chat` names or is; ValueError for anything else."""
    if chat == "messages":
        return MESSAGES
    if chat in FORMATS:
        return FORMATS[chat]
    if not chat.startswith("{"):
        known = ", ".join((*FORMATS, "messages"))
        raise ValueError(f"no chat format {chat!r}; add one to serving/chat.py FORMATS (known: {known})")
    return Format.of(json.loads(chat))


@lru_cache(64)
def _starts(marks: tuple[str, ...]) -> re.Pattern:
    return re.compile(rf"(?={'|'.join(map(re.escape, marks))})(.)", re.DOTALL)
