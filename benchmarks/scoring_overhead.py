"""What our scoring adds to the metric functions: `metrics.score` over the same functions called in a bare loop."""

import math
import statistics
import time

from benchmarks.machine import home

AIM = "at most 10%"
ROUNDS = 5


def met(value: dict) -> bool:
    return value["overhead"] <= 0.10


def measure(questions: int = 200) -> dict:
    """Every metric on `questions` answered questions, ours and bare in turn; the median ratio of ROUNDS rounds."""
    with home():
        from data.embedding import load
        from serving.engine.models import embedder_folder
        from tasks import metrics

        start = time.process_time()
        items = metrics.embedded(answered(questions), load(embedder_folder()))
        vectors = time.process_time() - start
        table = list(metrics.METRICS.values())

        def bare() -> list[list]:
            return [[metric(item) for item in items] for metric in table]

        ours, loop, ratios = [], [], []
        assert alike(list(metrics.score(items).values()), bare())  # imports and caches of the libraries, before timing
        for _ in range(ROUNDS):
            start = time.process_time()
            metrics.score(items)
            ours.append(time.process_time() - start)
            start = time.process_time()
            bare()
            loop.append(time.process_time() - start)
            ratios.append(ours[-1] / loop[-1])
        value = {
            "overhead": round(statistics.median(ratios) - 1, 4),
            "seconds": round(statistics.median(ours), 3),
            "bare_seconds": round(statistics.median(loop), 3),
            "embedder_and_vectors_seconds": round(vectors, 1),
        }
    return {"value": value, "n": {"questions": questions, "metrics": len(table), "rounds": ROUNDS}, "against": "a loop"}


def alike(one: list[list], other: list[list]) -> bool:
    """Whether two tables of scores are equal, NaN equal to NaN."""
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return all(a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b)) for a, b in pairs)


def answered(questions: int) -> list:
    """Questions of the sample with the accepted answer of another one or their own, and sections as what was shown."""
    from benchmarks.machine import SAMPLE
    from data import formats
    from data.records import Answer, Chunk, Generation, GoldenQuestion, Hit, Prompt, digest
    from serving import rag
    from tasks.metrics import Item

    examples, _ = formats.read_examples(str(SAMPLE / "examples.jsonl"))
    sections = {
        (document.id, section.heading): section.text
        for document in formats.read(str(SAMPLE / "documents")).documents
        for section in document.sections
    }
    asked = [e for e in examples if e.answers and (e.document, e.section) in sections][:questions]
    items = []
    for at, example in enumerate(asked):
        near = [asked[(at + step) % len(asked)] for step in (0, 1, 2)]
        hits = tuple(
            Hit(Chunk(digest(e.document, e.section), e.document, e.document, e.section, "h", text), 1.0, 0.5)
            for e in near
            if (text := sections[e.document, e.section])
        )
        text = near[at % 2].answers[0]
        answer: Answer = rag.finish(example.question, Generation(text, 500, 9, "stop", 0.1, 0.2), hits, Prompt())
        golden = GoldenQuestion(example.id, example.question, example.answers, example.document, example.section, "h")
        items.append(Item(example.question, answer, golden, frozenset({digest(example.document, example.section)})))
    return items
