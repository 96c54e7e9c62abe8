"""Metrics: hand-made answers with known scores."""

import asyncio
import math
import time

import pytest

from data.records import Answer, Chunk, Citation, Generation, GoldenQuestion, Hit
from tasks.metrics import METRICS, Item, aggregate, score
from tasks.metrics.answers import finish
from tasks.metrics.retrieval import RANKED


def item(text="Wilhelm Röntgen", accepted=("Wilhelm Röntgen",), hits=("c1", "c2"), cited=("c1",), gold=("c1",), **more):
    bodies = {"c1": "The prize went to Wilhelm Röntgen in 1901.", "c2": "Stockholm is a city."}
    shown = tuple(Hit(Chunk(c, "doc", "Prizes", "Physics", "h", bodies.get(c, "")), 1.0, 0.5) for c in hits)
    citations = tuple(Citation(i, c, "doc", "Prizes", "Physics") for i, c in enumerate(cited, 1))
    generation = Generation(text, 10, 3, "stop", 0.1, 0.2)
    answer = Answer("who", text, more.get("abstained", False), citations, shown, generation)
    golden = GoldenQuestion("g", "who", tuple(accepted), "doc", "Physics", "h")
    return Item("who", answer, golden, frozenset(gold))


def one(name, **about):
    return score([item(**about)], [name])[name][0]


def test_exact_match_ignores_case_articles_and_punctuation():
    assert one("exact_match", text="the wilhelm röntgen.") == 1.0
    assert one("exact_match", text="Röntgen") == 0.0


def test_token_f1_takes_the_best_accepted_answer():
    assert one("token_f1", text="Wilhelm Conrad Röntgen", accepted=("Curie", "Wilhelm Röntgen")) == pytest.approx(0.8)


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "rouge_l", "chrf", "similarity", "correct"])
def test_an_answer_metric_is_one_for_the_answer_and_zero_for_an_abstention(name):
    assert one(name) == pytest.approx(1.0)
    assert one(name, abstained=True) == 0.0
    assert one(name, text="") == 0.0


def test_text_metrics_agree_with_hand_made_numbers():
    assert one("rouge_l", text="x Wilhelm y", accepted=("Wilhelm z",)) == pytest.approx(0.4)
    assert one("similarity", text="kitten", accepted=("sitting",)) == pytest.approx(1 - 3 / 7)


def test_retrieval_is_scored_by_chunk_id():
    assert one("hit_rate", gold=("c2",)) == 1.0
    assert one("reciprocal_rank", gold=("c2",)) == 0.5
    assert one("context_recall", gold=("c2", "c9")) == 0.5
    assert one("context_precision", gold=("c2",)) == 0.5
    assert one("hit_rate", gold=("c9",)) == one("reciprocal_rank", gold=("c9",)) == 0.0
    assert one("context_precision", hits=(), gold=("c1",)) == 0.0


def ranked(name, **about):
    return RANKED[name](item(**about))


def test_a_ranking_is_measured_by_the_places_of_its_gold_chunks():
    hits, gold = ("c1", "c2", "c3", "c4", "c5", "c6"), ("c2", "c6", "c9")
    assert [ranked(f"hit@{k}", hits=hits, gold=gold) for k in (1, 3, 5, 10)] == [0.0, 1.0, 1.0, 1.0]
    recalls = [ranked(f"chunk recall@{k}", hits=hits, gold=gold) for k in (1, 3, 5, 10)]
    assert recalls == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3])
    assert ranked("mrr", hits=hits, gold=gold) == 0.5
    best = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    assert ranked("ndcg@10", hits=hits, gold=gold) == pytest.approx((1 / math.log2(3) + 1 / math.log2(7)) / best)


def test_the_best_order_has_a_discounted_gain_of_one_also_with_more_gold_than_places():
    many = tuple(f"c{n}" for n in range(30))
    assert ranked("ndcg@10", hits=("c1", "c2"), gold=("c1", "c2")) == 1.0
    assert ranked("ndcg@10", hits=many[:10], gold=many) == pytest.approx(1.0)


def test_the_right_document_counts_without_the_right_chunk():
    assert ranked("document recall@1", hits=("c1",), gold=("c2",)) == 1.0
    assert ranked("document recall@1", hits=(), gold=("c2",)) == 0.0


@pytest.mark.parametrize("name", RANKED)
def test_a_metric_of_a_ranking_is_between_zero_and_one_and_needs_a_gold_chunk(name):
    for hits in ((), ("c1",), ("c2", "c1"), tuple(f"c{n}" for n in range(20))):
        assert 0 <= ranked(name, hits=hits, gold=("c1", "c3", "c19")) <= 1
        assert ranked(name, hits=hits, gold=()) is None


@pytest.mark.parametrize(
    "name", ["hit_rate", "reciprocal_rank", "context_recall", "context_precision", "citation_correct"]
)
def test_without_gold_chunks_retrieval_does_not_apply(name):
    assert one(name, gold=()) is None


def test_grounding_is_the_share_of_answer_tokens_in_what_was_shown():
    assert one("grounding") == 1.0
    assert one("grounding", text="Wilhelm Röntgen 1905 Berlin") == 0.5
    assert one("grounding", text="Wilhelm", hits=()) == 0.0
    assert one("grounding", text="whatever", abstained=True) == 1.0


def test_citations_must_point_at_what_was_shown_and_at_the_right_chunk():
    assert one("citation_resolves", cited=("c1", "c7")) == 0.5
    assert one("citation_correct", cited=("c2",)) == 0.0
    assert one("citation_correct", cited=("c2", "c1")) == 1.0
    assert one("citation_correct", cited=()) == 0.0


def test_abstaining_is_right_only_when_the_documents_do_not_answer():
    assert one("abstention", accepted=(), abstained=True) == one("correct", accepted=(), abstained=True) == 1.0
    assert one("abstention", accepted=()) == one("correct", accepted=()) == 0.0
    assert one("answering", abstained=True) == 0.0
    assert one("abstention") is None
    assert one("answering", accepted=()) is None


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_between_zero_and_one_and_whether_it_applies_depends_on_the_question_only(name):
    for about in ({}, {"accepted": ()}, {"gold": ()}):
        values = [
            one(name, text=text, abstained=abstained, cited=cited, hits=hits, **about)
            for text in ("", "Wilhelm", "!?", "Stockholm " * 50)
            for abstained in (False, True)
            for cited in ((), ("c1",))
            for hits in ((), ("c1",))
        ]
        assert len({value is None for value in values}) == 1
        assert all(value is None or 0 <= value <= 1 for value in values)


def test_a_question_without_an_answer_is_missing_everywhere():
    lost = Item("who", None, item().golden, frozenset({"c1"}))
    assert all(math.isnan(values[0]) for values in score([lost]).values())


def test_the_aggregate_leaves_out_what_does_not_apply_or_is_missing():
    assert aggregate({"a": [1.0, 0.0, None, math.nan], "b": [None]}) == {"a": 0.5}


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="no metric 'f2'"):
        score([item()], ["f2"])


def test_metrics_can_be_scored_inside_a_running_event_loop():
    async def inside():
        return one("chrf"), one("context_recall")

    assert asyncio.run(inside()) == (pytest.approx(1.0), 1.0)


def test_a_metric_that_waits_is_refused():
    async def waits():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waited"):
        finish(waits())


def test_seven_hundred_questions_are_scored_in_seconds():
    items = [item(text=f"Wilhelm {i}", accepted=("Wilhelm Röntgen", "Röntgen", "W. C. Röntgen")) for i in range(700)]
    score(items[:1])
    start = time.perf_counter()
    score(items)
    assert time.perf_counter() - start < 5
