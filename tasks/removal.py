"""An assistant deleted whole, or all that one user asked and said.

An assistant's live pointer goes first, the ledger's rows last; of a user the rows that name what else there is go last.
So a deletion cut short can go on.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import sqlalchemy as sa

from data import feedback, store
from data.lease import DELETING, lease
from data.ledger import Ledger
from data.records import Model, Release
from data.requests import RequestLog
from data.tables import assistants, metadata, outbox, releases, reports
from serving.cache import AnswerCache
from settings import settings
from tasks import bill, registry

MODELS = ("tuned", "imported")
"""The folders of models that are made or taken in for an assistant; base models belong to nobody."""


def remove(ledger: Ledger, name: str) -> dict[str, int]:
    """Deletes everything of an assistant that is on this machine, and says how much of what.

    What another assistant's releases are served from stays. Raises KeyError for an unknown name, ValueError while a
    flow run holds one of its remedies (a lifecycle or split-start under way holds none: let it end first), TimeoutError
    while its index is being written, and ConnectionError when MLflow does not answer; after the last two, and after a
    kill, deleting again goes on.
    """
    ledger.assistant(name)
    _stop(ledger, name)
    own, others = _models(ledger, name)
    gone = {"MLflow experiments, models and prompts": registry.forget(name)}
    with lease(DELETING, timeout_s=3600):
        gone["index tables"] = store.forget(name)
        gone["models"] = sum(map(_delete, _unshared(name, own, others)))
        gone["snapshots"] = len(list((settings().snapshots / name).glob("snap-*")))
        mine = [row["id"] for row in ledger.rows(sa.select(releases.c.id).where(releases.c.assistant == name))]
        gone["folders of reports"] = sum(_delete(settings().home / "reports" / release) for release in mine)
        _delete(settings().snapshots / name)
        _delete_training(name)
    log = RequestLog(settings().requests)
    gone["logged requests"] = log.delete_assistant(name)
    log.close()
    gone["kept answers of all assistants"] = AnswerCache().clear()
    gone["kept replies of the judge about all assistants"] = bill.forget(settings().home / bill.REMEMBERED)
    return gone | _delete_rows(ledger, name, mine)


def forget(ledger: Ledger, user: str) -> dict[str, int]:
    """Deletes what `user` asked and said, of every assistant: traces, texts of feedback, logged requests; how much of
    what. Feedback stays as withdrawn rows without a text (data.feedback.forget).

    Raises ConnectionError when MLflow does not answer; forgetting again goes on.
    """
    log = RequestLog(settings().requests)
    asked = log.responses(user)
    gone = {"traces": sum(registry.forget_traces(name, responses) for name, responses in asked.items())}
    gone["pieces of feedback"] = sum(feedback.forget(ledger, row["name"], user) for row in ledger.assistants())
    gone["logged requests"] = log.delete_user(user)
    log.close()
    gone["kept answers of all assistants"] = AnswerCache().clear()
    return gone


def _stop(ledger: Ledger, name: str) -> None:
    """Nothing answers for the assistant and no remedy of it starts any more."""
    with ledger.write() as c:
        held = (outbox.c.assistant == name, outbox.c.state == "claimed")
        if row := c.execute(sa.select(outbox.c.seq, outbox.c.kind, outbox.c.claimed_by).where(*held)).first():
            raise ValueError(
                f"{row.kind} of {name!r} is under way (row {row.seq}, flow run {row.claimed_by}); wait for its end or "
                "cancel the flow run, then delete again"
            )
        stopped = {"live_release": None, "live_seq": assistants.c.live_seq + 1, "paused": True}
        stopped |= {"canary_release": None, "canary_share": 0.0}
        c.execute(assistants.update().where(assistants.c.name == name).values(**stopped))


def _models(ledger: Ledger, name: str) -> tuple[list[Model], list[Model]]:
    """The models of the assistant's releases, and of everybody else's."""
    every = [Release.of(row["body"]) for row in ledger.rows(sa.select(releases.c.body))]
    own = [release.model for release in every if release.assistant == name]
    return own, [release.model for release in every if release.assistant != name]


def _unshared(name: str, own: list[Model], others: list[Model]) -> list[Path]:
    """The folders of models that were trained or taken in for the assistant, and that nobody else is served from."""
    folders = [folder for kind in MODELS for folder in (settings().models / kind).glob("*") if folder.is_dir()]

    def used(folder: Path, by: list[Model]) -> bool:
        places = (place for model in by for place in (model.uri, model.adapter_uri) if place)
        return any(Path(place).is_relative_to(folder) for place in places)

    def trained_for(folder: Path) -> str | None:
        record = folder / "training.json"
        return json.loads(record.read_text()).get("assistant") if record.exists() else None

    mine = [folder for folder in folders if used(folder, own) or trained_for(folder) == name]
    return [folder for folder in mine if not used(folder, others)]


def _delete_training(name: str) -> None:
    """What Ray Train keeps of runs that trained for the assistant, and work that was cut short."""
    for run in (settings().home / "training").glob(f"{name}-*"):
        if match := re.fullmatch(rf"{re.escape(name)}-([0-9a-f]{{24}})(-preferred)?-[0-9a-f]{{8}}", run.name):
            _delete(settings().models / "tuned" / f".{match[1]}.work")
            _delete(run)


def _delete_rows(ledger: Ledger, name: str, mine: list[str]) -> dict[str, int]:
    """Every row of the ledger that belongs to the assistant, in one transaction."""
    gone = {}
    with ledger.write() as c:
        if ledger.sqlite:
            c.exec_driver_sql("PRAGMA secure_delete=ON")  # text is overwritten, not just unlinked
        for first in range(0, len(mine), 500):
            c.execute(reports.delete().where(reports.c.release.in_(mine[first : first + 500])))
        for table in metadata.sorted_tables:
            if "assistant" in table.c:
                gone[table.name] = c.execute(table.delete().where(table.c.assistant == name)).rowcount
        c.execute(assistants.delete().where(assistants.c.name == name))
    return gone


def _delete(folder: Path) -> bool:
    there = folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    return there
