"""Base models: the embedded one, and any other Hugging Face causal language model that is adopted.

`adopt` copies a model into our own folder, refuses what is not safe (serving/engine/safety.py), and finds out by
measurement how it can be served: as GGUF Q8_0 by OpenVINO GenAI where that writes what Transformers writes, else by
Transformers itself.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from data.records import Model, Record, as_json, digest, file_sha256
from serving.chat import chat_format
from serving.engine import Engine, artifact_sha256, base_sha256, open_engine
from serving.engine.export import export_gguf, load, unexportable
from serving.engine.models import COMPLETE, GGUF_NAME, base_folder, base_model, written_whole
from serving.engine.safety import TAKEN, chat_template, check_model, files
from serving.engine.template import derive
from serving.engine.upstream import is_upstream, untunable, upstream_model
from serving.engine.weights import read_json
from settings import settings

ADOPTION = "1"  # raise when this module, export.py or template.py changes what is made of a base
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ASKED = ("What is the capital of France?", "How many days has a week?", "Name a colour. " * 12, "Write one word.")
WRITTEN = 12
MEAN_REGRET, WORST_REGRET = 0.05, 0.5
"""Most that the served model may prefer worse tokens, in standard deviations of the logits: see `regret`. Rounding to 8
bits gives up to 0.01 on average and 0.2 at a near tie; a wrong mapping gives more than 1 at once."""


@dataclass(frozen=True)
class Base(Record):
    """A base model: its Hugging Face `folder`, the sha256 of its weights, its model type, the chat format it wants
    (for `Prompt.chat`), the untuned `model` as it is served, and why that is not OpenVINO's where it is not.

    Of an upstream there is no folder, and `sha256` is its name.
    """

    folder: str
    sha256: str
    architecture: str
    chat: str
    model: Model
    why: str = ""

    @property
    def tunable(self) -> bool:
        """Whether its weights are here."""
        return bool(self.folder)


def embedded() -> Base:
    """The base that comes with the product."""
    return Base(str(base_folder()), base_model().base, "llama", "chatml", base_model())


def find(base: str | None) -> Base:
    """None: the embedded base. Else an upstream (URL#MODEL), the known one with this sha256, or `adopt(base)`."""
    if is_upstream(base):
        return hosted(base)
    return embedded() if base is None else known(base) or adopt(base)


def known(sha256: str) -> Base | None:
    """The base whose weights have this sha256: the embedded one or one that was adopted; None when it is not here."""
    if sha256 == (given := embedded()).sha256:
        return given
    folders = sorted((settings().models / "adopted").glob("*"))
    held = (read(folder) for folder in folders if (folder / COMPLETE).exists())
    return next((base for base in held if base.sha256 == sha256), None)


def hosted(name: str) -> Base:
    """The base behind an upstream's name. What it is made of is not known here, and nothing of it can be tuned."""
    model = upstream_model(name)
    return Base("", model.base, "upstream", "messages", model, untunable(model))


def adopt(source: str | Path) -> Base:
    """The base made of a Hugging Face folder or hub id, under settings().models/adopted; a second call is a read.

    A hub id is looked up in the local cache, and downloaded when HF_HUB_OFFLINE=0. Raises ValueError, with what to do,
    for a model that is not safe or not whole (serving/engine/safety.py), or that has no end token. The whole model is
    in memory in float32 once.
    """
    given = files(locate(source))
    hashes = {name: file_sha256(place) for name, place in given.items()}
    target = settings().models / "adopted" / digest(hashes, ADOPTION)[:24]
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / "adopt.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (target / COMPLETE).exists():
            with written_whole(target) as staging:
                (staging / "hf").mkdir()
                for name, place in given.items():
                    shutil.copyfile(place, staging / "hf" / name)
                    if file_sha256(staging / "hf" / name) != hashes[name]:
                        raise ValueError(f"{place} changed while it was read; adopt the model again")
                made = _made(staging)
                (staging / "base.json").write_text(json.dumps(as_json(made)))
                (staging / COMPLETE).write_text(made.model.sha256)
    return read(target)


def read(folder: Path) -> Base:
    """The record of an adopted base, with its files' places as they are now."""
    made = json.loads((folder / "base.json").read_text())
    served = folder / GGUF_NAME if made["model"]["engine"] == "openvino" else folder / "hf"
    return Base.of(made | {"folder": str(folder / "hf"), "model": made["model"] | {"uri": str(served)}})


def locate(source: str | Path) -> Path:
    """The folder of a model: a folder as it is, a hub id from the local cache or, online, from the hub."""
    if Path(source).exists() or not HUB_ID.fullmatch(str(source)):
        return Path(source)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        wanted = [name for name in TAKEN if name != COMPLETE] + ["*.safetensors"]
        return Path(snapshot_download(str(source), allow_patterns=wanted, local_files_only=constants.HF_HUB_OFFLINE))
    except LocalEntryNotFoundError as missing:
        raise ValueError(
            f"{source} is neither a folder nor in the local Hugging Face cache; give its folder, or set "
            "HF_HUB_OFFLINE=0 to download it"
        ) from missing


def _made(staging: Path) -> Base:
    """Check the copy in `staging`/hf, settle chat format and end tokens, and write the GGUF if that serves."""
    from tokenizers import Tokenizer

    folder = staging / "hf"
    config = check_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tokenizer.get_vocab_size() > config["vocab_size"]:
        raise ValueError(
            f"{folder} has {tokenizer.get_vocab_size()} tokens and {config['vocab_size']} embeddings; it is not whole"
        )
    chat, ends = _chat(folder, config, tokenizer)
    # Its own defaults (a repetition penalty, a temperature) would make two engines write differently
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": ends[0]}))
    model = load(folder).eval()
    why = unexportable(model.config) or _no_bytes(folder)
    if not why:
        export_gguf(model, staging / GGUF_NAME, describe=partial(describe, folder, model.config.vocab_size, ends))
        served = Model(file_sha256(staging / GGUF_NAME), str(staging / GGUF_NAME), "openvino", base_sha256(folder))
        why = _disagrees(served, model, tokenizer, chat)
        if not why:
            return Base(str(folder), served.base, config["model_type"], chat, served)
        (staging / GGUF_NAME).unlink()
    served = Model(artifact_sha256(folder), str(folder), "transformers", base_sha256(folder))
    return Base(str(folder), served.base, config["model_type"], chat, served, why)


def _chat(folder: Path, config: dict, tokenizer) -> tuple[str, list[int]]:
    """The chat format and the ids that end an answer, the format's own first."""
    described = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    defaults = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else {}
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        found = described.get(name)
        found = found.get("content") if isinstance(found, dict) else found
        found = (
            found or tokenizer.id_to_token(config[f"{name}_id"]) if isinstance(config.get(f"{name}_id"), int) else found
        )
        tokens |= {name: found} if found else {}
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    chat = derive(chat_template(folder), tokens, added)
    listed = [defaults.get("eos_token_id"), config.get("eos_token_id")]
    ids = [one for given in listed for one in (given if isinstance(given, list) else [given]) if isinstance(one, int)]
    end = tokenizer.token_to_id(chat_format(chat).end)
    if end is None:
        raise ValueError(f"{folder} has no token that ends an answer; set eos_token in its tokenizer_config.json")
    return chat, list(dict.fromkeys([end, *ids]))


def _no_bytes(folder: Path) -> str:
    read = read_json(folder / "tokenizer.json")
    same = read["model"].get("type") == "BPE" and (read.get("decoder") or {}).get("type") == "ByteLevel"
    return "" if same else "its tokenizer is no byte-level BPE"


def describe(folder: Path, vocabulary: int, ends: Sequence[int], writer) -> None:
    """Write the tokenizer of a Hugging Face folder to a GGUF file: as llama.cpp reads it, and as it is."""
    from gguf import Keys, SpecialVocab, TokenType
    from tokenizers import Tokenizer

    text = (folder / "tokenizer.json").read_text()
    tokenizer, added = Tokenizer.from_str(text), {token["id"]: token for token in json.loads(text)["added_tokens"]}
    tokens = [tokenizer.id_to_token(number) for number in range(vocabulary)]
    kinds = [TokenType.UNUSED if token is None else TokenType.NORMAL for token in tokens]
    for number, token in added.items():
        kinds[number] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_name(folder.parent.name)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splits(text))
    writer.add_token_list([f"[PAD{n}]" if token is None else token for n, token in enumerate(tokens)])
    writer.add_token_types(kinds)
    special = SpecialVocab(folder, load_merges=True, n_vocab=vocabulary)
    special.chat_template = chat_template(folder)
    special.merges = special.merges or ["Ā Ā"]  # OpenVINO wants the list; a byte tokenizer has none: two NULs
    special.special_token_ids |= dict(zip(("eos", "eot", "eom"), ends, strict=False))
    special.add_to_gguf(writer, quiet=True)
    writer.add_string(Keys.Tokenizer.HF_JSON, text)


def _splits(tokenizer: str) -> str:
    """llama.cpp's name for the way a tokenizer splits text. Only for other readers: ours have the tokenizer itself."""
    known = {"llama-bpe": r"\\p{N}{1,3}", "qwen2": r"|\\p{N}|", "smollm": '"individual_digits"'}
    return next((name for name, mark in known.items() if mark in tokenizer), "gpt-2")


# --- measuring --------------------------------------------------------------------------------


def _disagrees(served: Model, model, tokenizer, chat: str) -> str:
    """Why the served model is not the one in memory; '' when it writes the same."""
    prompts = [chat_format(chat).write("Answer briefly.", [("user", asked)]) for asked in ASKED]
    try:
        engine = open_engine(served)
    except (RuntimeError, ValueError, LookupError) as problem:
        return f"OpenVINO GenAI can not read it: {str(problem)[-200:]}"
    try:
        found = regret(engine, model, tokenizer, prompts, WRITTEN)
    except (RuntimeError, ValueError) as problem:
        return f"OpenVINO GenAI can not run it: {str(problem)[-200:]}"
    finally:
        engine.close()
    if not agrees(found):
        return (
            f"OpenVINO GenAI writes something else (regret {found.mean():.2f} on average, {found.max():.2f} at worst)"
        )
    return ""


def agrees(found: np.ndarray) -> bool:
    """Whether a `regret` is within the limits of rounding to 8 bits; one that is not a number is not."""
    return bool(found.mean() <= MEAN_REGRET and found.max() <= WORST_REGRET)


def regret(engine: Engine, model, tokenizer, prompts: Sequence[str], tokens: int) -> np.ndarray:
    """For every token that `engine` writes greedily: by how much `model` preferred another one, 0 where it did not.

    In standard deviations of the model's logits, so that a near tie counts as one. `model` is the reference in memory
    (Transformers, adapter and all), `tokenizer` its `tokenizers.Tokenizer`.
    """
    import torch

    found = []
    for prompt, written in zip(prompts, engine.greedy(prompts, tokens), strict=True):
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        with torch.inference_mode():
            logits = model(torch.tensor([ids + written], device=model.device)).logits[0, len(ids) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(written, device=model.device)[:, None])[:, 0]
        found.append(((logits.amax(-1) - chosen) / logits.std(-1)).cpu().numpy())
    return np.concatenate(found)
