"""Alerts beyond the Prefect UI: a message through every channel of PERENNIAL_ALERTS, by Apprise.

Nobody waits for a channel: a thread of its own delivers, bounded in time, and a process that ends meanwhile waits for
that thread. An alert is sent once; what came of it is a decision in the ledger.
"""

from __future__ import annotations

import contextvars
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread, get_ident

from data.ledger import Ledger
from data.records import Record
from data.redaction import redact
from settings import settings
from tasks.evidence import Evidence

PATIENCE_S = 15.0
"""How long a channel has; Apprise's own time limits are below it, but for a server that dribbles."""


@dataclass(frozen=True)
class Alert(Record):
    """What a person is told: `what` happened in a few words, `why` in a sentence, `links` caption -> address.

    `questions`: what users asked, only where PERENNIAL_ALERT_QUESTIONS allows it.
    """

    assistant: str
    what: str
    why: str
    release: str | None = None
    links: dict[str, str] = field(default_factory=dict)
    questions: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"Perennial: {self.assistant}: {self.what}"

    @property
    def text(self) -> str:
        """Plain text, without personal data or secrets."""
        said = [redact(self.why, public=True).text]
        said += [f"release: {self.release}"] if self.release else []
        said += [f"asked: {redact(question).text}" for question in self.questions]
        return "\n".join([*said, *(f"{caption}: {address}" for caption, address in self.links.items())])


def send(alert: Alert) -> Thread:
    """Deliver an alert off the caller's path and put on record what came of it; the thread that does so."""
    inside = contextvars.copy_context()  # what the thread prints belongs to the log of this flow run
    thread = Thread(target=inside.run, args=(_deliver, alert), name="alert")  # no daemon: the process waits for it
    thread.start()
    return thread


def _deliver(alert: Alert) -> None:
    problems = deliver(alert, channels(settings().alerts), PATIENCE_S)
    failed = {channel: problem for channel, problem in problems.items() if problem}
    for channel, problem in failed.items():
        print(f"alert not delivered by {channel}: {problem}")
    body = {"why": redact(alert.why, public=True).text, "links": alert.links, "channels": problems}
    verdict = "undelivered" if failed else "told"
    Ledger(settings().ledger).decide(alert.assistant, "alert", alert.release, verdict, alert.what, body)


def asked(evidence: Evidence) -> tuple[str, ...]:
    """Example questions of the topics that moved, where PERENNIAL_ALERT_QUESTIONS allows them."""
    if not settings().alert_questions:
        return ()
    topics = [topic for signal in evidence.signals for topic in signal.evidence.get("topics", ())]
    return tuple(question for topic in topics for question in topic["examples"])


def channels(written: str) -> list[str]:
    """The addresses in PERENNIAL_ALERTS."""
    from apprise.utils.parse import parse_urls

    return parse_urls(written)


def deliver(alert: Alert, addresses: list[str], patience_s: float = PATIENCE_S) -> dict[str, str]:
    """Channel -> what went wrong, '' where it was taken, within `patience_s`. All are tried at the same time.

    A channel is named by its place in the setting and its kind, since its address may hold a secret.
    """
    from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType

    asset = AppriseAsset(app_id="Perennial", app_desc="Perennial", app_url="")
    said: dict[str, str] = {}

    def tell(name: str, channel: Apprise) -> None:
        taken = channel.notify(alert.text, alert.title, NotifyType.WARNING, body_format=NotifyFormat.TEXT)
        said[name] = "" if taken else "it refused the message or did not answer; Apprise's warning is in the log"

    names, asked = [], []
    for number, address in enumerate(addresses, start=1):
        scheme = re.match(r"\w+(?=://)", address)
        names.append(f"{number} ({scheme[0] if scheme else 'unreadable'})")
        channel = Apprise(asset=asset)
        with unlogged("apprise"):
            known = channel.add(address)
        if known:
            asked.append(Thread(target=tell, args=(names[-1], channel), daemon=True))
        else:
            said[names[-1]] = "Apprise knows no such address; see PERENNIAL_ALERTS in settings.py"
    for thread in asked:
        thread.start()
    deadline = time.monotonic() + patience_s
    for thread in asked:
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: said.get(name, f"no answer within {patience_s:g} s") for name in names}


@contextmanager
def unlogged(name: str) -> Iterator[None]:
    """Nothing of what this thread says to the logger `name` is kept: Apprise logs an address it can not read whole."""
    logger, here = logging.getLogger(name), get_ident()

    def by_others(record: logging.LogRecord) -> bool:
        return record.thread != here

    logger.addFilter(by_others)
    try:
        yield
    finally:
        logger.removeFilter(by_others)
