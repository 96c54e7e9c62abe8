"""Metrics: hand-made answers with known scores."""

import asyncio
import math

import numpy as np
import pytest

from data.records import Answer, Chunk, Citation, Generation, GoldenQuestion, Hit
from tasks.metrics import METRICS, Item, aggregate, embedded, score
from tasks.metrics.answers import facts, finish
from tasks.metrics.retrieval import RANKED


def item(text="Wilhelm Röntgen", accepted=("Wilhelm Röntgen",), hits=("c1", "c2"), cited=("c1",), gold=("c1",), **more):
    bodies = {"c1": "The prize went to Wilhelm Röntgen in 1901.", "c2": "Stockholm is a city."}
    shown = tuple(Hit(Chunk(c, "doc", "Prizes", "Physics", "h", bodies.get(c, "")), 1.0, 0.5) for c in hits)
    citations = tuple(Citation(i, c, "doc", "Prizes", "Physics") for i, c in enumerate(cited, 1))
    generation = Generation(text, 10, 3, "stop", 0.1, 0.2)
    answer = Answer("who", text, more.get("abstained", False), citations, shown, generation)
    question = more.get("question", "who")
    golden = GoldenQuestion("g", question, tuple(accepted), "doc", "Physics", "h")
    return Item(question, answer, golden, frozenset(gold))


class Letters:
    """An embedder that counts letters."""

    def __init__(self):
        self.batches = 0

    def embed_passages(self, texts):
        self.batches += 1
        rows = np.array([[text.lower().count(chr(97 + at)) + 0.01 for at in range(26)] for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def one(name, **about):
    return score(embedded([item(**about)], Letters()), [name])[name][0]


def test_exact_match_ignores_case_articles_and_punctuation():
    assert one("exact_match", text="the wilhelm röntgen.") == 1.0
    assert one("exact_match", text="Röntgen") == 0.0


def test_token_f1_takes_the_best_accepted_answer():
    assert one("token_f1", text="Wilhelm Conrad Röntgen", accepted=("Curie", "Wilhelm Röntgen")) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "name",
    [
        "exact_match",
        "token_f1",
        "rouge_l",
        "bleu",
        "chrf",
        "similarity",
        "semantic_similarity",
        "must_include",
        "correct",
    ],
)
def test_an_answer_metric_is_one_for_the_answer_and_zero_for_an_abstention(name):
    assert one(name) == pytest.approx(1.0)
    assert one(name, abstained=True) == 0.0
    assert one(name, text="") == 0.0


def test_text_metrics_agree_with_hand_made_numbers():
    assert one("rouge_l", text="x Wilhelm y", accepted=("Wilhelm z",)) == pytest.approx(0.4)
    assert one("similarity", text="kitten", accepted=("sitting",)) == pytest.approx(1 - 3 / 7)


def test_bleu_of_two_right_words_is_one_and_half_a_reference_is_not():
    assert one("bleu", text="30 days", accepted=("30 days",)) == pytest.approx(1.0)
    assert one("bleu", text="A cat.", accepted=("A cat. A dog.",)) < 0.5


def test_semantic_similarity_is_what_ragas_computes():
    from ragas.embeddings.base import BaseRagasEmbedding
    from ragas.metrics.collections import SemanticSimilarity

    class OneByOne(BaseRagasEmbedding):
        def embed_text(self, text, **_):
            return Letters().embed_passages([text])[0].tolist()

        async def aembed_text(self, text, **_):
            return self.embed_text(text)

    theirs = finish(SemanticSimilarity(OneByOne()).ascore(reference="Wilhelm Röntgen", response="Marie Curie")).value
    assert one("semantic_similarity", text="Marie Curie") == pytest.approx(theirs)


def test_vectors_are_made_in_one_batch_and_without_them_what_needs_them_is_unmeasured():
    embedder, items = Letters(), [item(), item(text="Marie Curie")]
    embedded(items, embedder)
    assert embedder.batches == 1
    bare = score(items, ["semantic_similarity", "supported"])
    assert all(math.isnan(value) for values in bare.values() for value in values)


def test_facts_are_figures_names_and_codes():
    assert facts("Ask Ada for order ZX-44 within 30 days") == {"ada", "zx44", "30"}
    assert facts("because it is cheap") == set()


def test_a_fact_must_stand_in_the_answer_as_a_whole_word():
    assert one("must_include", text="in 2010", accepted=("10 codes",)) == 0.0
    assert one("must_include", text="you get 10", accepted=("10 codes",)) == 1.0
    assert one("must_include", text="10", accepted=("10 codes in 2 files",)) == 0.5
    assert one("must_include", text="for thirty days", accepted=("30 days", "thirty days")) == 1.0
    assert one("must_include", accepted=("because it is cheap",)) is None


def test_a_format_counts_only_where_the_question_asks_for_it():
    asked = "Which plans are there, as JSON?"
    assert one("json_valid") is None
    assert one("json_valid", question=asked, text='["Solo", "Team"]') == 1.0
    assert one("json_valid", question=asked, text="Solo and Team") == 0.0
    assert one("json_valid", question=asked, text="[]", abstained=True) == 0.0
    assert one("date_valid", question="When, as YYYY-MM-DD?", text="2026-11-20") == 1.0
    assert one("date_valid", question="When, as YYYY-MM-DD?", text="on 2026-11-20") == 0.0


def test_an_answer_may_be_twice_as_long_as_accepted_and_twenty_words_at_least():
    assert one("length", text="word " * 20) == 1.0
    assert one("length", text="word " * 40) == 0.5
    assert one("length", text="word " * 40, accepted=("word " * 20,)) == 1.0
    assert one("length", text="") == 0.0


def test_an_answer_is_in_the_language_of_its_question():
    asked = "For how long does a link to a shared folder stay valid on the Team plan?"
    german = "Der Link zu einem geteilten Ordner bleibt dreißig Tage lang gültig."
    assert one("language", question=asked, text=german) == 0.0
    assert one("language", question=asked, text="A link to a shared folder stays valid for thirty days.") == 1.0
    assert one("language", question=asked, text=german, abstained=True) == one("language", text="30 Tage") == 1.0


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


def test_an_answer_from_the_passages_is_better_supported_than_an_invented_one():
    told = one("supported", text="The prize went to Wilhelm Röntgen in 1901.")
    assert told > 0.9
    assert one("supported", text="A quick fox jumped over my lazy dog.") < 0.6 < told
    assert one("supported", text="x", abstained=True) == 1.0
    assert one("supported", text="x", hits=()) == 0.0


def test_a_quotation_must_stand_in_what_was_shown():
    assert one("quoted", text='It says "went to Wilhelm Röntgen" there.') == 1.0
    assert one("quoted", text='It says "went to Marie Curie" there.') == 0.0
    assert one("quoted", text="It's so, and it doesn't say who's right.") == 1.0


def test_citations_are_counted_by_gold_chunk_and_by_sentence():
    assert one("citation_precision", cited=("c1", "c2")) == 0.5
    assert one("citation_precision", cited=()) == 0.0
    held = "The prize went to Wilhelm Röntgen."
    assert one("citation_recall", text=f"{held} He lived in Paris.") == 0.5
    assert one("citation_recall", text=held, cited=("c2",)) == 0.0
    assert one("citation_recall", text=held, cited=(), abstained=True) == 1.0


def test_an_answer_of_a_thousand_tokens_has_half_the_economy_of_one_of_none():
    assert one("economy") == pytest.approx(1000 / 1013)


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
