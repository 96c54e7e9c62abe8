"""Does the gate say the same again? 20 reruns, each in a fresh engine process, in other order and batches, uncached.

Greedy text may depend on what else is in the batch. Champion and candidate are the untuned model with two wordings of
the prompt, on the sample; every question is asked anew in every rerun and scored as an evaluation scores it.
"""

import collections
import json
import random
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import ROOT, SAMPLE, home

AIM = "at least 19 of 20 verdicts identical"
RERUNS, QUESTIONS = 20, 60
AT_ONCE = (64, 1, 8, 32, 4)
"""How many questions are in the engine at once, rerun by rerun."""
WORDING = " Keep the answer short."


def met(value: dict) -> bool:
    return value["identical"] >= RERUNS - 1


def measure() -> dict:
    """How many reruns gave the most frequent verdict, and on how many questions any score ever changed."""
    with home() as folder:
        plan(folder)
        runs = [rerun(folder, seed) for seed in range(RERUNS)]
    verdicts = collections.Counter(run["verdict"] for run in runs)
    seen = [tuple(run["correct"][question] for run in runs) for question in runs[0]["correct"]]
    value = {
        "identical": verdicts.most_common(1)[0][1],
        "verdicts": dict(verdicts),
        "questions_whose_score_changed": sum(len(set(scores)) > 1 for scores in seen),
        "means": sorted({round(run["mean"], 4) for run in runs}),
    }
    return {"value": value, "n": {"reruns": RERUNS, "questions": QUESTIONS}, "against": None, "limit": None}


def plan(folder: Path) -> None:
    """The two releases and the snapshot they are asked from, as JSON for the reruns."""
    from dataclasses import replace

    from data.records import Release, Sources, as_json
    from serving.engine.models import base_model
    from tasks import prepare
    from tasks.index import build_index

    snapshot = prepare.prepare(Sources("handbook", str(SAMPLE / "documents"), None, str(SAMPLE / "golden.jsonl")))
    champion = Release("handbook", base_model(), build_index(snapshot))
    candidate = replace(champion, prompt=replace(champion.prompt, system=champion.prompt.system + WORDING))
    releases = {"candidate": as_json(candidate), "champion": as_json(champion)}
    (folder / "plan.json").write_text(json.dumps({"snapshot": as_json(snapshot), "releases": releases}))


def rerun(folder: Path, seed: int) -> dict:
    """The verdict, the mean difference and each question's scores of one rerun, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gate_stability", str(folder), str(seed)]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=1800).stdout
    return json.loads(printed.splitlines()[-1])


def judged(folder: Path, seed: int) -> dict:
    """Asks both arms every question in an order drawn by `seed`, `AT_ONCE` at a time, with an empty cache."""
    from contextlib import ExitStack

    from data import snapshots
    from data.records import Release, Snapshot
    from serving import rag
    from tasks.arm import Arm
    from tasks.gate import GateSettings, decide
    from tasks.intervals import pair

    made, at_once = json.loads((folder / "plan.json").read_text()), AT_ONCE[seed % len(AT_ONCE)]
    golden = spread(snapshots.golden(Snapshot.of(made["snapshot"])))
    random.Random(seed).shuffle(golden)
    scores = {}
    with ExitStack() as opened:
        engine = None
        for name, release in made["releases"].items():
            arm = Arm.open(Release.of(release), opened, engine)
            engine, answers = arm.engine, []
            for first in range(0, len(golden), at_once):
                asked = [question.question for question in golden[first : first + at_once]]
                found = rag.retrieve_many(asked, arm.index, arm.embedder, arm.release.retrieval)
                empty = folder / f"answers-{seed}-{name}.db"
                answers += rag.answer_given(asked, found, arm.release, engine, empty)
            scores[name], _ = arm.score(golden, answers, given_passage=False)
    settings = GateSettings(margin=0.10, guardrails=("grounding",))
    decision = decide(scores["candidate"], scores["champion"], {"answered": None}, settings)
    both = pair("correct", scores["candidate"], scores["champion"])
    correct = {q: [a, b] for q, a, b in zip(both.questions, both.candidate, both.champion, strict=True)}
    return {"verdict": decision.verdict, "mean": decision.intervals[0].mean, "correct": dict(sorted(correct.items()))}


def spread(golden: list) -> list:
    """QUESTIONS of them, one of each document in turn, so that all documents vote."""
    by_document = collections.defaultdict(list)
    for question in golden:
        by_document[question.document].append(question)
    turns = [(turn, document) for document, mine in by_document.items() for turn in range(len(mine))]
    return [by_document[document][turn] for turn, document in sorted(turns)][:QUESTIONS]


if __name__ == "__main__":
    print(json.dumps(judged(Path(sys.argv[1]), int(sys.argv[2]))))
