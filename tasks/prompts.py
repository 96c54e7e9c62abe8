"""Prompts as text: read from a file, a registered version or a release, and compared line by line."""

from __future__ import annotations

import difflib
from dataclasses import fields, replace
from pathlib import Path

from data.ledger import Ledger
from data.records import Prompt
from tasks import registry

TEXTS = ("system", "passage", "user", "abstain")
"""The fields of a Prompt that people write; how turns are written belongs to the model."""


def read_file(path: str, served: Prompt) -> Prompt:
    """The prompt `served` with the texts that a JSON or YAML file gives otherwise.

    Raises FileNotFoundError, ValueError for a file that is no mapping of the names in TEXTS to texts.
    """
    import yaml

    place = Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no prompt file {path}; write one with any of {', '.join(TEXTS)}")
    try:
        given = yaml.safe_load(place.read_text())  # every JSON document is one of YAML
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither JSON nor YAML: {error}") from None
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise ValueError(f"{path} must map some of {', '.join(TEXTS)} to texts")
    if unknown := sorted(set(given) - set(TEXTS)):
        raise ValueError(f"{path} has {unknown[0]!r}; a prompt has {', '.join(TEXTS)}")
    return replace(served, **given)


def find(ledger: Ledger, assistant: str | None, named: str, served: Prompt) -> Prompt:
    """The prompt that `named` names: a release id, the number of a registered version, or a file of other texts than
    those of `served`.

    The worked examples of another assistant's release stay with it. Raises KeyError for an unknown release or version,
    ValueError for a number without an assistant and a version that is no chat prompt.
    """
    if named.startswith("rel-"):
        found = ledger.release(named)
        return found.prompt if assistant in (None, found.assistant) else replace(found.prompt, shots=())
    if named.isdigit():
        if assistant is None:
            raise ValueError(f"version {named} of which assistant's prompt? Give --assistant")
        return registry.prompt(assistant, int(named), served)
    return read_file(named, served)


def text(prompt: Prompt) -> str:
    """A prompt to be read: each field under its name."""
    return "".join(f"--- {field.name}\n{getattr(prompt, field.name)}\n" for field in fields(prompt))


def diff(a: Prompt, b: Prompt, names: tuple[str, str] = ("a", "b")) -> str:
    """Both prompts as a unified diff, '' when they are the same."""
    before, after = (text(prompt).splitlines(keepends=True) for prompt in (a, b))
    return "".join(difflib.unified_diff(before, after, *names))
