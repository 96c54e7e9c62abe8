"""Ratings that are set aside: kept, but they count for nothing until a person gives them back. Each step is a decision.

A voice is the owner of a key. What came without a key is the voice of the user it names, or of nobody in particular.
A decision names voices in its body alone: its reason is shown to whoever may see figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from data.ledger import Ledger

KIND = "quarantine"
KEYLESS = "without a key: "


def voice(row: Mapping) -> str | None:
    """Whose a row of feedback is."""
    if row["owner"]:
        return row["owner"]
    return f"{KEYLESS}{row['user']}" if row["user"] else None


def aside(ledger: Ledger, assistant: str) -> dict[str, str]:
    """The voices whose ratings are set aside now, each with the reason."""
    found: dict[str, str] = {}
    for row in reversed(ledger.decisions(assistant, KIND, limit=10_000)):
        for one in row["body"]["voices"]:
            if row["verdict"] == "set aside":
                found[one] = row["reason"]
            else:
                found.pop(one, None)
    return found


def counted(ledger: Ledger, assistant: str, rows: Iterable[dict]) -> list[dict]:
    """The rows of feedback that are not set aside."""
    gone = aside(ledger, assistant)
    return [row for row in rows if voice(row) not in gone]


def set_aside(ledger: Ledger, assistant: str, voices: Sequence[str], why: str) -> None:
    """From now on nothing that these voices rated, or will rate, counts. Nothing is deleted."""
    reason = f"ratings of {many(voices)} are set aside: {why}"
    ledger.decide(assistant, KIND, None, "set aside", reason, {"voices": list(voices)})


def many(voices: Sequence[str]) -> str:
    """How many they are, in words that name nobody."""
    return f"{len(voices)} voice{'s' * (len(voices) != 1)}"


def give_back(ledger: Ledger, assistant: str, one: str, who: str, why: str = "") -> None:
    """Ratings of this voice count again. Raises KeyError when they are not set aside."""
    known = aside(ledger, assistant)
    if one not in known:
        raise KeyError(f"nothing of {one!r} is set aside; set aside are: {', '.join(known) or 'nobody'}")
    reason = f"ratings of {many([one])} given back by {who}" + (f": {why}" if why else "")
    ledger.decide(assistant, KIND, None, "given back", reason, {"voices": [one], "by": who})
