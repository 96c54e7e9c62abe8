"""`python -m flows.review`: the review queue in a terminal. The same queue is a page of the endpoint, /review."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Callable
from pathlib import Path

from data import reviews
from data.ledger import Ledger
from data.records import as_json, digest
from data.reviews import ACTIONS, AlreadySettled, Item
from settings import settings

VERDICTS = {"accept": "accepted", "correct": "corrected", "discard": "discarded"}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.review", description="What needs a person, one list.")
    parser.add_argument("--assistant", help="only this one's")
    parser.add_argument("--kind", choices=list(ACTIONS), help="only these")
    parser.add_argument("--who", default=getpass.getuser(), help="who decides; it is recorded (default: the user)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    words = parser.add_subparsers(dest="word", metavar="list | show | accept | correct | discard | ask | labels")
    words.add_parser("list", help="what waits; without a word, in a terminal: one after the other")
    for word in ("show", *VERDICTS):
        sub = words.add_parser(word)
        sub.add_argument("number", type=int, help="as the list shows it")
        if word == "correct":
            sub.add_argument("answer", nargs="?", help="the right answer; a label needs none")
        if word in ("accept", "correct"):
            sub.add_argument(
                "--golden", action="store_true", help="ask the edit as a golden question, never train on it"
            )
    ask = words.add_parser("ask", help="list answers of an evaluation to be labelled right or wrong")
    ask.add_argument("release", help="id of the release that was evaluated")
    ask.add_argument("--items", type=int, default=200, help="how many, of both arms together (200)")
    words.add_parser("labels", help="what was labelled, a JSON object a line, as flows.calibrate reads it")
    return parser.parse_args(given)


def main() -> None:
    """Exit code 0 when it is done, 1 with a sentence when it cannot be."""
    chosen = arguments()
    ledger = Ledger(settings().ledger)
    try:
        if chosen.word is None and sys.stdin.isatty() and not chosen.json:
            one_by_one(ledger, chosen)
        else:
            run(ledger, chosen)
    except (AlreadySettled, KeyError, ValueError, LookupError) as error:
        sys.exit(str(error.args[0]))


def run(ledger: Ledger, chosen: argparse.Namespace) -> None:
    """One word of the command line."""
    if chosen.word in VERDICTS:
        answer, golden = getattr(chosen, "answer", None), getattr(chosen, "golden", False)
        one = reviews.settle(ledger, chosen.number, VERDICTS[chosen.word], chosen.who, answer, golden)
        print(json.dumps(as_json(one)) if chosen.json else settled(one))
    elif chosen.word == "show":
        one = reviews.item(ledger, chosen.number)
        print(json.dumps(as_json(one)) if chosen.json else shown(one))
    elif chosen.word == "ask":
        print(f"{ask(ledger, chosen.release, chosen.items)} answers of {chosen.release} wait for a label")
    elif chosen.word == "labels":
        names = [chosen.assistant] if chosen.assistant else [row["name"] for row in ledger.assistants()]
        for name in names:
            for label in reviews.labels(ledger, name):
                print(json.dumps(label))
    else:
        waiting = reviews.items(ledger, chosen.assistant, chosen.kind)
        print(json.dumps([as_json(one) for one in waiting]) if chosen.json else listed(waiting))


def one_by_one(ledger: Ledger, chosen: argparse.Namespace, ask: Callable[[str], str] = input) -> None:
    """Shows each waiting item and asks for its verdict; empty skips, q ends."""
    for one in reviews.items(ledger, chosen.assistant, chosen.kind):
        print(shown(one))
        said = ask(f"{_choices(one)}, enter to skip, q to end: ").strip()
        if said == "q":
            return
        verdict = next((word for word in VERDICTS if said and word.startswith(said)), None)
        if verdict is None:
            continue
        answer = ask("the right answer: ").strip() if verdict == "correct" else None
        try:
            print(settled(reviews.settle(ledger, one.number, VERDICTS[verdict], chosen.who, answer)))
        except (AlreadySettled, ValueError) as error:
            print(error)
    print(listed(reviews.items(ledger, chosen.assistant, chosen.kind)))


def ask(ledger: Ledger, release: str, items: int) -> int:
    """Put answers of the newest evaluation of a release into the queue, the arms mixed; returns how many.

    Raises LookupError for a release that was not evaluated on this machine.
    """
    found = sorted((settings().home / "reports" / release).glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise LookupError(f"no evaluation of {release!r} under {settings().home / 'reports'}; run its lifecycle here")
    # Both arms of a question together: how a judge favours one of them shows only there.
    answers = sorted(evaluated(found[-1]), key=lambda row: (digest(row["question"]), digest(row)))[:items]
    reviews.ask_labels(ledger, ledger.release(release).assistant, answers)
    return len(answers)


def evaluated(file: Path) -> list[dict]:
    """The answerable open questions of a stored evaluation, an item for each arm; `arm` is the id of the release."""
    body = json.loads(file.read_text())
    arms = {"candidate": body["evaluation"]["release"], "champion": body["evaluation"]["champion"]}
    return [
        {"question": row["question"], "references": row["accepted"], "answer": row["answer"], "arm": arms[name]}
        for name, rows in body["rows"].items()
        for row in rows
        if row["accepted"]
    ]


# --- as text ----------------------------------------------------------------------------------


def listed(waiting: list[Item]) -> str:
    lines = [f"{one.number:>5}  {one.assistant}  {one.kind}  {' '.join(one.title.split())[:90]}" for one in waiting]
    return "\n".join([*lines, f"{len(waiting)} wait" if waiting else "nothing waits for a person"])


def shown(one: Item) -> str:
    texts = [f"{name}: {text}" for name, text in one.shown.items()]
    return "\n".join([f"--- {one.number}: {one.kind} of {one.assistant} ({one.state})", *texts, _choices(one)])


def settled(one: Item) -> str:
    answer = f": {one.answer}" if one.answer else ""
    return f"{one.number}: {ACTIONS[one.kind][one.verdict]} ({one.verdict}) by {one.reviewer}{answer}"


def _choices(one: Item) -> str:
    means = ACTIONS[one.kind]
    return ", ".join(f"{word} ({means[verdict]})" for word, verdict in VERDICTS.items() if verdict in means)


if __name__ == "__main__":
    main()
