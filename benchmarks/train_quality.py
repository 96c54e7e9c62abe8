"""F1 and exact match after ten minutes of training on two cores, on held-out articles, from the file that is served.

Trained on questions of the other Wikipedia articles with the right paragraph given; merged, exported and proved as the
product does it; asked with the right paragraph given, on the engine that serves. The untuned model answers the same.
Nothing is held out to stop early: ten minutes are not enough to learn anything by heart.
"""

from benchmarks.machine import home

AIM = "F1 at least .60 with the right paragraph given"
MINUTES, WORKERS, SEED = 10.0, 2, 0
HELD_ARTICLES, ASKED = 16, 640


def met(value: dict) -> bool:
    return value["tuned"]["f1"][0] >= 0.60


def measure() -> dict:
    """[mean, low, high] of both models and of the paired difference, 95% intervals by article."""
    with home() as folder:
        from benchmarks import answered, tuning
        from serving.engine.models import base_model
        from tasks.finetune import TOKENS_PER_S
        from tasks.training import Training

        learned, test = tuning.apart(tuning.questions(tuning.WIKI), HELD_ARTICLES, SEED)
        asked = tuning.some(test, ASKED, SEED)
        training = Training(minutes=MINUTES, seed=SEED)
        trained = tuning.made(learned, training.passes, SEED, int(MINUTES * 60 * TOKENS_PER_S * WORKERS))
        done = tuning.train(folder / "wiki", trained, None, training, WORKERS)
        model = tuning.published(folder / "wiki", training, len(learned))
        tuned, untuned = answered.scored(model, asked), answered.scored(base_model(), asked)
    value = {
        "tuned": answered.levels(tuned, asked),
        "untuned": answered.levels(untuned, asked),
        "gain": answered.gains(tuned, untuned, asked),
        "minutes": round(done["elapsed"] / 60, 2),
        "tokens_per_s": round(done["tokens_per_s"], 1),
        "tokens": done["tokens"],
        "dtype": done["dtype"],
    }
    n = {"asked": len(asked), "articles": tuning.articles(asked), "examples_at_hand": len(learned)}
    return {"value": value, "n": n, "against": "the untuned model; a plain loop reached F1 .53", "limit": None}
