"""Chat templates of models from outside: rendered once, in a bounded child process, to read a plain format out of them.

A Jinja template is a program. Ours never runs in training, evaluation or serving: `derive` renders a few known
conversations and keeps the text between their parts as a `serving.chat.Format`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from serving.chat import FORMATS, Format

LONGEST = 100_000
SECONDS = 2
MEMORY = 1 << 30
SYSTEM, ASKED, ANSWERED, AGAIN = "Xsystem0X", "Xquestion1X", "Xanswer2X", "Xquestion3X"
CONVERSATION = [("system", SYSTEM), ("user", ASKED), ("assistant", ANSWERED), ("user", AGAIN)]
RENDER = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.ext import loopcontrols
given = json.load(sys.stdin)
class Refused(Exception): pass
def refuse(message):
    raise Refused(message)
made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
made.globals |= dict(raise_exception=refuse, strftime_now=lambda form: "01 Jan 2026")
made.filters["tojson"] = lambda value, **_: json.dumps(value)
known = made.from_string(given["template"])
print(json.dumps([known.render(messages=m, add_generation_prompt=True, enable_thinking=False, **given["tokens"])
                  for m in given["conversations"]]))
"""


def check_template(file: Path | str, template: str) -> None:
    """Refuse a template that reaches for Python's insides, reads files, does not parse, or does not end in time."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    instead = "put a plain chat template in its place, or delete it"
    if not isinstance(template, str) or len(template) > LONGEST:
        raise ValueError(f"{file}: the chat template is no text of up to {LONGEST} characters; {instead}")
    try:
        tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols]).parse(template)
    except (TemplateError, RecursionError) as problem:
        raise ValueError(f"{file}: the chat template can not be read ({problem}); {instead}") from problem
    reached = [node.attr for node in tree.find_all(nodes.Getattr) if node.attr.startswith("_")]
    reached += [n.value for n in tree.find_all(nodes.Const) if re.search(r"__\w+__", str(n.value))]
    if odd := next(iter(reached), None):
        raise ValueError(f"{file}: the chat template reaches for {odd[:60]!r}; {instead}")
    if next(tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)), None):
        raise ValueError(f"{file}: the chat template reads other files; {instead}")
    try:
        render(template, [CONVERSATION[1:2]], {})
    except Refused:
        pass  # of this conversation, which `derive` deals with
    except ValueError as problem:
        raise ValueError(f"{file}: {problem}; {instead}") from problem


class Refused(ValueError):
    """A template raised its own error: it wants another conversation, as those without a system role do."""


def render(template: str, conversations: Sequence[Sequence[tuple[str, str]]], tokens: dict[str, str]) -> list[str]:
    """Each conversation as the template writes it, ready for the assistant's turn; `tokens`: bos_token and the like.

    Runs in a child with SECONDS of processor time and MEMORY bytes. Refused when the template itself refuses,
    ValueError when it fails, is unsafe or had to be stopped.
    """
    asked = [[{"role": role, "content": content} for role, content in one] for one in conversations]
    given = json.dumps({"template": template, "conversations": asked, "tokens": tokens})
    command = [sys.executable, "-I", "-c", RENDER]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60 * SECONDS)
    except subprocess.TimeoutExpired as late:
        raise ValueError(f"the chat template does not end within {60 * SECONDS} s") from late
    last = (done.stderr.strip().splitlines() or [""])[-1][:300]
    if done.returncode < 0 or "MemoryError" in last or "OverflowError" in last:
        raise ValueError(f"the chat template needs more than {SECONDS} s or {MEMORY >> 30} GiB")
    if done.returncode:
        raise (Refused if "Refused" in last else ValueError)(f"the chat template fails: {last}")
    return json.loads(done.stdout)


def derive(template: str | None, tokens: dict[str, str], added: Sequence[str]) -> str:
    """The chat format that a template writes, as `Prompt.chat` wants it: a name in FORMATS, else the format as JSON.

    `tokens`: the tokenizer's bos_token, eos_token and the like; `added`: its added tokens, which no text from outside
    may spell. Without a template: turns apart by an empty line. Raises ValueError for a template that does not write
    every turn alike, or leaves the system's text out.
    """
    end = tokens.get("eos_token", "")
    if not template:
        made = Format("", "\n\n", f"{end}\n\n", "\n\n", "\n\n", end)
        return _named(replace(made, marks=_marks(added, made.turns)))
    asked = [CONVERSATION[:2], CONVERSATION, [*CONVERSATION, *CONVERSATION[2:]]]
    try:
        texts = render(template, asked, tokens)
    except Refused:  # no system role: what it says goes in front of the first question
        asked = [[("user", f"{SYSTEM}\n\n{ASKED}"), *turns[2:]] for turns in asked]
        texts = render(template, asked, tokens)
    pieces = re.split(f"{SYSTEM}|{ASKED}|{ANSWERED}|{AGAIN}", texts[1])
    instead = "set Prompt.chat to a format of serving/chat.py"
    if len(pieces) != 5:
        raise ValueError(f"the chat template leaves out or repeats a turn; {instead}")
    system, first, assistant, user, opened = pieces
    end = next((mark for mark in sorted(added, key=user.find) if mark in user), end)
    made = Format(system, first, user, assistant, opened, end, _marks(added, pieces))
    turns = [CONVERSATION[1:2], CONVERSATION[1:], [*CONVERSATION[1:], *CONVERSATION[2:]]]
    if [made.write(SYSTEM, some) for some in turns] != texts:
        raise ValueError(f"the chat template writes equal turns differently; {instead}")
    return _named(made)


def _marks(added: Sequence[str], pieces: Sequence[str]) -> tuple[str, ...]:
    """What text from outside may not spell: added tokens, and the words of the format that are not plain words."""
    words = [word for piece in pieces for word in piece.split() if re.search(r"[^\w\s]", word) and len(word) > 1]
    marks = {mark.strip() for mark in (*added, *words) if len(mark.strip()) > 1}
    return ("<|", *sorted(mark for mark in marks if not mark.startswith("<|")))


def _named(made: Format) -> str:
    return next((name for name, known in FORMATS.items() if known == made), made.text)
