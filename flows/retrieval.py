"""`python -m flows.retrieval`: how well the live index of an assistant is searched, as a table in Markdown."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace

from prefect import flow

from data import formats, snapshots
from data.golden_sets import open_part
from data.ledger import Ledger
from data.records import GoldenQuestion, Release, Retrieval, Snapshot
from settings import settings
from tasks import report
from tasks.golden import Corpus, bind, to_golden
from tasks.retrieval import RetrievalReport, evaluate_retrieval, markdown, probes


@flow(name="retrieval", log_prints=True)
def measure_retrieval(
    assistant: str, golden: str | None = None, retrieval: Retrieval | None = None, against: str | None = None
) -> RetrievalReport:
    """`measure`, with the table in the Prefect UI."""
    found = measure(assistant, golden, retrieval, against)
    report.retrieval(assistant, found)
    return found


def measure(
    assistant: str, golden: str | None = None, retrieval: Retrieval | None = None, against: str | None = None
) -> RetrievalReport:
    """The live release's index searched with `retrieval` (None: as it is served), compared with release `against`,
    else with what is served where `retrieval` is something else.

    Asked are the questions at `golden`, else the open golden questions of the release's snapshot, else probes.
    """
    book = Ledger(settings().ledger)
    live = live_release(book, assistant)
    row = book.release_row(live.id)["snapshot"]
    snapshot = Snapshot.of(row) if row else None
    questions = read_golden(golden, snapshot) if golden else open_part(snapshots.golden(snapshot)) if snapshot else []
    if not any(question.votes and question.answers for question in questions):
        questions = probes(live.index)
    chosen = retrieval or live.retrieval
    other = book.release(against) if against else live.retrieval if chosen != live.retrieval else None
    return evaluate_retrieval(live.index, questions, chosen, against=other, tombstones=book.tombstones(assistant))


def live_release(book: Ledger, assistant: str) -> Release:
    """Raises KeyError for an unknown assistant, LookupError for one that nothing is live for."""
    if (live := book.assistant(assistant)["live_release"]) is None:
        raise LookupError(f"nothing is live for {assistant!r} yet; run python -m flows.lifecycle first")
    return book.release(live)


def read_golden(path: str, snapshot: Snapshot | None) -> list[GoldenQuestion]:
    """The questions of a file, bound to the documents of a snapshot; those that cannot be bound are named and left out.

    Raises LookupError without a snapshot: nobody knows then which section a heading was.
    """
    if snapshot is None:
        raise LookupError(f"the live release has no snapshot to bind {path} to; run python -m flows.lifecycle again")
    corpus = Corpus(list(snapshots.documents(snapshot)), {}, snapshot.documents)
    examples, refused = formats.read_examples(path)
    problems = [f"{row.file} {row.place}: {row.reason}" for row in refused]
    bound = {}
    for example in examples:
        try:
            question = to_golden(bind(example, corpus), corpus)
            bound[question.id] = question
        except LookupError as problem:
            problems.append(f"{example.question!r}: {problem.args[0]}")
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return list(bound.values())


def arguments() -> argparse.Namespace:
    """The settings of Retrieval are options, each by its name; what is not given is as it is served."""
    parser = argparse.ArgumentParser(prog="python -m flows.retrieval", description="How well is the index searched?")
    parser.add_argument("--assistant", required=True)
    parser.add_argument("--golden", help="questions with their documents; without it those of the release, else probes")
    parser.add_argument("--against", help="id of a release to compare with, index and settings")
    for field in fields(Retrieval):
        kind = str if field.default is None else type(field.default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, help="as it is served")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    served = live_release(Ledger(settings().ledger), chosen.assistant).retrieval
    changed = {field.name: getattr(chosen, field.name) for field in fields(Retrieval)}
    retrieval = replace(served, **{name: value for name, value in changed.items() if value is not None})
    print(markdown(measure(chosen.assistant, chosen.golden, retrieval, chosen.against)))


if __name__ == "__main__":
    main()
