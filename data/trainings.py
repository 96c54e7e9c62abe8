"""What feedback went into: the models that were trained on it, the releases that show it as a worked example."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from data import snapshots
from data.feedback import given
from data.ledger import Ledger
from data.records import Model, Record, Release, Snapshot
from data.tables import releases, trainings


@dataclass(frozen=True)
class Trained(Record):
    """A model that was trained on given feedback: which of it, from which snapshot, and the releases that serve it.

    `recorded` is false for a tuned model of which nobody recorded what it was trained on: it may have been.
    """

    model: str
    snapshot: str
    feedback: tuple[int, ...]
    releases: tuple[str, ...]
    live: bool
    recorded: bool = True


def record_training(ledger: Ledger, model: Model, snapshot: Snapshot) -> None:
    """Remember which feedback a model was trained on: that of its snapshot. Recording it twice changes nothing."""
    seqs = snapshots.feedback_numbers(snapshot)
    row = {"assistant": snapshot.assistant, "model": model.sha256, "snapshot": snapshot.id}
    same = [trainings.c[name] == value for name, value in row.items()]
    with ledger.write() as c:
        if not c.execute(sa.select(trainings.c.seq).where(*same)).first():
            c.execute(trainings.insert().values(**row, feedback=seqs, at=time.time()))


def trained_on(ledger: Ledger, assistant: str, seqs: Collection[int]) -> tuple[Trained, ...]:
    """The models that were trained on any of this feedback: the adapters to build again when it was poisoned.

    A tuned model without a record of its training counts, as not `recorded`, unless it was released before the first
    of this feedback was given.
    """
    wanted = set(seqs)
    served = ledger.rows(sa.select(releases).where(releases.c.assistant == assistant).order_by(releases.c.at))
    live = ledger.assistant(assistant)["live_release"]
    by_model: dict[str, list[dict]] = defaultdict(list)
    for row in served:
        by_model[row["body"]["model"]["sha256"]].append(row)
    lines = ledger.rows(sa.select(trainings).where(trainings.c.assistant == assistant).order_by(trainings.c.seq))

    def traced(model: str, snapshot: str, held: Sequence[int], recorded: bool) -> Trained:
        ids = tuple(row["id"] for row in by_model[model])
        return Trained(model, snapshot, tuple(held), ids, live in ids, recorded)

    found = [
        traced(line["model"], line["snapshot"], sorted(wanted & set(line["feedback"])), True)
        for line in lines
        if wanted & set(line["feedback"])
    ]
    times = [row["at"] for seq, row in given(ledger, assistant).items() if seq in wanted]
    for model in by_model.keys() - {line["model"] for line in lines}:
        first = by_model[model][0]
        if times and first["body"]["model"].get("adapter") and first["at"] >= min(times):
            found.append(traced(model, "", (), False))
    return tuple(found)


def shown_in(ledger: Ledger, assistant: str, seqs: Collection[int]) -> dict[str, tuple[int, ...]]:
    """The releases whose prompt has any of this feedback as a worked example, oldest first -> which of it.

    What is withdrawn is shown to no model by any of them; their records still hold its text.
    """
    wanted, found = set(seqs), {}
    for row in ledger.rows(sa.select(releases).where(releases.c.assistant == assistant).order_by(releases.c.at)):
        shots = Release.of(row["body"]).prompt.shots
        if held := wanted & {shot.label for shot in shots}:
            found[row["id"]] = tuple(sorted(held))
    return found
