"""Where the answering paragraph comes among all paragraphs of SQuADShifts new-wiki, hybrid, by words and by vectors."""

import random

from benchmarks.machine import data, home

AIM = "hit@5 at least .94, MRR at least .84"
ARMS = {"hybrid": {}, "words": {"vector_weight": 0.0}, "vectors": {"vector_weight": 1.0}}


def met(value: dict) -> bool:
    return value["hybrid"]["hit@5"][0] >= 0.94 and value["hybrid"]["mrr"][0] >= 0.84


def measure(questions: int = 3000) -> dict:
    """All paragraphs as one corpus; [mean, low, high] of each figure, the 95% interval by article; MRR within ten."""
    with home():
        from data import formats
        from data.records import GoldenQuestion, Retrieval, Snapshot, Sources
        from data.store import open_index
        from tasks import prepare
        from tasks.index import build_index
        from tasks.retrieval import evaluate_retrieval

        source = data("squadshifts_new_wiki.json.gz")
        snapshot: Snapshot = prepare.prepare(Sources("wiki", documents=source, examples=source), None)
        index = build_index(snapshot)
        hashes = {place[:2]: place[2] for place in open_index(index).places().values()}
        # Once by question and article: the same words asked of two paragraphs of one have no one right place
        asked = list({example.id: example for example in formats.read(source).examples if example.answers}.values())
        asked = [
            GoldenQuestion(e.id, e.question, e.answers, e.document, e.section, hashes[e.document, e.section])
            for e in random.Random(0).sample(asked, min(questions, len(asked)))
        ]
        value = {}
        for arm, settings in ARMS.items():
            report = evaluate_retrieval(index, asked, Retrieval(**settings))
            rows = [report[metric] for metric in ("hit@1", "hit@5", "hit@10", "mrr")]
            value[arm] = {row.metric: [round(x, 4) for x in (row.mean, row.lower, row.upper)] for row in rows}
    return {"value": value, "n": len(asked), "against": "BM25 alone, vectors alone", "limit": 1.0}
