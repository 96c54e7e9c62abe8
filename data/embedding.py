"""Texts into unit vectors with a Sentence-Transformers model (mean pooling), read from a folder of safetensors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.records import digest, file_sha256

MOST_TOKENS = 256
BATCH = 32
# More texts than this are embedded in bf16 where the processor has it (cosine to fp32 0.99996).
MOST_IN_FP32 = 8


class Embedder:
    """A loaded model. `sha256` covers the weights and the tokenizer; `dimensions` is the length of a vector.

    Thread safe. Raises FileNotFoundError when the folder lacks a file.
    """

    def __init__(self, path: str | Path):
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel

        folder = Path(path)
        weights, vocabulary = folder / "model.safetensors", folder / "tokenizer.json"
        for file in (weights, vocabulary, folder / "config.json"):
            if not file.is_file():
                raise FileNotFoundError(f"no embedder at {folder}: {file.name} is missing; fetch the models first")
        self.sha256 = digest(file_sha256(weights), file_sha256(vocabulary), "mean", MOST_TOKENS)
        # Two tokenizers, each set up once: setting truncation while another thread encodes fails in the Rust code.
        self._counter = Tokenizer.from_file(str(vocabulary))
        self._counter.no_truncation()
        self._counter.no_padding()
        self._tokenizer = Tokenizer.from_file(str(vocabulary))
        self._tokenizer.enable_truncation(MOST_TOKENS)
        self._tokenizer.no_padding()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        self._model = self._model.eval().requires_grad_(False).to(self.device)
        self._model_bf16 = None
        self._lock = threading.Lock()
        self.dimensions = int(self._model.config.hidden_size)

    def count(self, text: str) -> int:
        """Tokens of a text, without the marks at its two ends, and not truncated."""
        return len(self._counter.encode(text, add_special_tokens=False).ids)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows, float32 [len(texts), dimensions], in the order of `texts`; only the first 256 tokens of a text.

        Texts are batched by length, since padding is paid for like text. Raises ValueError on a non-finite vector.
        """
        import torch

        rows = np.zeros((len(texts), self.dimensions), np.float32)
        if not len(texts):
            return rows
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: (-len(encoded[i]), i))
        model = self._half() if len(texts) > MOST_IN_FP32 and _has_bf16(self.device) else self._model
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            longest = len(encoded[chosen[0]])
            tokens = torch.zeros((len(chosen), longest), dtype=torch.long)
            mask = torch.zeros((len(chosen), longest), dtype=torch.long)
            for row, index in enumerate(chosen):
                ids = encoded[index]
                tokens[row, : len(ids)] = torch.tensor(ids)
                mask[row, : len(ids)] = 1
            with torch.inference_mode():
                tokens, mask = tokens.to(self.device), mask.to(self.device)
                states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
                weights = mask.unsqueeze(-1).float()
                mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
                rows[chosen] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        if not np.isfinite(rows).all():
            bad = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise ValueError(
                f"the embedder gave a vector that is not finite for {texts[bad][:80]!r}; check its weights"
            )
        return rows

    def _half(self):
        """The model in bf16, made on first use: a replica that only embeds questions never holds it."""
        import copy

        import torch

        with self._lock:
            if self._model_bf16 is None:
                self._model_bf16 = copy.deepcopy(self._model).to(torch.bfloat16)
            return self._model_bf16


@lru_cache
def _has_bf16(device: str) -> bool:
    """Whether bf16 is computed by the processor rather than emulated (emulation is slower than fp32)."""
    if device == "cuda":
        import torch

        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@lru_cache(maxsize=2)
def _loaded(path: str) -> Embedder:
    return Embedder(path)


def load(path: str | Path) -> Embedder:
    """The embedder of a folder, loaded once per process."""
    return _loaded(str(Path(path).resolve()))
