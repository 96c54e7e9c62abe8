"""Follow-up questions of the sample ("and on Solo?"): is their section found, and does a change of subject suffer?"""

import json

from benchmarks.machine import SAMPLE, home

AIM = "hit@3 of follow-ups at least .95, changes of subject within .02 of the question alone"


def met(value: dict) -> bool:
    follow, switch = value["follow_up"], value["new_subject"]
    return follow["with_before"] >= 0.95 and switch["alone"] - switch["with_before"] <= 0.02


def measure() -> dict:
    """Hit@3 of follow-ups, and of golden questions asked after one about another document, alone and in their turn."""
    with home():
        from data.embedding import load
        from data.records import Retrieval, Snapshot, Sources
        from data.store import open_index
        from serving import rag
        from serving.engine.models import embedder_folder
        from tasks import prepare
        from tasks.index import build_index

        snapshot: Snapshot = prepare.prepare(Sources("handbook", documents=str(SAMPLE / "documents")), None)
        index, embedder = open_index(build_index(snapshot)), load(embedder_folder())

        def hit_rate(turns: list[dict], turn) -> float:
            hits = [
                rag.retrieve_turn(index, embedder, asked["question"], turn(asked), Retrieval(), frozenset())[0]
                for asked in turns
            ]
            places = [[(hit.chunk.document, hit.chunk.section) for hit in found] for found in hits]
            found = [(a["document"], a["section"]) in p for a, p in zip(turns, places, strict=True)]
            return round(sum(found) / len(found), 4)

        groups = {"follow_up": lines("followups.jsonl"), "new_subject": new_subjects(lines("golden.jsonl"))}
        value = {
            name: {"alone": hit_rate(turns, lambda _: ""), "with_before": hit_rate(turns, lambda a: a["before"])}
            for name, turns in groups.items()
        }
    sizes = {name: len(turns) for name, turns in groups.items()}
    return {"value": value, "n": sizes, "against": "the last question alone", "limit": 1.0}


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (SAMPLE / name).read_text().splitlines()]


def new_subjects(golden: list[dict]) -> list[dict]:
    """Each answerable golden question behind one that is 60 places earlier, in another document."""
    answerable = [question for question in golden if question["answers"]]
    behind = zip(answerable[60:], answerable, strict=False)
    return [asked | {"before": before["question"]} for asked, before in behind]
