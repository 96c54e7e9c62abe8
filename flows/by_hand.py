"""The command line of `python -m flows.remedies`: ask for a remedy, veto one, pause an assistant's, list them."""

from __future__ import annotations

import argparse
import getpass
import sys
import time

from data import outbox, quarantine
from data.ledger import Ledger
from settings import apply_environment, settings
from tasks import events, remedy


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.remedies", description="Remedies, asked for by hand.")
    parser.add_argument("--who", default=getpass.getuser(), help="who says so; it is recorded (default: the user)")
    parser.add_argument("--why", default="", help="why; it is recorded")
    words = parser.add_subparsers(dest="word", required=True)
    ask = words.add_parser("ask", help="ask for a remedy; it passes the cooldown, not a pause")
    ask.add_argument("kind", choices=outbox.KINDS)
    ask.add_argument("assistant")
    ask.add_argument("--to", help="of rollback: the release to go back to, else the one before")
    ask.add_argument(
        "--voice", action="append", help="of quarantine_ratings: whose, again for each; else who carries it"
    )
    words.add_parser("veto", help="say no to one that has not started").add_argument("number", type=int)
    words.add_parser("list", help="the newest ones").add_argument("assistant", nargs="?")
    words.add_parser("pause", help="stop an assistant's remedies; open ones wait").add_argument("assistant")
    words.add_parser("resume", help="let them go on").add_argument("assistant")
    back = words.add_parser("give-back", help="let ratings that were set aside count again")
    back.add_argument("assistant")
    back.add_argument("voice", nargs="?", help="whose; without it, those that are set aside are listed")
    return parser.parse_args(given)


def main() -> None:
    """Exit code 0 when it is done, 1 with a sentence when it cannot be."""
    apply_environment()
    chosen = arguments()
    try:
        print(run(Ledger(settings().ledger), chosen))
    except (KeyError, ValueError) as error:
        sys.exit(str(error.args[0]))


def run(ledger: Ledger, chosen: argparse.Namespace) -> str:
    """One word of the command line; what to tell who gave it."""
    if chosen.word == "ask":
        more = {name: given for name, given in (("to", chosen.to), ("voices", chosen.voice)) if given}
        number = outbox.ask(ledger, chosen.assistant, chosen.kind, chosen.who, chosen.why, **more)
        about = {"outbox": number, "kind": chosen.kind, "reason": chosen.why or ""}
        events.emit(f"perennial.remedy.{chosen.kind}", chosen.assistant, **about)
        return f"asked for {chosen.kind} of {chosen.assistant} (outbox row {number}); it starts within a minute"
    if chosen.word == "veto":
        if not outbox.veto(ledger, chosen.number, chosen.who, chosen.why):
            raise ValueError(f"outbox row {chosen.number} has started or is settled; it is too late for a veto")
        return f"outbox row {chosen.number} is vetoed"
    if chosen.word == "list":
        return "\n".join(map(line, outbox.listed(ledger, chosen.assistant))) or "no remedy was asked for yet"
    if chosen.word == "give-back" and not chosen.voice:
        return "\n".join(quarantine.aside(ledger, chosen.assistant)) or "nothing is set aside"
    if chosen.word == "give-back":
        quarantine.give_back(ledger, chosen.assistant, chosen.voice, chosen.who, chosen.why)
        return f"ratings of {chosen.voice} count again"
    remedy.pause(ledger, chosen.assistant, chosen.word == "pause", chosen.who, chosen.why)
    return f"automatic remedies of {chosen.assistant} are {'paused' if chosen.word == 'pause' else 'on'}"


def line(row: dict) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["at"]))
    why = f"{row['by'] or 'signals'}: {row['reason']}".rstrip(": ")
    return f"{row['number']:>5}  {when}  {row['assistant']}  {row['kind']}  {row['state']}  {why}" + (
        f"  ->  {row['note']}" if row["note"] else ""
    )
