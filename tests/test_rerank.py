"""What is shown of what was found: a tiny cross-encoder, near-duplicates, sources, neighbours in the section."""

from dataclasses import replace

import pytest

from data.records import Chunk, Filter, Hit, Retrieval
from serving import rerank
from serving.rerank import choose, joined

WORDS = "the office in lyon paris opens at nine ten parking is free when does it open ? question"


def hit(name: str, text: str, document: str = "a.md", score: float = 0.5, **about) -> Hit:
    about = {"title": "Offices", "section": "Lyon", "section_hash": "h"} | about
    return Hit(Chunk(name, document, text=text, **about), score, 0.8)


def ids(hits) -> list[str]:
    return [hit.chunk.id for hit in hits]


class Sections:
    """An index that knows the chunks of sections."""

    def __init__(self, *chunks: Chunk):
        self.chunks, self.asked = chunks, 0

    def section(self, chunk):
        self.asked += 1
        same = [c for c in self.chunks if (c.document, c.section) == (chunk.document, chunk.section)]
        return sorted(same, key=lambda chunk: chunk.part)


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    """A BERT with random weights and one logit, and a tokenizer of a few words, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: number for number, token in enumerate(special + WORDS.split())}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cross-encoder")
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- the reranker -----------------------------------------------------------------------------

TEXTS = ["lyon opens at nine", "parking is free", "paris opens at ten ?", "the office is free", "lyon lyon when"]


def test_the_reranker_orders_what_was_found_by_its_scores(cross_encoder):
    question, hits = "when does the office in lyon open ?", [hit(str(n), text) for n, text in enumerate(TEXTS)]
    scores = rerank.load(str(cross_encoder)).scores(question, [rerank._whole(hit.chunk) for hit in hits])
    best = sorted(range(5), key=lambda at: -scores[at])
    assert best != list(range(5)), "or this test shows nothing"
    shown = choose(None, question, hits, Retrieval(top_k=5, reranker=str(cross_encoder)))
    assert ids(shown) == [str(at) for at in best]


def test_only_the_best_are_ordered_anew_and_the_others_stay_behind_them(cross_encoder):
    question, hits = "when does the office in lyon open ?", [hit(str(n), text) for n, text in enumerate(TEXTS)]
    shown = choose(None, question, hits, Retrieval(top_k=5, reranker=str(cross_encoder), rerank=3))
    assert sorted(ids(shown)[:3]) == ["0", "1", "2"] and ids(shown)[3:] == ["3", "4"]


def test_scores_come_in_the_order_of_the_texts_whatever_the_batches(cross_encoder):
    reranker, many = rerank.load(str(cross_encoder)), (TEXTS * 4)[: rerank.BATCH + 1]
    alone = [reranker.scores("lyon ?", [text])[0] for text in many]
    assert reranker.scores("lyon ?", many) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == 5 and reranker.scores("lyon ?", []) == []


def test_a_question_and_passages_longer_than_the_model_reads_are_cut(cross_encoder):
    assert len(rerank.load(str(cross_encoder)).scores("when " * 2000, ["lyon " * 2000, "free"])) == 2


def test_a_reranker_is_loaded_once_in_a_process(cross_encoder):
    assert rerank.load(str(cross_encoder)) is rerank.load(str(cross_encoder))


def test_a_missing_reranker_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"no reranker at '.*nowhere'.*give a folder with config\.json"):
        rerank.load(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no reranker at"):
        rerank.load(str(tmp_path / "empty"))


def test_weights_that_are_no_safetensors_are_not_loaded(cross_encoder, tmp_path):
    import torch

    for file in cross_encoder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no reranker at"):
        rerank.load(str(tmp_path))


def test_a_model_that_was_not_trained_to_give_one_score_is_refused(cross_encoder, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    tokenizer = AutoTokenizer.from_pretrained(cross_encoder)
    for name, labels, reason in (("two", 2, "gives 2 scores"), ("headless", 1, "no weights for classifier")):
        config = BertConfig(
            vocab_size=30, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        config.num_labels = labels
        BertModel(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=reason):
            rerank.load(str(tmp_path / name))


# --- near-duplicates --------------------------------------------------------------------------

LONG = "The office in Lyon opens at 9 a.m. on weekdays and closes at 6 p.m., and parking behind it is free of charge"


def shown(question, *hits, **settings):
    return ids(choose(None, question, hits, Retrieval(**settings)))


def test_a_near_duplicate_of_a_better_hit_gives_its_place_to_the_next():
    hits = (hit("a", LONG), hit("b", LONG.lower() + ".", "copy.md"), hit("c", "Parking is free."))
    assert shown("When does it open?", *hits, top_k=2) == ["a", "c"]
    assert shown("When does it open?", *hits, top_k=2, distinct=1.0) == ["a", "b"]


def test_equal_texts_count_as_one_even_when_only_equal_ones_do():
    assert shown("When does it open?", hit("a", LONG), hit("b", LONG, "copy.md"), distinct=1.0) == ["a"]


@pytest.mark.parametrize("other", [LONG.replace("9", "8"), LONG.replace("9", "6", 1).replace("6 p", "9 p")])
def test_texts_with_other_figures_are_no_duplicates_however_alike(other):
    assert shown("When does it open?", hit("a", LONG), hit("b", other)) == ["a", "b"]


def test_texts_that_differ_by_a_negation_are_no_duplicates():
    assert shown("When does it open?", hit("a", LONG), hit("b", LONG.replace("is free", "is not free"))) == ["a", "b"]


def test_a_word_of_the_question_tells_texts_of_one_pattern_apart():
    hits = (hit("a", LONG), hit("b", LONG.replace("Lyon", "Bonn"), section="Bonn"))
    assert shown("When does the office in Bonn open?", *hits) == ["a", "b"]
    assert shown("When does the office open?", *hits) == ["a"]


# --- sources ----------------------------------------------------------------------------------


def test_a_source_with_many_chunks_does_not_fill_the_places_of_the_others():
    poisoned = [hit(f"p{n}", f"Lyon opens never, says line {n} of {n * 77}", "poisoned.md") for n in range(20)]
    honest = [hit("b", "Lyon opens at nine", "b.md"), hit("c", "Parking is free", "c.md")]
    assert shown("When does Lyon open?", *poisoned, *honest, per_source=1) == ["p0", "b", "c"]
    assert shown("When does Lyon open?", *poisoned, *honest, per_source=2) == ["p0", "p1", "b"]
    assert shown("When does Lyon open?", *poisoned, *honest) == ["p0", "p1", "p2"]


def test_where_too_few_sources_were_found_fewer_chunks_are_shown():
    assert shown("q", *(hit(str(n), f"text {n}") for n in range(5)), per_source=1) == ["0"]


# --- neighbours in the section ----------------------------------------------------------------

PARTS = [hit(f"p{part}", f"Sentence {part}.", part=part).chunk for part in range(6)]


def widened(*parts, chunks=PARTS, characters=1000, tombstones=frozenset(), allowed=Filter()):
    hits = [Hit(chunks[part], 0.5, 0.8) for part in parts]
    retrieval = Retrieval(section_characters=characters, distinct=1.0)
    return choose(Sections(*chunks), "q", hits, retrieval, tombstones, allowed)


def texts(hits) -> list[str]:
    return [hit.chunk.text.replace("Sentence ", "").replace(".", "").replace("\n", "") for hit in hits]


def test_a_shown_chunk_is_widened_before_and_after_and_stays_what_is_cited():
    (found,) = widened(2)
    assert found.chunk == replace(PARTS[2], text="\n".join(f"Sentence {n}." for n in range(6)))
    assert texts(widened(2, characters=11 * 3 + 2)) == ["123"], "in turns, the one before first"


def test_all_passages_together_stay_within_the_budget_and_none_is_cut():
    for characters in range(80):
        found = widened(1, 4, characters=characters)
        total = sum(len(hit.chunk.text) for hit in found)
        assert ids(found) == ["p1", "p4"] and total <= max(characters, 22)
        assert all(part in hit.chunk.text for hit, part in zip(found, ("Sentence 1.", "Sentence 4."), strict=True))


def test_chunks_of_one_section_never_show_the_same_text_twice():
    found = texts(widened(1, 3, 4))
    assert sorted("".join(found)) == list("012345") and found[0].startswith("01") and found[1].endswith("3")


def test_without_a_budget_no_section_is_read():
    index = Sections(*PARTS)
    choose(index, "q", [Hit(PARTS[2], 0.5, 0.8)], Retrieval())
    assert index.asked == 0


def test_a_deleted_neighbour_is_never_shown_nor_jumped_over():
    assert texts(widened(2, tombstones=frozenset({"p3"}))) == ["012"]


@pytest.mark.parametrize(
    "secret",
    [{"tenant": "rival"}, {"access": "board"}, {"language": "de"}, {"modified": "2020-01-01"}, {"document": "b.md"}],
)
def test_a_neighbour_that_may_not_be_seen_is_never_shown(secret):
    ours = {"modified": "2026-01-01", "language": "en"}
    chunks = [replace(part, **(ours | (secret if part.part == 3 else {}))) for part in PARTS]
    allowed = Filter("us", ("staff",), ("a.md",), ("en",), "2025")
    assert texts(widened(2, chunks=chunks, allowed=allowed)) == ["012"]


def test_a_section_of_the_same_name_is_another_section():
    twin = replace(PARTS[3], id="twin", section_hash="other", text="Sentence 9.")
    assert "9" not in texts(widened(2, chunks=[*PARTS, twin]))[0]


def test_sentences_that_neighbours_share_stand_there_once():
    chunks = [replace(PARTS[0], text="One is long enough. Two is as well."),
              replace(PARTS[1], text="Two is as well. Three ends it.")]  # fmt: skip
    (found,) = widened(0, chunks=chunks)
    assert found.chunk.text == "One is long enough. Two is as well. Three ends it."


def test_a_word_that_happens_to_begin_the_next_text_is_not_taken_for_an_overlap():
    assert joined("Write to the API", "API keys are secret.") == "Write to the API\nAPI keys are secret."
