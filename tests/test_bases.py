"""Adopting bases: random tiny models of several families, served as they are computed by Transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from data.records import Decoding, Prompt
from serving import rag
from serving.chat import chat_format
from serving.engine import bases, export, open_engine
from tasks import publish
from tasks.contexts import joined, row
from tests import tiny
from tests.test_publish import ABOUT

FAMILIES = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32},
    "mistral": {"sliding_window": None},
}
PROMPTS = [rag.build_prompt(Prompt(), f"Question {n}?", []) for n in range(3)]

RECORD = ABOUT | {"steps": 2, "planned": 2, "tokens": 99, "elapsed": 1.0, "workers": 1, "dtype": "float32"}
RECORD |= {"ended": "passes", "tokens_per_s": 99.0, "memory_mb": 9, "losses": [2.0, 1.0], "held_out": [], "best": None}


class Home:
    def __init__(self, folder):
        self.models = folder


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "settings", lambda: Home(tmp_path / "models"))
    (tmp_path / "models").mkdir()


def tokenizer(folder):
    return Tokenizer.from_file(f"{folder}/tokenizer.json")


def published(base, adapter, target):
    """As after a training on two short rows."""
    work = target.with_name(f"{target.name}.work")
    work.mkdir()
    rows = [row([tokenizer(base.folder).encode(prompt).ids], [[7, 2]]) for prompt in PROMPTS[:2]]
    joined(rows).save(work / "rows.npz")
    (work / "record.json").write_text(json.dumps(RECORD))
    return publish.publish(adapter, Path(base.folder), base.model, target, work)


def greedy(model, encoder, prompts, tokens):
    """What Transformers writes, as ids without the prompt."""
    written = []
    for prompt in prompts:
        ids = encoder.encode(prompt, add_special_tokens=False).ids
        with torch.inference_mode():
            out = model.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        written.append(out[0, len(ids) :].tolist())
    return written


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_adopted_base_with_an_adapter_answers_as_transformers_does(kind, tmp_path):
    given = tiny.folder(tmp_path / "given", kind, tiny.CHATML, **FAMILIES[kind])
    base = bases.adopt(given)
    assert (base.model.engine, base.chat, base.architecture, base.why) == ("openvino", "chatml", kind, "")
    adapter = tiny.adapter(tmp_path / "adapter", given)
    made = published(base, adapter, tmp_path / "tuned")
    assert made.base == base.sha256 == base.model.base and made.engine == "openvino"
    plain = AutoModelForCausalLM.from_pretrained(given, dtype=torch.float32)
    adapted, encoder = PeftModel.from_pretrained(plain, adapter).eval(), tokenizer(given)
    engine = open_engine(made)
    try:
        regret = bases.regret(engine, adapted, encoder, PROMPTS, 8)
        with adapted.disable_adapter():
            untuned = bases.regret(engine, adapted, encoder, PROMPTS, 8)
        assert engine.count(PROMPTS[0]) == len(encoder.encode(PROMPTS[0], add_special_tokens=False).ids)
    finally:
        engine.close()
    # Greedy after the same text is the same token, but where two are so near that 8 bits decide
    assert (regret == 0).mean() > 0.5 and regret.mean() <= bases.MEAN_REGRET and regret.max() <= bases.WORST_REGRET
    assert untuned.mean() > 4 * bases.MEAN_REGRET


def test_a_second_adoption_is_a_read_and_the_sha256_finds_it(tmp_path, monkeypatch):
    given = tiny.folder(tmp_path / "given", template=tiny.CHATML)
    base = bases.adopt(given)
    monkeypatch.setattr(bases, "_made", None)
    monkeypatch.setattr(bases, "embedded", lambda: replace(base, sha256="e" * 64))
    assert bases.adopt(given) == base == bases.find(base.sha256) == bases.find(str(given))
    assert bases.find(None).sha256 == bases.find("e" * 64).sha256 == "e" * 64


def test_a_family_without_an_export_is_served_with_its_adapter_apart(tmp_path):
    given = tiny.folder(tmp_path / "given", "olmo2", tiny.CHATML)
    base = bases.adopt(given)
    assert base.model.engine == "transformers" and "no GGUF export for 'olmo2'" in base.why
    one, two = (
        published(base, tiny.adapter(tmp_path / f"adapter{seed}", given, seed), tmp_path / f"tuned{seed}")
        for seed in (1, 2)
    )
    assert one.uri == two.uri == base.model.uri and len({one.sha256, two.sha256, base.model.sha256}) == 3
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given), tmp_path / "adapter1").eval()
    (wanted,) = greedy(adapted, tokenizer(given), PROMPTS[:1], 8)
    engine = open_engine(one)
    (found,) = engine.generate(PROMPTS[:1], Decoding(max_new_tokens=8))
    engine.close()
    assert found.text == tokenizer(given).decode([t for t in wanted if t != 2], skip_special_tokens=False)


def test_an_adapter_on_another_base_is_not_opened(tmp_path):
    first = bases.adopt(tiny.folder(tmp_path / "first", "olmo2", tiny.CHATML))
    other = bases.adopt(tiny.folder(tmp_path / "other", "olmo2", tiny.CHATML, intermediate_size=128))
    made = published(first, tiny.adapter(tmp_path / "adapter", first.folder), tmp_path / "tuned")
    moved = replace(made, uri=other.folder, sha256=bases.artifact_sha256(other.folder, made.adapter))
    with pytest.raises(ValueError, match="the adapter was made for"):
        open_engine(moved)
    with pytest.raises(ValueError, match="belongs to the base"):
        open_engine(replace(moved, base=other.sha256))


@pytest.mark.parametrize(
    "changed, why",
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "rotary positions"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
    ],
)
def test_what_the_gguf_reader_would_ignore_in_silence_goes_to_transformers(tmp_path, changed, why):
    base = bases.adopt(tiny.folder(tmp_path / "given", template=tiny.CHATML, **changed))
    assert base.model.engine == "transformers" and why in base.why


def test_an_export_that_computes_something_else_goes_to_transformers(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "permute", lambda weight, heads: weight)
    monkeypatch.setattr(export, "verify", lambda path, model: None)
    base = bases.adopt(tiny.folder(tmp_path / "given", template=tiny.CHATML))
    assert base.model.engine == "transformers" and "writes something else" in base.why


def test_generation_defaults_of_a_model_do_not_decide_what_is_served(tmp_path):
    given = tiny.folder(tmp_path / "given", "olmo2", tiny.CHATML)
    (given / "generation_config.json").write_text(json.dumps({"repetition_penalty": 9.0, "eos_token_id": [0, 2]}))
    base = bases.adopt(given)
    kept = json.loads((tmp_path / base.folder / "generation_config.json").read_text())
    assert kept == {"eos_token_id": [2, 0], "pad_token_id": 2}


def test_a_copy_is_served_so_the_given_folder_may_change(tmp_path):
    given = tiny.folder(tmp_path / "given", template=tiny.CHATML)
    base = bases.adopt(given)
    shutil.rmtree(given)
    open_engine(base.model).close()


def test_a_hub_id_that_is_not_here_says_how_to_get_it():
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE=0"):
        bases.adopt("nobody/nothing-here")


def test_a_base_without_a_template_is_asked_in_plain_turns_that_end_with_its_end_token(tmp_path):
    base = bases.adopt(tiny.folder(tmp_path / "given"))
    made = chat_format(base.chat)
    assert made.end == "<|im_end|>" and made.write("S", [("user", "Q")]) == "S\n\nQ\n\n"


def test_weights_that_the_config_does_not_ask_for_are_refused(tmp_path):
    given = tiny.folder(tmp_path / "given", template=tiny.CHATML)
    config = json.loads((given / "config.json").read_text())
    (given / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="does not hold the weights"):
        bases.adopt(given)
    assert not list((tmp_path / "models" / "adopted").glob("*/base.json"))
