"""Malicious and broken artifacts: a clean one with one thing changed, refused with what to do (FAULTS T9, F8)."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data.records import Model, file_sha256
from serving.engine import artifact_sha256, export, open_engine, safety, weights
from serving.engine.safety import check_adapter, check_model, files
from tests import tiny

BASE = "b" * 64


class Payload:
    """Creates the marker file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A model folder, an adapter for it and its export, which pass every check."""
    place = tmp_path_factory.mktemp("clean")
    tiny.folder(place, template=tiny.CHATML)
    tiny.adapter(place / "adapter", place / "hf")
    export.export_gguf(place / "hf", place / "model.gguf", place / "template.gguf")
    return place


@pytest.fixture
def model(clean, tmp_path):
    return Path(shutil.copytree(clean / "hf", tmp_path / "model"))


@pytest.fixture
def adapter(clean, tmp_path):
    return Path(shutil.copytree(clean / "adapter", tmp_path / "adapter"))


@pytest.fixture
def marker(tmp_path):
    """What a payload would create; it must never be there."""
    place = tmp_path / "marker"
    yield place
    assert not place.exists()


def change(file, **values):
    """Set keys of a JSON file; None removes one."""
    read = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in read.items() if value is not None}))


def header(file, edit):
    """Rewrite the header of a safetensors file through `edit(dict)`."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    read = json.loads(data[8 : 8 + length])
    edit(read)
    written = json.dumps(read).encode()
    file.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])


def tensor(file, name, value):
    held = load_file(file)
    held[name] = value(held[name].copy())
    save_file(held, file)


def archive(marker):
    """A zip as torch.save writes it, with a pickle inside."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as opened:
        opened.writestr("archive/data.pkl", pickle.dumps(Payload(marker)))
        opened.writestr("../../marker", b"slipped")
    return written.getvalue()


def script(marker):
    return f"open({str(marker)!r}, 'w')"


def escape(marker):
    return "{{ ''.__class__.__mro__[1].__subclasses__() }}" + f"{{# {marker} #}}"


def overlap(read):
    first, second = sorted((name for name in read if name != "__metadata__"), key=lambda n: read[n]["data_offsets"])[:2]
    wide = read[second]["data_offsets"][1] - read[second]["data_offsets"][0]
    read[second]["data_offsets"] = [0, wide]
    assert first


def bomb(read):
    read |= {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(weights.MOST_TENSORS)}


def linked(model, target):
    place = model / "config.json"
    target.write_text(place.read_text())
    place.unlink()
    return place


def symlink(m, k):
    linked(m, m.parent / "elsewhere.json").symlink_to(m.parent / "elsewhere.json")


def hardlink(m, k):
    os.link(m.parent / "elsewhere.json", linked(m, m.parent / "elsewhere.json"))


def split(m, place):
    (m / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": place}}))


def template(text):
    return lambda m, k: (m / "chat_template.jinja").write_text(text(k) if callable(text) else text)


def config(**values):
    return lambda m, k: change(m / "config.json", **values)


def tokenizer(**values):
    return lambda m, k: change(m / "tokenizer_config.json", **values)


def weight(edit):
    return lambda m, k: edit(m / "model.safetensors", k)


NEST = "{% for a in range(99999) %}" * 3 + "x" + "{% endfor %}" * 3
MODELS = {
    "a pickle": (lambda m, k: (m / "extra.pkl").write_bytes(pickle.dumps(Payload(k))), "can run code"),
    "torch weights": (lambda m, k: (m / "pytorch_model.bin").write_bytes(archive(k)), "can run code"),
    "a pickle in a folder": (lambda m, k: [(m / "x").mkdir(), (m / "x/a.pt").write_bytes(archive(k))], "can run code"),
    "a pickle named safetensors": (weight(lambda f, k: f.write_bytes(pickle.dumps(Payload(k)))), "header has"),
    "a zip named safetensors": (weight(lambda f, k: f.write_bytes(archive(k))), "header has"),
    "a python file": (lambda m, k: (m / "modeling_x.py").write_text(script(k)), "can run code"),
    "a compiled module": (lambda m, k: (m / "kernel.so").write_bytes(b"\x7fELF"), "can run code"),
    "an archive of a model": (lambda m, k: (m / "model.zip").write_bytes(archive(k)), "can run code"),
    "auto_map": (config(auto_map={"AutoModelForCausalLM": "modeling_x.Model"}), "auto_map"),
    "trust_remote_code": (config(trust_remote_code=True), "trust_remote_code"),
    "an unknown config key": (config(load_extra="yes"), "'load_extra'"),
    "a kernel from a hub": (config(attn_implementation="evil/kernel"), "'attn_implementation'"),
    "quantization by a library": (config(quantization_config={"quant_method": "x"}), "'quantization_config'"),
    "a config value that is a path": (config(problem_type="/etc/passwd"), "points elsewhere"),
    "a config value that is a URL": (config(rope_parameters={"rope_type": "http://x/y"}), "points elsewhere"),
    "an architecture of its own": (config(model_type="evil"), "model_type 'evil'"),
    "another architecture": (config(architectures=["Evil"]), "architectures"),
    "absurd sizes": (config(hidden_size=10**9), "hidden_size 1000000000"),
    "a doubled key": (lambda m, k: (m / "config.json").write_text('{"a": 1, "a": 2}'), "stands there twice"),
    "a config nested too deep": (lambda m, k: (m / "config.json").write_text('{"a":' * 99999), "damaged or no JSON"),
    "a tokenizer with code": (tokenizer(auto_map={"AutoTokenizer": ["x.T", None]}), "auto_map"),
    "a tokenizer file elsewhere": (tokenizer(tokenizer_file="/tmp/t.json"), "points elsewhere|no plain tokenizer"),
    "an unknown tokenizer key": (tokenizer(loader="x"), "no plain tokenizer setting"),
    "a tokenizer class by path": (tokenizer(tokenizer_class="a.b.Evil"), "tokenizer_class"),
    "no tokenizer": (lambda m, k: (m / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "a link outside": (symlink, "outside of the folder"),
    "a hard link outside": (hardlink, "hard link"),
    "a pipe": (lambda m, k: os.mkfifo(m / "model-2.safetensors"), "no plain file"),
    "an index that climbs": (lambda m, k: split(m, "../../secret.safetensors"), "leads to"),
    "an index with a root": (lambda m, k: split(m, "/etc/x.safetensors"), "leads to"),
    "an index of missing tensors": (lambda m, k: split(m, "model-9.safetensors"), "in vain"),
    "truncated weights": (weight(lambda f, k: f.write_bytes(f.read_bytes()[:-100])), "should have"),
    "weights with a tail": (weight(lambda f, k: f.write_bytes(f.read_bytes() + archive(k))), "should have"),
    "no weights": (weight(lambda f, k: f.unlink()), "holds no weights"),
    "a header longer than the file": (
        weight(lambda f, k: f.write_bytes(struct.pack("<Q", 1 << 62) + f.read_bytes()[8:])),
        "header has",
    ),
    "overlapping tensors": (weight(lambda f, k: header(f, overlap)), "gap or an overlap"),
    "too many tensors": (weight(lambda f, k: header(f, bomb)), "lists 1000"),
    "a negative shape": (
        weight(lambda f, k: header(f, lambda h: h["model.norm.weight"].update(shape=[-64]))),
        "describes tensor",
    ),
    "a shape larger than its bytes": (
        weight(lambda f, k: header(f, lambda h: h["model.norm.weight"].update(shape=[1 << 40]))),
        "bytes to 'model.norm.weight'",
    ),
    "NaN": (weight(lambda f, k: tensor(f, "model.norm.weight", lambda t: t * np.nan)), "NaN or infinite"),
    "one infinity": (
        weight(lambda f, k: tensor(f, "model.norm.weight", lambda t: np.append(t[1:], np.float32(np.inf)))),
        "NaN or infinite",
    ),
    "a template that escapes": (template(escape), "reaches for"),
    "a template that escapes by parts": (
        template("{{ ''|attr('__cla' ~ 'ss__') }}{{ ().mro() }}"),
        "the chat template fails",
    ),
    "a template that reads files": (template("{% include '/etc/passwd' %}"), "reads other files"),
    "a template that never ends": (template(NEST), "needs more than"),
    "a template that fills memory": (template("{{ 'x' * 9999999999 }}"), "needs more than"),
    "a template that is none": (template("{% for %}"), "can not be read"),
}


def test_the_clean_model_adapter_and_export_pass(clean, model, adapter):
    assert set(files(model)) >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert check_model(model)["model_type"] == "llama"
    check_adapter(adapter, model, BASE)
    weights.check_gguf(clean / "model.gguf")


@pytest.mark.parametrize("case", MODELS)
def test_a_model_is_refused_for(case, model, marker):
    harm, why = MODELS[case]
    harm(model, marker)
    with pytest.raises(ValueError, match=why) as refused:
        files(model)
        check_model(model)
    assert ";" in str(refused.value), "it says what to do"


def test_a_model_given_as_an_archive_is_not_unpacked(tmp_path, marker):
    (tmp_path / "model.zip").write_bytes(archive(marker))
    with pytest.raises(ValueError, match="unpack an archive yourself"):
        files(tmp_path / "model.zip")
    assert not (tmp_path.parent / "marker").exists()


def zero(held):
    return {name: value * 0 if "lora_B" in name else value for name, value in held.items()}


def wider(held):
    return {
        name: np.ones((value.shape[0], 96), np.float32) if "lora_A" in name else value for name, value in held.items()
    }


def stranger(held):
    return held | {"base_model.model.lm_head.weight": np.ones((2, 2), np.float32)}


def lora(**values):
    return lambda a, k: change(a / "adapter_config.json", **values)


def pairs(edit):
    def harm(a, k):
        file = a / "adapter_model.safetensors"
        save_file(edit(load_file(file)), file)

    return harm


ADAPTERS = {
    "auto_mapping": (lora(auto_mapping={"parent_library": "evil"}), "sets auto_mapping"),
    "modules saved whole": (lora(modules_to_save=["lm_head"]), "sets modules_to_save"),
    "a base at a URL": (lora(base_model_name_or_path="https://x/y"), "points elsewhere"),
    "the base of another": (lora(base_model_name_or_path="sha256:" + "c" * 64), "belongs to the base"),
    "an unknown key": (lora(loader="x"), "'loader'"),
    "another kind": (lora(peft_type="PROMPT_TUNING"), "is no LoRA"),
    "another library": (lora(megatron_config={"a": 1}), "sets megatron_config"),
    "a pattern for its modules": (lora(target_modules="(a+)+$"), "target_modules"),
    "a pickle": (lambda a, k: (a / "adapter_model.bin").write_bytes(archive(k)), "can run code"),
    "a pickle named safetensors": (
        lambda a, k: (a / "adapter_model.safetensors").write_bytes(pickle.dumps(Payload(k))),
        "header has",
    ),
    "no effect": (pairs(zero), "has no effect"),
    "NaN": (pairs(lambda held: {name: value * np.nan for name, value in held.items()}), "NaN or infinite"),
    "another base's shapes": (pairs(wider), "this base needs"),
    "a tensor that is no LoRA": (pairs(stranger), "no half of a LoRA pair"),
    "half a pair": (pairs(lambda held: dict(sorted(held.items())[1:])), "no half of a LoRA pair"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_is_refused_for(case, model, adapter, marker):
    harm, why = ADAPTERS[case]
    harm(adapter, marker)
    with pytest.raises(ValueError, match=why) as refused:
        check_adapter(adapter, model, BASE)
    assert ";" in str(refused.value), "it says what to do"


def at(place, form, value):
    def harm(data):
        struct.pack_into(form, data, place, value)

    return harm


GGUFS = {
    "a pickle": (lambda data: data.__setitem__(slice(0, 4), b"\x80\x04\x95\x00"), "not begin with GGUF"),
    "truncated header": (lambda data: data.__delitem__(slice(600, None)), "promises|ends in its header"),
    "truncated data": (lambda data: data.__delitem__(slice(-500, None)), "overlap or lie behind"),
    "an unknown version": (at(4, "<I", 77), "version 77"),
    "a bomb of tensors": (at(8, "<Q", 1 << 60), "1152921504606846976 tensors"),
    "a bomb of settings": (at(16, "<Q", 1 << 60), "settings"),
    "a string longer than the file": (at(24, "<Q", 1 << 40), "promises 1099511627776 values"),
    "nothing": (lambda data: data.clear(), "not begin with GGUF"),
}


@pytest.mark.parametrize("case", GGUFS)
def test_a_gguf_file_is_refused_for(case, clean, tmp_path):
    harm, why = GGUFS[case]
    data = bytearray((clean / "model.gguf").read_bytes())
    harm(data)
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=why):
        open_engine(Model(file_sha256(tmp_path / "model.gguf"), str(tmp_path / "model.gguf"), "openvino", BASE))


@pytest.mark.parametrize("name", ["model.gguf", "hf"])
def test_one_flipped_bit_is_not_opened(clean, tmp_path, name):
    place = tmp_path / name
    (shutil.copytree if (clean / name).is_dir() else shutil.copy)(clean / name, place)
    known = artifact_sha256(place)
    file = place / "model.safetensors" if place.is_dir() else place
    data = bytearray(file.read_bytes())
    data[-1000] ^= 4
    file.write_bytes(data)
    with pytest.raises(ValueError, match="it was altered"):
        open_engine(Model(known, str(place), "transformers" if place.is_dir() else "openvino", BASE))


def test_links_inside_a_hugging_face_cache_are_followed(model, tmp_path):
    repository = tmp_path / "models--a--b"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = Path(shutil.move(model, repository / "snapshots" / "abc"))
    blob = repository / "blobs" / "c0ffee"
    shutil.move(snapshot / "config.json", blob)
    (snapshot / "config.json").symlink_to(blob)
    assert files(snapshot)["config.json"] == blob
    assert safety.check_model(snapshot)
