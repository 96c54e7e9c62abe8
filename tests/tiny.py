"""A random Llama with 2 layers and a byte tokenizer, as a Hugging Face folder and a GGUF template: no download."""

from pathlib import Path

ROLES = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


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


def model(seed: int = 0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256 + len(ROLES),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def folder(place: Path) -> Path:
    """The model and its tokenizer under `place`/hf, and `place`/template.gguf; the Hugging Face folder."""
    from gguf import GGUFWriter

    made = tokenizer()
    model().save_pretrained(place / "hf")
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
