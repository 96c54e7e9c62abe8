"""What is published, and what is refused."""

import json
import shutil
from copy import deepcopy
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from serving.engine import bases, export
from settings import settings
from tasks import publish
from tasks.training import Training, train_loop_per_worker
from tests.doors import small_rows
from tests.test_training import config

ABOUT = {"assistant": "doors", "snapshot": "s1", "key": "k1", "examples": 32, "held": 0, "lost": 1, "contexts": 20}
ABOUT |= {
    "preferences": 0,
    "flips": 0.0,
    "feedback": [4, 9],
    "gpu": False,
    "cost": 0.01,
    "training": asdict(Training()),
}


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    work = tmp_path_factory.mktemp("trained")
    small_rows(passes=12).save(work / "rows.npz")
    train_loop_per_worker(config(work, base))
    figures = json.loads((work / "training.json").read_text())
    (work / "record.json").write_text(json.dumps(figures | ABOUT))
    settings().models.mkdir(exist_ok=True)
    return SimpleNamespace(work=work, base=bases.adopt(base).model)


def published(trained, base, target):
    return publish.publish(trained.work / "adapter", base, trained.base, target, trained.work)


def test_the_published_file_computes_what_base_and_adapter_do(trained, base, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    made = published(trained, base, tmp_path / "tuned" / "key")
    assert made.base == trained.base.base and made == publish.read(tmp_path / "tuned" / "key")
    ids = torch.arange(3, 43)[None]
    with torch.inference_mode():
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = plain(ids).logits
        wanted = PeftModel.from_pretrained(plain, trained.work / "adapter").eval()(ids).logits
        folder = tmp_path / "tuned" / "key"
        served = AutoModelForCausalLM.from_pretrained(folder, gguf_file=publish.GGUF_NAME, dtype=torch.float32)
        found = served.eval()(ids).logits
    assert (found - wanted).norm() < 0.3 * (wanted - before).norm()


def test_an_adapter_that_changes_nothing_is_not_published(trained, base, tmp_path):
    from safetensors.torch import load_file, save_file

    adapter = trained.work / "adapter" / "adapter_model.safetensors"
    kept = adapter.read_bytes()
    weights = load_file(adapter)
    save_file({name: w * 0 if "lora_B" in name else w for name, w in weights.items()}, adapter)
    try:
        with pytest.raises(ValueError, match="training changed nothing"):
            published(trained, base, tmp_path / "zero")
    finally:
        adapter.write_bytes(kept)
    assert not (tmp_path / "zero").exists()


def test_an_export_that_lost_the_adapter_is_not_published(trained, base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export,
        "export_gguf",
        lambda model, target, template: shutil.copy(trained.base.uri, target) and target,
    )
    with pytest.raises(ValueError, match="the adapter was not merged"):
        published(trained, base, tmp_path / "lost")
    assert not (tmp_path / "lost").exists()


def test_a_record_follows_its_folder(trained, base, tmp_path):
    made = published(trained, base, tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    assert publish.read(tmp_path / "two") == replace(
        made, uri=made.uri.replace("/one/", "/two/"), adapter_uri=made.adapter_uri.replace("/one/", "/two/")
    )


def test_a_file_that_does_not_answer_as_base_and_adapter_do_is_not_published(trained, base, tmp_path, monkeypatch):
    write = export.export_gguf

    def mapped_wrongly(model, target, template):
        wrong = deepcopy(model)
        for layer in wrong.model.layers:
            layer.mlp.up_proj.weight.data.copy_(layer.mlp.gate_proj.weight)
        return write(wrong, target, template)

    monkeypatch.setattr(export, "export_gguf", mapped_wrongly)
    with pytest.raises(ValueError, match="other tokens than base and adapter"):
        published(trained, base, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_model_card_names_what_went_in_and_what_came_out_and_the_loss_is_a_picture(trained, base, tmp_path):
    made = published(trained, base, tmp_path / "one")
    card = (tmp_path / "one" / "README.md").read_text()
    assert all(
        text in card for text in (made.sha256, made.adapter, made.base, "snapshot `s1`", "2 |", "32 (1 left out")
    )
    assert (tmp_path / "one" / "loss.png").read_bytes().startswith(b"\x89PNG")
    proof = json.loads((tmp_path / "one" / "training.json").read_text())["proof"]
    assert proof["agreement"] > 0.5 and proof["moved"] > 0.01 and proof["prompts"] > 0
