"""How long a gate's evaluation takes: 200 golden questions of the sample, two arms, on the embedded machine.

Nothing cached: the candidate has another prompt, so both arms write every answer and both are timed. Index only: one
page was edited, so only questions that are now shown other passages are asked again, and probes are searched.
"""

import shutil
import sys
from dataclasses import replace

from benchmarks.machine import SAMPLE, home

AIM = "nothing cached at most 120 s, index-only change at most 30 s"
QUESTIONS = 200
PAGE, OLD, NEW = "sharing/trash.md", "75 days on Team", "81 days on Team"


def met(value: dict) -> bool:
    return value["nothing_cached_s"] <= 120 and value["index_only_s"] <= 30


def measure() -> dict:
    """Seconds of `evaluate`, and of `decide` on its scores, for both kinds of change."""
    with home() as folder:
        from data.ledger import migrate
        from settings import settings
        from tasks import evaluate
        from tasks.gate import GateSettings

        migrate(settings().ledger)
        documents = folder / "documents"
        shutil.copytree(SAMPLE / "documents", documents)
        first, champion = released(folder, documents, None)
        worded = replace(champion.prompt, system=champion.prompt.system + " Be exact.")
        suite = evaluate.Suite(unanswerable=0)  # the sample's own unanswerable questions are among the 200
        fresh = evaluate.evaluate(replace(champion, prompt=worded), champion, "reprompt", first, suite)
        text = (documents / PAGE).read_text()
        (documents / PAGE).write_text(text.replace(OLD, NEW))
        second, edited = released(folder, documents, first)
        cached = evaluate.evaluate(edited, champion, "reindex", second, suite)
        verdicts = [
            evaluate.decide(evaluation, kind, GateSettings(margin=0.10))
            for evaluation, kind in ((fresh, "reprompt"), (cached, "reindex"))
        ]
    for decision in verdicts:
        print(decision.reason, file=sys.stderr)
    value = {
        "nothing_cached_s": round(fresh.seconds, 1),
        "index_only_s": round(cached.seconds, 1),
        "verdicts": [decision.verdict for decision in verdicts],
    }
    n = {"questions": fresh.questions, "aged": cached.aged}
    return {"value": value, "n": n, "against": None, "limit": None}


def released(folder, documents, before):
    """A snapshot of the documents with QUESTIONS golden questions, and the untuned release over its index."""
    from data.records import Release, Sources
    from serving.engine.models import base_model
    from tasks import prepare
    from tasks.index import build_index

    golden = folder / "golden.jsonl"
    golden.write_text("\n".join((SAMPLE / "golden.jsonl").read_text().splitlines()[:QUESTIONS]))
    snapshot = prepare.prepare(Sources("handbook", str(documents), None, str(golden)), before)
    return snapshot, Release("handbook", base_model(), build_index(snapshot))
