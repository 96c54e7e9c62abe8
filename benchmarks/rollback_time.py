"""From the moved pointer to the first answer of the previous release."""

import statistics
import threading
import time
from dataclasses import replace

import httpx

from benchmarks.machine import accepted, chat_url, machine, untuned

AIM = "at most 2 s"
ROLLBACKS = 10


def met(value: dict) -> bool:
    return value["worst_s"] <= 2


def measure() -> dict:
    """Ten rollbacks between two releases of one artifact; a client asks for one token all the time."""
    from data.ledger import Ledger
    from settings import settings

    with machine():
        release = untuned()
        book, seen, stopped = Ledger(settings().ledger), [], threading.Event()
        other = replace(release, prompt=replace(release.prompt, system=release.prompt.system + " Be brief."))
        accepted(book, other, release)
        book.promote(release.assistant, other.id, book.assistant(release.assistant)["live_seq"])
        body = {"model": release.assistant, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        body["retrieval"] = "off"

        def client() -> None:
            with httpx.Client(timeout=60) as http:
                while not stopped.is_set():
                    asked = time.monotonic()
                    reply = http.post(chat_url(), json=body)
                    seen.append((asked, time.monotonic(), reply.status_code, reply.json().get("system_fingerprint")))

        asking = threading.Thread(target=client)
        asking.start()
        took = []
        for turn in range(ROLLBACKS):
            time.sleep(2)
            back = (release, other)[turn % 2]
            moved = time.monotonic()
            book.promote(release.assistant, back.id, book.assistant(release.assistant)["live_seq"], kind="rollback")
            while not (first := [end for asked, end, _, who in list(seen) if asked > moved and who == back.id]):
                time.sleep(0.01)
            took.append(first[0] - moved)
        stopped.set()
        asking.join()
    failed = sum(status != 200 for _, _, status, _ in seen)
    value = {"median_s": round(statistics.median(took), 2), "worst_s": round(max(took), 2), "failed": failed}
    return {"value": value, "n": ROLLBACKS, "against": None, "limit": "the router reads the pointer every .25 s"}
