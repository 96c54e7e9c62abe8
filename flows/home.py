"""The state of this machine, from a terminal: backed up, restored, an assistant deleted, a user forgotten. Commands of
flows.stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from settings import settings


@contextmanager
def told() -> Iterator[None]:
    """A refusal ends a command with its sentence."""
    try:
        yield
    except (ValueError, KeyError, OSError) as refused:
        raise SystemExit(refused.args[0] if isinstance(refused, KeyError) else str(refused)) from refused


@told()
def back_up(folder: Path) -> None:
    """Copy everything to a new folder; whatever runs goes on."""
    from data.backup import backup

    made = backup(folder)
    size = sum(file.size for file in made.files) / 1e6
    print(f"{len(made.files)} files, {size:.0f} MB, in {folder}; live in it: {made.live or 'nothing'}")


@told()
def restore(folder: Path) -> None:
    """Make the empty home of this machine what it was in a backup, and check what will be live."""
    from data import backup
    from data.ledger import Ledger
    from data.store import open_index
    from serving.engine import verify_model

    backup.restore(folder)
    for name, routing in Ledger(settings().ledger).live().items():
        if routing.live:
            verify_model(routing.live.model)
            open_index(routing.live.index).verify()
            print(f"assistant {name}: {routing.live.id} is whole, and live after make run")
    print(f"restored to {settings().home}")


@told()
def delete(assistant: str, sure: bool) -> None:
    """Delete an assistant with everything of it on this machine."""
    from data.ledger import Ledger
    from tasks import removal

    book = Ledger(settings().ledger)
    if not sure:
        book.assistant(assistant)
        raise SystemExit(
            f"this deletes {assistant!r} for good: releases, index, models, snapshots, reports, feedback and requests. "
            "Backups keep theirs. A lifecycle or split-start of it that runs would bring it back: let it end first. "
            "Say --yes to do it"
        )
    for what, count in removal.remove(book, assistant).items():
        if count:
            print(f"deleted: {count} {what}")
    print(
        "MLflow keeps files of a deleted experiment until "
        f"MLFLOW_TRACKING_URI={settings().mlflow} mlflow gc --backend-store-uri sqlite:///{settings().home}/mlflow.db"
    )
    print(f"{assistant} is deleted; what its flow runs logged is in Prefect until they are deleted there")


@told()
def forget(user: str, sure: bool) -> None:
    """Delete what a user asked and said."""
    from data.ledger import Ledger
    from tasks import removal

    if not sure:
        raise SystemExit(
            f"this deletes for good what {user!r} asked and said: requests, traces in MLflow, texts of feedback. "
            "Backups and models that learned from it keep theirs. Say --yes to do it"
        )
    for what, count in removal.forget(Ledger(settings().ledger), user).items():
        if count:
            print(f"deleted: {count} {what}")
    print("an endpoint that gives answers again keeps theirs in memory for up to a day, or until it is started anew")
