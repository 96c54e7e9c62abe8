"""Preferences made from edits of weak answers: learned by DPO, against the supervised adapter they were made with.

A supervised adapter answers questions of articles it may have read, but which it was not trained on. Where an answer is
weak (F1 under .5) the person's answer is the edit: the pair of the person's and the model's answer. DPO then goes on
from the adapter with the product's settings. Beside it the same edits as ordinary examples, with the same time, rate
and passes. All three are exported and answer questions of held-out articles, with the right paragraph given.
"""

from contextlib import closing

from benchmarks.machine import home

AIM = "the gain above 0 with its interval"
PAIRS, WEAK, ASK_AT_ONCE = 300, 0.5, 160
SUPERVISED, FLIPS = 600, 0.0  # an edit of these is a person's answer: none says the opposite of what is meant
HELD_ARTICLES, ASKED = 16, 640
WORKERS, SEED = 2, 0
MINUTES = 6.0  # about what two slow cores need for all pairs once


def met(value: dict) -> bool:
    return value["gain"]["f1"][1] > 0


def measure() -> dict:
    """[mean, low, high] of each adapter, of DPO and of the examples against supervised; 95% intervals by article."""
    with home() as folder:
        from dataclasses import replace

        from benchmarks import answered, tuning
        from tasks.training import Training

        others, test = tuning.apart(tuning.questions(tuning.WIKI), HELD_ARTICLES, SEED)
        asked, learned = tuning.some(test, ASKED, SEED), tuning.some(others, SUPERVISED, SEED)
        first = Training(minutes=None, passes=1, seed=SEED)
        how = first.preferring
        second = replace(first, minutes=MINUTES, learning_rate=how.learning_rate)
        tuning.train(folder / "supervised", tuning.made(learned, 1, SEED), None, first, WORKERS)
        models = {"supervised": tuning.published(folder / "supervised", first, len(learned))}
        read = {chunk.id for chunk in learned.values()}
        fresh = {example: chunk for example, chunk in others.items() if chunk.id not in read}
        edits, tried = weak(models["supervised"], tuning.some(fresh, len(fresh), SEED))
        edited = {example: fresh[example] for example in edits}
        start = {"start": str(folder / "supervised" / "adapter")}
        for name, made, more in (
            ("preferred", preferences(edits, edited), {"passes": how.passes, "flips": FLIPS}),
            ("examples", tuning.made(edited, how.passes, SEED), {}),
        ):
            tuning.train(folder / name, made, None, second, WORKERS, **start, **more)
            models[name] = tuning.published(folder / name, second, len(learned) + len(edits))
        scores = {name: answered.scored(model, asked) for name, model in models.items()}
        ended = {name: tuning.figures(folder / name) for name in models}
    value = {
        "gain": answered.gains(scores["preferred"], scores["supervised"], asked),
        "gain_of_examples": answered.gains(scores["examples"], scores["supervised"], asked),
        **{name: answered.levels(found, asked) for name, found in scores.items()},
        "steps": {name: [done["steps"], done["planned"], done["ended"]] for name, done in ended.items()},
        "weak_share": round(len(edits) / tried, 4),
    }
    n = {"asked": len(asked), "articles": tuning.articles(asked), "pairs": len(edits), "supervised": len(learned)}
    return {"value": value, "n": n, "against": "supervised only", "limit": None}


def weak(model, bound: dict) -> tuple[dict, int]:
    """At most PAIRS questions with the model's answers that are weak, and how many were asked for them."""
    from benchmarks import answered
    from serving.engine import open_engine

    found, tried, waiting = {}, 0, list(bound.items())
    with closing(open_engine(model)) as engine:
        while waiting and len(found) < PAIRS:
            some, waiting = dict(waiting[:ASK_AT_ONCE]), waiting[ASK_AT_ONCE:]
            said = answered.answers(engine, some)
            scores = answered.scores(said, some)["f1"]
            found |= {e: a.text for e, a, score in zip(some, said, scores, strict=True) if score < WEAK}
            tried += len(some)
    return dict(list(found.items())[:PAIRS]), tried


def preferences(edits: dict, bound: dict):
    """Rows of pairs: what a person answered, and the model's answer that they put it in place of."""
    from benchmarks import tuning
    from data.records import Preference
    from serving.engine.models import base_folder
    from tasks.contexts import Mixture, pairs

    wanted = [Preference(e.question, e.answers[0], said, e.document, e.section) for e, said in edits.items()]
    shown = [[bound[example]] for example in edits]
    return pairs(wanted, lambda _: shown, tuning.build, tuning.encoder(base_folder()), 1, Mixture().most_tokens)
