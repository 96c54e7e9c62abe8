"""Run in the clients' own environment: every function `claim_*` of a script, each client as its users write it.

The last line printed is JSON: claim -> "ok" or what went wrong. Only the standard library and the client are there.
"""

from __future__ import annotations

import json
import os
import traceback

URL, KEY, LIMITED = (os.environ[name] for name in ("URL", "KEY", "LIMITED"))
"""The endpoint (up to /v1), a key, and a key that may ask once a minute."""
MODEL = "helpdesk"
QUESTION = "When does Lyon open?"
ANSWER = "Lyon opens at 9 a.m. on weekdays. [1]"
SCHEMA = {
    "title": "Opening",
    "description": "When an office opens.",
    "type": "object",
    "properties": {"opens": {"type": "string"}},
    "required": ["opens"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def raised(kind: type[Exception], ask) -> Exception:
    """The error of this very kind that `ask` raises."""
    try:
        ask()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def run(claims: dict) -> None:
    """Try the claims in order; `claims`: the globals of a script."""
    found = {}
    for name, claim in claims.items():
        if name.startswith("claim_"):
            try:
                claim()
                found[name.removeprefix("claim_")] = "ok"
            except Exception:
                found[name.removeprefix("claim_")] = traceback.format_exc()[-2000:]
    print(json.dumps(found), flush=True)
