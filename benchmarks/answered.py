"""Questions answered by an engine that is given the right paragraph, scored, and compared by article."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from benchmarks.tuning import Bound, build
from data.records import Answer, Decoding, Hit, Model, Prompt

DECODING = Decoding(max_new_tokens=24)


def answers(engine, bound: Bound) -> list[Answer]:
    """What the engine answers, given the right paragraph and nothing else, cleaned as when served."""
    from serving.rag import finish

    prompts = [build(example.question, [chunk]) for example, chunk in bound.items()]
    hits = [(Hit(chunk, 1.0, 1.0),) for chunk in bound.values()]
    written = engine.generate(prompts, DECODING)
    asked = [example.question for example in bound]
    return [finish(*each, Prompt()) for each in zip(asked, written, hits, strict=True)]


def scores(said: Sequence[Answer], bound: Bound) -> dict[str, list[float]]:
    """F1 and exact match of each answer with the best of the accepted ones; an abstention scores 0."""
    from tasks.metrics.answers import f1, normalise

    found: dict[str, list[float]] = {"f1": [], "em": []}
    for answer, example in zip(said, bound, strict=True):
        text, right = answer.text, not answer.abstained
        found["f1"].append(right * max(f1(text, accepted) for accepted in example.answers))
        found["em"].append(float(right and normalise(text) in map(normalise, example.answers)))
    return found


def scored(model: Model, bound: Bound) -> dict[str, list[float]]:
    """The scores of a model on the engine it is served with."""
    from serving.engine import open_engine

    with closing(open_engine(model)) as engine:
        return scores(answers(engine, bound), bound)


def gains(candidate: dict[str, list[float]], champion: dict[str, list[float]], bound: Bound) -> dict[str, list[float]]:
    """[mean, low, high] of the paired difference of each metric, the 95% interval by article (METHODS section 1)."""
    from tasks.intervals import paired_interval

    clusters = [chunk.document for chunk in bound.values()]
    found = {
        metric: paired_interval(metric, values, champion[metric], clusters, 0.0, 0.025, metric == "em")
        for metric, values in candidate.items()
    }
    return {metric: [round(x, 4) for x in (i.mean, i.lower, i.upper)] for metric, i in found.items()}


def levels(found: dict[str, list[float]], bound: Bound) -> dict[str, list[float]]:
    """[mean, low, high] of each metric, the 95% interval by article."""
    return gains(found, {metric: [0.0] * len(values) for metric, values in found.items()}, bound)
