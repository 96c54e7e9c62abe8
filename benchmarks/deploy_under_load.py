"""Deploys, failing deploys and rollbacks while clients stream: failed requests, and releases in one answer."""

import shutil
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.load import Plan, Reply, send
from benchmarks.machine import accepted, chat_url, machine, sample_questions, untuned

AIM = "no failed request, one release id an answer"
DEPLOYS, FAILING, ROLLBACKS, ARTIFACTS = 20, 10, 10, 3
CLIENTS, A_SECOND, BATCH = 4, 1.0, 20


def met(value: dict) -> bool:
    return value["failed"] == 0 and value["mixed"] == 0 and value["deploys"] == DEPLOYS


def measure() -> dict:
    """Deploys go through warm, smoke and the pointer, by turns to another artifact and to another prompt; failing ones
    name an artifact whose file is gone, or an index that is not there. One streamed request a second meanwhile."""
    from data.ledger import Ledger
    from serving.engine import artifact_sha256
    from settings import settings
    from tasks import deploy

    with machine() as home:
        release = untuned()
        book = Ledger(settings().ledger)
        artifacts = [release.model]
        for number in range(1, ARTIFACTS):
            copied = Path(shutil.copy(release.model.uri, home / f"copy-{number}.gguf"))
            rename(copied, number)
            artifacts.append(replace(release.model, uri=str(copied), sha256=artifact_sha256(copied)))
        replies: list[Reply] = []
        stopped = threading.Event()
        questions = sample_questions(BATCH)

        def traffic() -> None:
            body = {"model": release.assistant, "max_tokens": 16, "stream": True}
            bodies = [body | {"messages": [{"role": "user", "content": question}]} for question in questions]
            while not stopped.is_set():
                came, _, _ = send(chat_url(), Plan(bodies, clients=CLIENTS, rate=A_SECOND))
                replies.extend(came)

        clients = threading.Thread(target=traffic)
        clients.start()
        done: Counter[str] = Counter()
        for number in range(DEPLOYS):
            model = artifacts[number % ARTIFACTS]
            told = f"{release.prompt.system} ({number})"
            deployed = replace(release, model=model, prompt=replace(release.prompt, system=told))
            deploy.warm(deployed)
            accepted(book, deployed, release)
            book.promote(release.assistant, deployed.id, book.assistant(release.assistant)["live_seq"])
            done["deploys"] += 1
            if number < FAILING:
                done["refused"] += fails(deploy, book, failing(release, number), release)
            if number < ROLLBACKS:
                back = deploy.rollback_release(book, release.assistant, None, keep_index=True)
                deploy.warm(back)
                book.promote(release.assistant, back.id, book.assistant(release.assistant)["live_seq"], "rollback")
                done["rollbacks"] += 1
            print(dict(done), len(replies), file=sys.stderr, flush=True)
        stopped.set()
        clients.join()
    statuses = Counter(reply.status for reply in replies)
    value = dict(done) | {
        "failed": sum(not (reply.status == 200 and reply.whole) for reply in replies),
        "mixed": sum(len(reply.releases) > 1 for reply in replies),
        "releases_seen": len({name for reply in replies for name in reply.releases}),
        "statuses": {str(status): count for status, count in statuses.items()},
    }
    return {"value": value, "n": len(replies), "against": None, "limit": None}


def rename(file: Path, number: int) -> None:
    """Another artifact with the same weights: one byte of the model's name in the GGUF header is changed."""
    with file.open("r+b") as opened:
        head = opened.read(4096)
        at = head.index(b"general.name") + len(b"general.name") + 4 + 8
        opened.seek(at)
        opened.write(str(number).encode())


def failing(release, number: int):
    """A release that cannot go live: its artifact's file is gone, or its index is."""
    if number % 2:
        return replace(release, model=replace(release.model, uri="/nowhere/model.gguf", sha256=f"{number:064x}"))
    return replace(release, index=replace(release.index, version=9000 + number, checksum=f"{number:064x}"))


def fails(deploy, book, bad, live) -> int:
    """1 when the release is refused on its way to the pointer, and what was live stays live."""
    pointer = book.live()[live.assistant].live.id
    book.add_release(bad, "reindex", live.id, book.assistant(live.assistant)["snapshot"])
    try:
        deploy.warm(bad)
        problem = deploy.smoke(bad, "Hello", patience_s=5)
    except (RuntimeError, FileNotFoundError, ValueError) as error:
        problem = str(error)
    return int(bool(problem) and book.live()[live.assistant].live.id == pointer)
