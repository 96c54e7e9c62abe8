"""Merged Llama weights to a GGUF Q8_0 file that llama.cpp and OpenVINO GenAI read.

An adapter is merged before export because OpenVINO GenAI silently ignores a PEFT adapter on a graph built from GGUF.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = 32  # weights that share one scale in Q8_0


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`; KeyError for a tensor Llama does not have."""
    module = name.removesuffix(".weight")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.weight"
    layer, _, rest = module.removeprefix("model.layers.").partition(".")
    if rest not in MODULES:
        raise KeyError(f"no GGUF name for tensor {name!r}: only Llama-like models without biases can be exported")
    return f"blk.{layer}.{MODULES[rest]}.weight"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from Hugging Face order to GGUF order: rotary pairs (i, i + d/2) become neighbours in each head.

    weight [heads * d, hidden]. The same as `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `permute`."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _rotary_heads(name: str, config) -> int | None:
    """How many heads the rows of this GGUF tensor are permuted over, None for every tensor but q and k."""
    if name.endswith("attn_q.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("attn_k.weight") else None


def export_gguf(folder_or_model, target: Path, template: Path | None = None) -> Path:
    """Write a Llama model (a Hugging Face folder or a loaded model, adapter merged) to `target` as GGUF Q8_0.

    Sizes come from the model's config, tokenizer and names from `template` (default: the GGUF the base came as).
    Norms stay float32, everything else becomes Q8_0. The file appears under its name only when it is whole and
    verified (see `verify`). Raises ValueError when the weights are not finite or the vocabulary is not the template's.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    from serving.engine.models import original_gguf

    model = folder_or_model if hasattr(folder_or_model, "state_dict") else _load(folder_or_model)
    config, weights = model.config, _weights(model)
    source = GGUFReader(template or original_gguf())
    tokens = len(source.get_field("tokenizer.ggml.tokens").data)
    if tokens != config.vocab_size:
        raise ValueError(
            f"the template has {tokens} tokens, the model {config.vocab_size}; use the base's own template"
        )

    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    writer = GGUFWriter(partial, "llama")
    _copy_description(source, writer)
    _write_sizes(config, writer)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    for name, weight in weights.items():
        if heads := _rotary_heads(name, config):
            weight = permute(weight, heads)
        if weight.ndim == 2 and weight.shape[1] % BLOCK == 0:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(np.ascontiguousarray(weight), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    verify(partial, model)
    os.replace(partial, target)
    return target


def verify(path: Path, model) -> None:
    """Read a written file back and compare every tensor with the model's.

    Raises ValueError when a tensor is missing or extra, or differs by more than Q8_0 rounding: half a step of
    max|block| / 127, plus the rounding of that step to float16.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize

    weights = _weights(model)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    if set(tensors) != set(weights):
        odd = sorted(set(tensors) ^ set(weights))
        raise ValueError(f"{path} and the model differ in tensors {odd[:4]}; it was not written by this exporter")
    for name, weight in weights.items():
        found = dequantize(tensors[name].data, tensors[name].tensor_type).reshape(weight.shape)
        if heads := _rotary_heads(name, model.config):
            found = unpermute(found, heads)
        bound = np.zeros((), np.float32)
        if weight.ndim == 2 and weight.shape[1] % BLOCK == 0:
            largest = np.abs(weight.reshape(-1, BLOCK)).max(axis=1, keepdims=True)
            bound = np.repeat(largest / 127 * 0.57, BLOCK, axis=1).reshape(weight.shape) + 1e-7
        if not (np.abs(found - weight) <= bound).all():
            worst = float(np.abs(found - weight).max())
            raise ValueError(f"{name} in {path} is off by up to {worst:.3g}; the export is wrong, do not serve it")


def _load(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)


def _weights(model) -> dict[str, np.ndarray]:
    """GGUF name -> float32 array. A tied output layer is left out, as llama.cpp does."""
    weights = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.detach().float().cpu().numpy()
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite weights; training diverged, lower the learning rate")
        weights[gguf_name(name)] = array
    return weights


def _copy_description(source, writer) -> None:
    """Copy the template's tokenizer, chat template, name and licence; sizes and file type are written afresh."""
    for name, field in source.fields.items():
        if name.startswith(("tokenizer.", "general.")) and name not in (
            "general.architecture",
            "general.file_type",
            "general.quantization_version",
        ):
            inner = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)


def _write_sizes(config, writer) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head)
