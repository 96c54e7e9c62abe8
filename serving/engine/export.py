"""Merged weights to a GGUF Q8_0 file that llama.cpp and OpenVINO GenAI read, for the architectures in ARCHITECTURES.

An adapter is merged before export because OpenVINO GenAI silently ignores a PEFT adapter on a graph built from GGUF.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""Hugging Face model type -> gguf.MODEL_ARCH: those OpenVINO GenAI 2026.4 builds a graph for (gguf_modeling.cpp)."""
BLOCK = 32  # weights that share one scale in Q8_0


def unexportable(config) -> str:
    """Why a model with this config cannot be served by OpenVINO GenAI from a GGUF file; '' when it may.

    The reader knows plain rotary positions over whole heads and full attention, and says nothing of anything else.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    layers = getattr(config, "layer_types", None) or ()
    if config.model_type not in ARCHITECTURES:
        return f"no GGUF export for {config.model_type!r}, only for {', '.join(ARCHITECTURES)}"
    if rope.get("rope_type", "default") != "default" or (rope.get("partial_rotary_factor") or 1) != 1:
        return f"rotary positions of another kind than the reader's: {rope}"
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    if windowed or any(kind != "full_attention" for kind in layers):
        return "attention over a sliding window"
    return "" if config.hidden_act == "silu" else f"activation {config.hidden_act!r}"


def gguf_names(config):
    """Hugging Face tensor name -> GGUF name, as the gguf package has it; raises ValueError for no such architecture."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"{unexportable(config)}; serve this model with the transformers engine")
    return get_tensor_name_map(MODEL_ARCH[ARCHITECTURES[config.model_type]], config.num_hidden_layers)


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from Hugging Face order to GGUF order: rotary pairs (i, i + d/2) become neighbours in each head.

    weight [heads * d, ...]. The same as `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `permute`."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _rotary_heads(name: str, config) -> int | None:
    """How many heads the rows of this GGUF tensor are permuted over; None for all but q and k, and outside Llama."""
    if ARCHITECTURES[config.model_type] != "LLAMA":
        return None
    if ".attn_q." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".attn_k." in name else None


def export_gguf(folder_or_model, target: Path, template: Path | None = None, describe=None) -> Path:
    """Write a model (a Hugging Face folder or a loaded model, adapter merged) to `target` as GGUF Q8_0.

    Sizes come from the model's config; tokenizer and names from `template` (default: the GGUF the embedded base came
    as), or are written by `describe(writer)`. Norms and biases stay float32, the rest becomes Q8_0. The file appears
    under its name only when it is whole and verified (see `verify`). Raises ValueError when the weights are not finite,
    the vocabulary is not the template's, or the architecture has no export.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    from serving.engine.models import original_gguf

    model = folder_or_model if hasattr(folder_or_model, "state_dict") else load(folder_or_model)
    config, weights = model.config, _weights(model)
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    writer = GGUFWriter(partial, MODEL_ARCH_NAMES[MODEL_ARCH[ARCHITECTURES[config.model_type]]])
    if describe:
        describe(writer)
    else:
        source = GGUFReader(template or original_gguf())
        tokens = len(source.get_field("tokenizer.ggml.tokens").data)
        if tokens != config.vocab_size:
            raise ValueError(
                f"the template has {tokens} tokens, the model {config.vocab_size}; use the base's own template"
            )
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
            writer.add_tensor(name, np.ascontiguousarray(weight))
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


def load(folder):
    """The model of a Hugging Face folder in float32, from safetensors, with no code of its own.

    Raises ValueError when the weights are not those that its config asks for: the rest would be random numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
    )
    if odd := sorted(map(str, [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]])):
        raise ValueError(f"{folder} does not hold the weights its config.json asks for ({odd[0]}); get the files again")
    return model


def _weights(model) -> dict[str, np.ndarray]:
    """GGUF name -> float32 array. A tied output layer is left out, as llama.cpp does."""
    weights, names = {}, gguf_names(model.config)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.detach().float().cpu().numpy()
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinite weights; training diverged, lower the learning rate")
        if (known := names.get_name(name, (".weight", ".bias"))) is None:
            raise ValueError(f"no GGUF name for tensor {name!r} of a {model.config.model_type}; serve transformers")
        weights[known] = array
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
    each = config.hidden_size // config.num_attention_heads
    head = getattr(config, "head_dim", None) or each
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
    if head != each:
        writer.add_key_length(head)
        writer.add_value_length(head)
