"""Quality lost by the Q8_0 export: the file that is served, on its engine, against the merged model in float32.

A model is trained for a few minutes and published; both sides answer the same questions of held-out articles with the
right paragraph given, greedily: OpenVINO reads the exported file, Transformers the base with the adapter merged in.
"""

from contextlib import closing

from benchmarks.machine import home

AIM = "at most 0.5 F1 points"
ASKED, HELD_ARTICLES = 2100, 16
MINUTES, WORKERS, SEED = 5.0, 2, 0


def met(value: dict) -> bool:
    return value["lost"]["f1"][0] <= 0.005


def measure() -> dict:
    """[mean, low, high] of float32 - Q8_0 and of both sides, 95% intervals by article; answers that are the same."""
    with home() as folder:
        from benchmarks import answered, tuning
        from data.records import Model
        from serving.engine import open_engine
        from serving.engine.models import base_folder
        from serving.engine.transformers import TransformersEngine
        from tasks.finetune import TOKENS_PER_S
        from tasks.training import Training

        learned, test = tuning.apart(tuning.questions(tuning.WIKI), HELD_ARTICLES, SEED)
        asked = short_first(tuning.some(test, ASKED, SEED))
        training = Training(minutes=MINUTES, seed=SEED)
        trained = tuning.made(learned, training.passes, SEED, int(MINUTES * 60 * TOKENS_PER_S * WORKERS))
        tuning.train(folder / "wiki", trained, None, training, WORKERS)
        model = tuning.published(folder / "wiki", training, len(learned))
        exact = Model(model.base, str(base_folder()), "transformers", model.base, model.adapter, model.adapter_uri)
        said, scores, versions = {}, {}, {}
        for side, engine in (
            ("q8_0", lambda: open_engine(model)),
            ("float32", lambda: TransformersEngine(exact, device="cpu")),
        ):
            with closing(engine()) as opened:
                said[side], versions[side] = answered.answers(opened, asked), opened.version
            scores[side] = answered.scores(said[side], asked)
    same = sum(one.text == other.text for one, other in zip(*said.values(), strict=True))
    value = {
        "lost": answered.gains(scores["float32"], scores["q8_0"], asked),
        "float32": answered.levels(scores["float32"], asked),
        "q8_0": answered.levels(scores["q8_0"], asked),
        "same_answers": round(same / len(asked), 4),
        "engines": versions,
    }
    n = {"asked": len(asked), "articles": tuning.articles(asked)}
    return {"value": value, "n": n, "against": "base and adapter merged, float32, Transformers", "limit": 0.0}


def short_first(bound: dict) -> dict:
    """The same questions by length of their paragraphs: batches have little padding, and paragraphs stay together."""
    return dict(sorted(bound.items(), key=lambda pair: (len(pair[1].text), pair[1].id)))
