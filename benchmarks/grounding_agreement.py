"""Grounding without a judge: answers people gave from a paragraph told from answers that it does not give."""

import random

from benchmarks.machine import data, home

AIM = "AUC at least .90 where the answer stands elsewhere"


def met(value: dict) -> bool:
    return value["elsewhere"]["supported"] >= 0.90


def measure(questions: int = 300) -> dict:
    """Area under the ROC curve of each metric on SQuADShifts new-wiki, with the paragraph as what was shown.

    Supported: an answer a person gave from the paragraph. Not supported: for `elsewhere`, an answer to another
    paragraph of the article that does not occur in this one; for `misread`, an answer to another question on this
    one, so that every word of it is there.
    """
    with home():
        from sklearn.metrics import roc_auc_score

        from data import formats
        from data.embedding import load
        from data.records import Answer, Chunk, Generation, GoldenQuestion, Hit
        from serving.engine.models import embedder_folder
        from tasks import metrics
        from tasks.metrics.answers import normalise

        source = formats.read(data("squadshifts_new_wiki.json.gz"))
        texts = {(d.id, s.heading): s.text for d in source.documents for s in d.sections}
        asked = [e for e in source.examples if e.answers and (e.document, e.section) in texts]
        draw = random.Random(0)

        def item(example, answer):
            text = texts[example.document, example.section]
            hit = Hit(Chunk("c", example.document, example.document, example.section, "h", text), 1.0, 0.5)
            answer = Answer(example.question, answer, False, (), (hit,), Generation(answer, 1, 1, "stop", 0.1, 0.1))
            golden = GoldenQuestion("q", example.question, example.answers, example.document, example.section, "h")
            return metrics.Item(example.question, answer, golden)

        items, labels = {"elsewhere": [], "misread": []}, {"elsewhere": [], "misread": []}
        for example in draw.sample(asked, questions):
            shown = f" {normalise(texts[example.document, example.section])} "
            own = {normalise(answer) for answer in example.answers}
            others = [e for e in asked if e.document == example.document and normalise(e.answers[0]) not in own]
            wrong = {
                "elsewhere": [e for e in others if f" {normalise(e.answers[0])} " not in shown],
                "misread": [e for e in others if e.section == example.section],
            }
            for kind, choices in wrong.items():
                if choices:
                    items[kind] += [item(example, example.answers[0]), item(example, draw.choice(choices).answers[0])]
                    labels[kind] += [1, 0]
        embedder, value = load(embedder_folder()), {}
        for kind, some in items.items():
            scores = metrics.score(metrics.embedded(some, embedder), ["grounding", "supported"])
            value[kind] = {name: round(float(roc_auc_score(labels[kind], one)), 3) for name, one in scores.items()}
    return {"value": value, "n": {kind: len(some) for kind, some in items.items()}, "against": "human answers"}
