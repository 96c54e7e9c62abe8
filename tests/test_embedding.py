"""Texts into vectors, with the real model (marked) and without one."""

import threading

import numpy as np
import pytest

from data import embedding

TEXTS = ["How long are deleted files kept?", "Files stay in the trash for 30 days.", "The invoice is due in May."]


@pytest.fixture(scope="module")
def embedder(models):
    from serving.engine.models import embedder_folder

    return embedding.load(embedder_folder())


def test_a_folder_without_weights_is_refused_with_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        embedding.load(tmp_path)


@pytest.mark.model
def test_vectors_are_unit_rows_in_the_order_given_and_meaning_is_near(embedder):
    rows = embedder.embed(TEXTS)
    assert rows.shape == (3, embedder.dimensions) == (3, 384)
    assert rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert rows[0] @ rows[1] > 0.4 > rows[0] @ rows[2]
    assert embedder.embed([]).shape == (0, 384)


@pytest.mark.model
def test_many_texts_at_once_give_what_each_gives_alone(embedder):
    texts = [f"{text} {'and more ' * (i % 7)}" for i, text in enumerate(TEXTS * 4)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert (together * alone).sum(1).min() > 0.999


@pytest.mark.model
def test_a_passage_has_the_same_vector_to_the_last_bit_whatever_comes_with_it(embedder):
    texts = [f"{TEXTS[i % 3]} {'and more ' * (7 * i % 11)}" for i in range(20)]
    together = embedder.embed_passages(texts)
    for some in ([3], [19, 0], list(range(5, 17))):
        assert (embedder.embed_passages([texts[i] for i in some]) == together[some]).all()
    assert (together * embedder.embed(texts)).sum(1).min() > 0.999
    assert embedder.embed_passages([]).shape == (0, 384)


@pytest.mark.model
def test_tokens_are_counted_past_the_limit_that_embedding_has(embedder):
    long = "word " * 400
    assert embedder.count(long) == 400
    assert np.allclose(embedder.embed([long]), embedder.embed([long + "other end"]), atol=1e-5)


@pytest.mark.model
def test_threads_may_embed_and_count_at_once(embedder):
    expected, failures = embedder.embed(TEXTS), []

    def work():
        for _ in range(5):
            if not np.allclose(embedder.embed(TEXTS), expected, atol=1e-5) or embedder.count(TEXTS[0]) != 7:
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
