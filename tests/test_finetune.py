"""Fine-tuning whole."""

from types import SimpleNamespace

import pytest

from data.records import Prompt
from tasks import finetune
from tasks.contexts import Mixture, contexts, rows
from tasks.finetune import Prepared
from tasks.training import Training
from tests.doors import BOUND, CHUNKS, EXAMPLES, search

ABOUT = {"examples": 32, "held": 0, "lost": 0, "contexts": 20, "preferences": 0, "flips": 0.0, "feedback": []}


@pytest.mark.stack
def test_finetuning_the_real_base_in_ray_changes_its_answers_and_the_second_call_is_a_read(stack, monkeypatch):
    import ray

    from data.records import Decoding
    from serving.engine import open_engine
    from serving.engine.models import base_model

    monkeypatch.setattr(finetune, "training_rows", lambda *given: Prepared(real_rows(), None, None, ABOUT))
    snapshot, index = SimpleNamespace(id="s", assistant="doors"), SimpleNamespace(checksum="i")
    try:
        made = finetune.finetune(snapshot, index, training=Training(minutes=5))
    finally:
        ray.shutdown()
    assert finetune.finetune(snapshot, index, training=Training(minutes=5)) == made  # Ray is gone: a read
    prompt = build_chat(EXAMPLES[0].question, CHUNKS[:3])
    answers = []
    for model in (base_model(), made):
        engine = open_engine(model)
        answers.append(engine.generate([prompt], Decoding(max_new_tokens=12))[0].text)
        engine.close()
    assert answers[0] != answers[1] and len(answers[1]) < len(answers[0])


def build_chat(question, chunks):
    from serving.rag import build_prompt

    return build_prompt(Prompt(), question, chunks)


def real_rows():
    from tokenizers import Tokenizer

    from serving.engine.models import base_folder

    encoder = Tokenizer.from_file(str(base_folder() / "tokenizer.json"))
    planned = contexts(BOUND, search, 3, Mixture(), 2, seed=1)
    return rows(
        planned,
        build_chat,
        lambda t: encoder.encode(t, add_special_tokens=False).ids,
        Prompt().abstain,
        Mixture(),
        10**6,
    )
