"""A/B of prompts on replayed questions: the better one chosen within the planned users, no winner of two equal ones.

Stand-ins for prompts are real systems of EVOUNA whose answers people judged: a verdict is what its reader rates. Every
simulated user asks one to three questions, drawn anew, of the arm that the real router sends them to, in a real split
test of a real ledger and request log; what the test concludes is `tasks.split`'s. Equal arms are one system twice.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.gate_error_rates import read

AIM = "better chosen >= 80% by planned n, worse <= 2.5%; equal: no winner in >= 95%"
PAIRS = (("gpt35", "newbing"), ("fid", "gpt4"))
"""Worse and better system: 14.4 and 9.9 points apart."""
EQUAL = ("fid", "gpt4")
RUNS, MOST_ASKED = 100, 3
ASSISTANT, DAY = "replayed", 86_400.0


def met(value: dict) -> bool:
    different, equal = value["different"], value["equal"]
    return (
        all(pair["better chosen"] >= 0.80 and pair["worse chosen"] <= 0.025 for pair in different.values())
        and equal["no winner"] >= 0.95
    )


def measure() -> dict:
    """Verdicts of RUNS split tests of each pair, and of as many of equal arms that end as planned for the same n."""
    verdicts = read()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        different = {f"{worse} - {better}": place.pair(verdicts[worse], verdicts[better]) for worse, better in PAIRS}
        plan = plan_for(0.7, 0.1)
        same = [place.run(verdicts[one], verdicts[one], plan, seed) for one in EQUAL for seed in range(RUNS)]
        place.log.close()
    ends = Counter(verdict for verdict, _ in same)
    equal = {"no winner": ends["none"] / len(same), "runs": len(same), "users planned": plan.users(0.5)}
    value = {"different": different, "equal": equal}
    return {"value": value, "n": {"runs of each": RUNS, "questions": len(verdicts["fid"])}, "against": None}


def plan_for(p0: float, difference: float):
    from tasks.split import Plan

    return Plan(p0=round(p0, 2), difference=round(difference, 2))


class Place:
    """A ledger with a live release and an accepted one, a request log, and a router that reads the ledger."""

    def __init__(self, folder: Path):
        from data.ledger import Ledger, migrate
        from data.records import IndexVersion, Model, Prompt, Release, Sources
        from data.requests import RequestLog
        from serving.router import Router

        url = f"sqlite:///{folder}/ledger.db"
        migrate(url)
        self.book, self.log = Ledger(url), RequestLog(f"sqlite:///{folder}/requests.db")
        self.router = Router(self.book)
        index = IndexVersion(ASSISTANT, "uri", "t", 1, "sum", "emb", "chu", 1, 1, "snap")
        self.a = Release(ASSISTANT, Model("a" * 64, "m.gguf", "openvino", "b" * 64), index)
        self.b = replace(self.a, prompt=Prompt(system="Another prompt."))
        self.book.register(Sources(ASSISTANT, "docs"), {})
        for release in (self.a, self.b):
            self.book.add_release(release, "reprompt", None, {})
            for condition, said in (("gate", "promote"), ("smoke", "answered"), ("canary", "held")):
                self.book.decide(ASSISTANT, condition, release.id, said, "", {})
        self.book.promote(ASSISTANT, self.a.id, 0)

    def pair(self, worse: np.ndarray, better: np.ndarray) -> dict:
        """RUNS tests of the worse system as arm a and the better one as arm b."""
        plan = plan_for(worse.mean(), better.mean() - worse.mean())
        ends = [self.run(worse, better, plan, seed) for seed in range(RUNS)]
        users = sorted(users for verdict, users in ends if verdict == "b")
        return {
            "points": round(100 * float(better.mean() - worse.mean()), 1),
            "better chosen": sum(verdict == "b" for verdict, _ in ends) / RUNS,
            "worse chosen": sum(verdict == "a" for verdict, _ in ends) / RUNS,
            "users planned": plan.users(0.5),
            "users to a decision, both arms": {"median": users[len(users) // 2], "most": users[-1]},
        }

    def run(self, of_a: np.ndarray, of_b: np.ndarray, plan, seed: int) -> tuple[str, int]:
        """The verdict of one test after the planned users, and how many of them were used in both arms."""
        from data import splits
        from tasks import split

        test = splits.start(self.book, ASSISTANT, self.a.id, self.b.id, 0.5, asdict(plan))
        self.router.poll()
        self.replay(test, {"a": of_a, "b": of_b}, plan, np.random.default_rng(seed))
        now = test.started + 3 * DAY
        found = split.compare(self.book, self.log, test, now)
        verdict, reason = split.conclude(test, found, now)
        splits.decide(self.book, test, "stopped", reason, {})
        self.forget()
        return verdict, sum(found.judged.users.values())

    def replay(self, test, correct: dict[str, np.ndarray], plan, random: np.random.Generator) -> None:
        """Users come one by one over a day until both arms have those that are planned; each rates what they read."""
        from data.requests import asker, requests
        from data.tables import feedback

        wanted, served, came, asked, rated = plan.users(test.share), {"a": test.a, "b": test.b}, Counter(), [], []
        while any(came[arm] < users for arm, users in wanted.items()):
            user = f"user {test.id} {came.total()}"
            _, arm = self.router.resolve(ASSISTANT, user, asker=asker(None, user))
            at = test.started + DAY * came.total() / (2 * sum(wanted.values()))
            came[arm] += 1
            for question in random.integers(len(correct[arm]), size=random.integers(1, MOST_ASKED + 1)):
                about = {"assistant": ASSISTANT, "release": served[arm], "user": user, "at": at}
                about["response"] = f"{user} {len(asked)}"
                asked.append(about | {"arm": arm, "source": "user", "key": "", "status": 200})
                rated.append(about | {"rating": 1 if correct[arm][question] else -1})
        with self.log.engine.begin() as connection:
            connection.execute(requests.insert(), asked)
        with self.book.write() as connection:
            connection.execute(feedback.insert(), rated)

    def forget(self) -> None:
        """Empty log and feedback: the next test has users of its own, and reads no longer for all that came before."""
        from data.requests import requests
        from data.tables import feedback

        with self.log.engine.begin() as connection:
            connection.execute(requests.delete())
        with self.book.write() as connection:
            connection.execute(feedback.delete())
