"""What is looked for in a question, in the passages for it and in its answer. One row each; tests/test_screens.py
measures how much each row finds, and how many harmless texts it leaves alone.

Screens are no defence to rest on: that is the prompt, where nothing from outside can open a role (serving/chat.py), and
that no text acts. What they find is logged with the request and counted. Only a leak changes an answer: it ends there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from data.records import Answer, Chunk, Prompt
from serving.rag import WORD

RUN = 8
"""Words in a row, as the system prompt has them, that make a leak; the sentences that a prompt asks for are shorter."""
GROUNDED = 0.3
"""Less of an answer than this in any passage, and it is not from the documents."""

OVERRIDE = re.compile(
    r"""(?ix)
    \b(?:ignore|disregard|forget|override|bypass|skip)\b[^.?!\n]{0,30}
        \b(?:previous|prior|above|earlier|preceding|all|your|these|the|system)\b[^.?!\n]{0,30}
        \b(?:instructions?|prompts?|rules|guidelines|directives|guardrails|restrictions)\b
    | \b(?:ignorez?|oubliez?|oublie)\b[^.?!\n]{0,30}\b(?:instructions|consignes|r[eè]gles)\b
    | \b(?:ignorieren?|ignoriere|vergiss|missachte)\b[^.?!\n]{0,40}\b(?:anweisung\w*|regeln|vorgaben)\b
    | \b(?:ignora|olvida)\b[^.?!\n]{0,30}\b(?:instrucciones|reglas|istruzioni|regole)\b
    | \b(?:you\ are\ now|from\ now\ on\ you\ are|pretend\ (?:to\ be|that\ you\ are)|act\ as)\b[^.?!\n]{0,40}
        \b(?:unrestricted|jailbroken|DAN|without\ (?:any\ )?(?:rules|limits|restrictions)|no\ (?:rules|restrictions))\b
    | \b(?:developer|debug|god|admin)\ mode\b[^.?!\n]{0,30}\b(?:enabled|activated)\b
    """
)
ROLE = re.compile(
    r"(?i)<\|[^|\n]{1,40}\|>|\[/?INST\]|<</?SYS>>|</?(?:system|assistant)>"
    r"|^[^\S\n]{0,3}#{1,4}[^\S\n]*(?:system|instruction)s?[^\S\n]*:|^[^\S\n]*(?:system|assistant|developer)[^\S\n]*:",
    re.MULTILINE,
)
"""Space within a line alone: `^\\s*` would read a run of empty lines once from each of them."""
PROMPT = re.compile(
    r"""(?ix)
    \b(?:repeat|print|show|reveal|output|display|tell\ me|write\ out|give\ me|copy|translate|summari[sz]e
        |what\ (?:is|are|was))\b[^.?!\n]{0,40}
        (?:\b(?:your|the)\ (?:system|initial|original|hidden|secret|exact)\ (?:prompt|instructions?|message)
        |\byour\ (?:prompt|instructions)\b|\b(?:text|words|everything|all)\ (?:above|before\ this))
    """
)


@dataclass(frozen=True)
class Screen:
    """`part` of a request ('question', 'passage' or 'answer') in which `finds` says whether something is there."""

    name: str
    part: str
    finds: Callable[[str], bool]


SCREENS = (
    Screen("override", "question", lambda text: bool(OVERRIDE.search(text))),
    Screen("forged-role", "question", lambda text: bool(ROLE.search(text))),
    Screen("prompt-request", "question", lambda text: bool(PROMPT.search(text))),
    Screen("planted-override", "passage", lambda text: bool(OVERRIDE.search(text))),
    Screen("planted-role", "passage", lambda text: bool(ROLE.search(text))),
)


def screen(question: str, passages: Sequence[Chunk]) -> tuple[str, ...]:
    """The names of the screens that found something, in the order of SCREENS."""
    texts = {"question": (question,), "passage": [chunk.text for chunk in passages]}
    return tuple(one.name for one in SCREENS if any(map(one.finds, texts[one.part])))


def ungrounded(answer: Answer, grounding: float | None) -> bool:
    """Whether an answer was given that no passage supports: nothing to cite, and few of its words in any of them."""
    return grounding is not None and not answer.citations and grounding < GROUNDED


def leak(text: str, prompt: Prompt) -> int | None:
    """Where in `text` at least `RUN` words of the system prompt stand in a row; None: nowhere.

    The abstention may be quoted there: to say it is what the prompt asks for.
    """
    runs = _runs(prompt.system) - _runs(prompt.abstain)
    found = list(WORD.finditer(text.lower()))
    words = [match[0] for match in found]
    at = next((n for n in range(len(words) - RUN + 1) if tuple(words[n : n + RUN]) in runs), None)
    return None if at is None else found[at].start()


@lru_cache(64)
def _runs(system: str) -> frozenset[tuple[str, ...]]:
    words = WORD.findall(system.lower())
    return frozenset(tuple(words[n : n + RUN]) for n in range(len(words) - RUN + 1))
