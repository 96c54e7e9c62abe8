"""Exports are read back by transformers' own GGUF reader, which knows nothing of ours."""

import numpy as np
import pytest

from serving.engine import export
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    tiny.folder(place)
    return place


def logits(model):
    import torch

    with torch.inference_mode():
        return model(torch.arange(3, 43)[None]).logits[0]


def read_back(path):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def closeness(one, other) -> float:
    return float((one - other).norm() / one.norm())


def test_an_exported_model_computes_what_the_original_does(place):
    path = export.export_gguf(place / "hf", place / "out.gguf", place / "template.gguf")
    assert closeness(logits(tiny.model()), logits(read_back(path))) < 0.05


def test_without_the_permutation_of_q_and_k_it_would_not(place, monkeypatch):
    monkeypatch.setattr(export, "permute", lambda weight, heads: weight)
    monkeypatch.setattr(export, "verify", lambda path, model: None)
    path = export.export_gguf(place / "hf", place / "unpermuted.gguf", place / "template.gguf")
    assert closeness(logits(tiny.model()), logits(read_back(path))) > 0.2


def test_permuting_and_unpermuting_gives_the_same_rows():
    weight = np.arange(24 * 3).reshape(24, 3)
    assert (export.unpermute(export.permute(weight, 3), 3) == weight).all()
    assert list(export.permute(np.arange(8)[:, None], 1)[:, 0]) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_tokenizer_and_name_come_from_the_template(place):
    from gguf import GGUFReader

    path = export.export_gguf(tiny.model(), place / "named.gguf", place / "template.gguf")
    fields = GGUFReader(path).fields
    assert fields["general.name"].contents() == "tiny"
    assert fields["tokenizer.ggml.tokens"].contents()[:3] == tiny.ROLES
    assert fields["llama.attention.head_count_kv"].contents() == 2


def test_weights_that_are_not_finite_are_refused(place):
    model = tiny.model()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"up_proj.weight holds NaN"):
        export.export_gguf(model, place / "nan.gguf", place / "template.gguf")
    assert not (place / "nan.gguf").exists()


def test_a_file_with_other_weights_does_not_verify(place):
    path = export.export_gguf(tiny.model(), place / "seed0.gguf", place / "template.gguf")
    export.verify(path, tiny.model())
    with pytest.raises(ValueError, match="is off by up to"):
        export.verify(path, tiny.model(seed=1))


def test_another_vocabulary_is_refused(place):
    model = tiny.model()
    model.config.vocab_size = 300
    with pytest.raises(ValueError, match="the template has 259 tokens, the model 300"):
        export.export_gguf(model, place / "vocabulary.gguf", place / "template.gguf")


def test_biases_and_norms_of_other_families_have_names():
    names = export.gguf_names(tiny.model(kind="qwen3").config)
    assert names.get_name("model.layers.1.self_attn.q_proj.bias", (".bias",)) == "blk.1.attn_q.bias"
    assert names.get_name("model.layers.0.self_attn.q_norm.weight", (".weight",)) == "blk.0.attn_q_norm.weight"


def test_a_tensor_without_a_gguf_name_is_named(place):
    import torch

    model = tiny.model()
    model.model.layers[0].register_buffer("odd", torch.zeros(2))
    with pytest.raises(ValueError, match=r"layers\.0\.odd"):
        export.export_gguf(model, place / "odd.gguf", place / "template.gguf")


def test_a_family_without_an_export_is_refused(place):
    with pytest.raises(ValueError, match=r"no GGUF export for 'olmo2'.*transformers engine"):
        export.export_gguf(tiny.model(kind="olmo2"), place / "olmo2.gguf", place / "template.gguf")


@pytest.mark.model
def test_the_exported_base_answers_like_the_reference(models):
    """Greedy, short answers: 8-bit weights may flip a near tie, an export error would flip them all."""
    from data.records import Decoding, Model
    from serving.engine import artifact_sha256, open_engine
    from serving.engine.models import base_folder, base_model

    prompts = [
        f"<|im_start|>user\n{question} Answer in one sentence.<|im_end|>\n<|im_start|>assistant\n"
        for question in (
            "What is the capital of France?",
            "How many days has a week?",
            "What do bees make?",
            "Which planet is the largest?",
            "Who wrote Hamlet?",
        )
    ]
    decoding = Decoding(max_new_tokens=5)
    served, reference = open_engine(base_model()), str(base_folder())
    exact = open_engine(Model(artifact_sha256(reference), reference, "transformers", ""))
    try:
        pairs = zip(served.generate(prompts, decoding), exact.generate(prompts, decoding), strict=True)
        same = sum(one.text == other.text for one, other in pairs)
    finally:
        served.close()
        exact.close()
    assert same >= 4
