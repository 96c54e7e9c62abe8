"""A random model with 2 layers and a byte tokenizer, as a Hugging Face folder and a GGUF template: no download.

The tokenizer and its chat template (ChatML) are made here; norms and biases are not left at ones and zeros, which would
hide a forgotten one.
"""

from pathlib import Path

ROLES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(ROLES + alphabet)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(ROLES)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def model(seed: int = 0, kind: str = "llama", **changed):
    """A random model of a Hugging Face model type, with `changed` settings."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 256 + len(ROLES),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | changed))).eval()
    if kind != "llama":
        for name, parameter in made.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def adapter(place: Path, base: Path, seed: int = 1, rank: int = 4) -> Path:
    """A random LoRA adapter with an effect, as a PEFT folder, for the model in the folder `base`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(loaded, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.2 * torch.randn_like(parameter)
    adapted.save_pretrained(place)
    (place / "README.md").unlink(missing_ok=True)
    return place


def folder(place: Path, kind: str = "llama", template: str | None = None, **changed) -> Path:
    """The model and its tokenizer under `place`/hf, and `place`/template.gguf; the Hugging Face folder."""
    from gguf import GGUFWriter

    made = tokenizer()
    made.chat_template = template
    model(kind=kind, **changed).save_pretrained(place / "hf")
    made.save_pretrained(place / "hf")
    writer = GGUFWriter(place / "template.gguf", "llama")
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(made.convert_ids_to_tokens(list(range(len(made)))))
    writer.add_token_types([3] * len(ROLES) + [1] * 256)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return place / "hf"
