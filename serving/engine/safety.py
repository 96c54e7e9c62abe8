"""What is refused before a model or an adapter from outside is read (FAULTS T9, F8): code, links, and broken files.

Everything is checked by reading bytes and JSON; nothing here loads a model. Each refusal is a ValueError that names the
file and says what to do. `adopt` checks its own copy, so a file can not change after it was checked.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from pathlib import Path

from serving.engine.template import check_template
from serving.engine.weights import INDEX, WEIGHTS, check_safetensors, read_json, refuse, shapes

CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
TEMPLATE = "chat_template.jinja"
TAKEN = (*CONFIGS, "tokenizer.json", TEMPLATE, INDEX, "adapter_config.json", "COMPLETE")
"""Besides the weights, the files that a model folder may consist of; they alone are read."""
INERT = re.compile(
    r"(vocab|added_tokens)\.json|merges\.txt|\.git.*|(README|LICENSE|NOTICE|USE_POLICY).*|.*\.(md|png|jpg)"
)
NEWER_THAN_CLASS = ("rope_theta", "rope_scaling", "torch_dtype", "use_mrope", "is_llama_config", "rope_interleaved")
HARMLESS = (*NEWER_THAN_CLASS, "transformers.js_config", "_from_model_config", "_model_name_or_path", "unk_token_id")
NAMES = ("_name_or_path", "_model_name_or_path")  # where a model came from: transformers overwrites it, never reads it
TOKENIZER_KEYS = re.compile(
    r"(add_)?(bos|eos|unk|pad|sep|cls|mask|eot|prefix)_(token|space)(_id)?|added_tokens_decoder|backend|chat_template|"
    r"(additional|extra)_special_tokens|clean_up_tokenization_spaces|errors|is_local|legacy|local_files_only|"
    r"model_(input_names|max_length|type)|padding_side|split_special_tokens|spaces_between_special_tokens|"
    r"tokenizer_class|truncation_side|use_default_system_prompt|use_fast|vocab_size|(_)?name_or_path"
)
LARGEST = {"hidden_size": 1 << 16, "num_hidden_layers": 1 << 10, "vocab_size": 1 << 21, "intermediate_size": 1 << 19}
LORA_KEYS = re.compile(
    r"peft_(type|version)|task_type|r|lora_(alpha|dropout)|(target|exclude)_modules|bias|use_rslora|fan_in_fan_out|"
    r"inference_mode|init_lora_weights|base_model_name_or_path|megatron_core|qalora_group_size"
)


# --- folders ----------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, Path]:
    """Name -> real place of what is read from a model folder. Raises ValueError for anything else that lies in it.

    Links may lead to the folder itself or, in a Hugging Face cache, to the blobs of the same model.
    """
    if not folder.is_dir():
        raise refuse(folder, "is not a folder", "give the folder of a Hugging Face model; unpack an archive yourself")
    root = folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    found, links = {}, Counter()
    for entry in sorted(folder.rglob("*")):
        name, real = entry.relative_to(folder).as_posix(), entry.resolve()
        if entry.is_symlink() and not (real.is_relative_to(root) or real.is_relative_to(blobs)):
            raise refuse(entry, f"is a link to {real}, outside of the folder", "copy the file itself into the folder")
        mode = entry.stat() if entry.exists() else None
        if mode is None or not (stat.S_ISREG(mode.st_mode) or (stat.S_ISDIR(mode.st_mode) and not entry.is_symlink())):
            raise refuse(entry, "is no plain file", "a model folder holds files alone: delete it")
        if stat.S_ISDIR(mode.st_mode) or INERT.fullmatch(name.split("/")[0]):
            continue
        if not (name in TAKEN or WEIGHTS.fullmatch(name)):
            raise refuse(
                entry,
                "is not a file of a safe model: it can run code when loaded",
                f"only *.safetensors, {', '.join(TAKEN)} are read; delete it, or convert weights to safetensors",
            )
        links[mode.st_dev, mode.st_ino] += 1
        found[name] = real
    for name, real in found.items():
        place = real.stat()
        if place.st_nlink > links[place.st_dev, place.st_ino]:
            raise refuse(folder / name, "has a second name (hard link) elsewhere", "copy the file, do not link it")
    return found


def check_model(folder: Path) -> dict:
    """The config of a model folder after every check of its files but `files`; ValueError for the first that fails."""
    config = read_json(folder / "config.json")
    _check_config(folder / "config.json", config)
    for name in CONFIGS[1:]:
        if (folder / name).exists():
            _check_plain(folder / name, read_json(folder / name))
    described = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    for key in described:
        if not TOKENIZER_KEYS.fullmatch(key):
            why = f"has the key {key!r}, which is no plain tokenizer setting"
            raise refuse(folder / "tokenizer_config.json", why, "remove the key; tokenizers with own code are not run")
    if not re.fullmatch(r"\w*", described.get("tokenizer_class") or ""):
        raise refuse(folder / "tokenizer_config.json", "names a tokenizer_class that is no name", "remove the key")
    if not (folder / "tokenizer.json").exists():
        raise refuse(folder, "has no tokenizer.json", "save it with AutoTokenizer.from_pretrained(..).save_pretrained")
    read_json(folder / "tokenizer.json")
    if template := chat_template(folder):
        check_template(folder, template)
    shapes(folder, finite=True)
    return config


def chat_template(folder: Path) -> str | None:
    """The Jinja chat template of a model folder, from chat_template.jinja or tokenizer_config.json."""
    if (folder / TEMPLATE).exists():
        return (folder / TEMPLATE).read_text(errors="replace")
    described = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    found = described.get("chat_template")
    if isinstance(found, list):  # several by name; tools and retrieval have others
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found


def _check_config(file: Path, config: dict) -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    built_in = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) if isinstance(kind, str) else None
    if "auto_map" in config:
        raise refuse(file, "names code of its own (auto_map)", "only architectures inside transformers are run")
    if built_in is None:
        raise refuse(
            file, f"says model_type {kind!r}, no causal language model of transformers", "choose another model"
        )
    if config.get("architectures") not in (None, [built_in]):
        raise refuse(file, f"says architectures {config['architectures']}, not [{built_in!r}]", "choose another model")
    known = {*CONFIG_MAPPING[kind]().to_dict(), *HARMLESS}
    if odd := sorted(set(config) - known):
        raise refuse(
            file, f"has the key {odd[0]!r}, which {kind} does not have", "remove the key if you trust the rest"
        )
    _check_plain(file, config)
    for key, most in LARGEST.items():
        if key in config and not (isinstance(config[key], int) and 0 < config[key] <= most):
            raise refuse(file, f"says {key} {config[key]!r}, not a whole number up to {most}", "get the file again")


def _check_plain(file: Path, value, key: str = "") -> None:
    """No code, and no text that is an address of something else: a path, a URL, a hub id."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("auto_map", "trust_remote_code", "custom_pipelines", "custom_generate"):
                raise refuse(file, f"names code of its own ({name})", "remove it; a model's own code is never run")
            _check_plain(file, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(file, inner, key)
    elif isinstance(value, str) and key not in (*NAMES, "name_or_path", "chat_template", "template", "content"):
        special = key.endswith(("_token", "_tokens"))  # '</s>' is a token, not a path
        if re.search(r"://|\.\.[/\\]|^[/~\\]|^\w+/\w" if not special else r"://|\.\./", value):
            raise refuse(
                file, f"points elsewhere: {key} is {value[:80]!r}", "remove the key; all is read from the folder"
            )


# --- adapters ---------------------------------------------------------------------------------


def check_adapter(folder: Path, base: Path, base_sha256: str) -> None:
    """Refuse an adapter folder that is not a plain LoRA with an effect, for the model in the folder `base`.

    An adapter we publish names its base as `sha256:<of its weights>`; one without is recognised by its shapes.
    """
    found = files(folder)
    if set(found) - {"COMPLETE"} != {"adapter_config.json", "adapter_model.safetensors"}:
        raise refuse(folder, f"holds {', '.join(sorted(found))}", "an adapter is adapter_config.json and its weights")
    file = folder / "adapter_config.json"
    config, plain = read_json(file), _plain_lora()
    for key, value in config.items():
        if key not in plain:
            raise refuse(file, f"has the key {key!r}, which a LoRA does not have", "remove the key")
        if not LORA_KEYS.fullmatch(key) and value not in (plain[key], None, False, [], {}):
            raise refuse(file, f"sets {key}", "only plain LoRA adapters are served: train it without")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        raise refuse(file, "is no LoRA without biases", "only plain LoRA adapters are served")
    if config.get("task_type") not in (None, "CAUSAL_LM") or type(config.get("r")) is not int:
        raise refuse(file, "is no LoRA of a causal language model", "choose another adapter")
    targets = config.get("target_modules")
    if not (
        targets == "all-linear" or (isinstance(targets, list) and all(re.fullmatch(r"[\w.]+", t) for t in targets))
    ):
        raise refuse(file, f"has target_modules {str(targets)[:80]!r}", "list the modules by name")
    of = config.get("base_model_name_or_path") or ""
    if "://" in of or ".." in of:
        raise refuse(file, f"points elsewhere: base_model_name_or_path is {of[:80]!r}", "remove the key")
    if of.startswith("sha256:") and of != f"sha256:{base_sha256}":
        raise refuse(file, f"belongs to the base {of}, not to sha256:{base_sha256}", "serve it with its own base")
    _check_lora(folder / "adapter_model.safetensors", config["r"], shapes(base))


def _plain_lora() -> dict:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM").to_dict()


def _check_lora(file: Path, rank: int, base: dict[str, tuple[int, ...]]) -> None:
    from safetensors import safe_open

    held, changed = check_safetensors(file, finite=True), False
    for name, shape in held.items():
        match = re.fullmatch(r"base_model\.model\.([\w.]+)\.lora_([AB])\.weight", name)
        if not match or f"base_model.model.{match[1]}.lora_{'BA'[match[2] == 'B']}.weight" not in held:
            raise refuse(file, f"holds {name!r}, no half of a LoRA pair", "train the adapter again")
        wanted = base.get(f"{match[1]}.weight")
        sizes = wanted and ((rank, wanted[-1]) if match[2] == "A" else (wanted[0], rank))
        if shape != sizes:
            why = f"has {name!r} of shape {shape}; this base needs {sizes}"
            raise refuse(file, why, "it was trained for another base: serve it with that")
    with safe_open(file, "np") as opened:
        for name in (name for name in held if ".lora_A." in name):
            one, other = (opened.get_tensor(part) for part in (name, name.replace(".lora_A.", ".lora_B.")))
            changed = changed or bool(one.any() and other.any())
    if not changed:
        raise refuse(file, "has no effect: training changed nothing, every pair is zero", "train it again")
