"""Texts into unit vectors with a Sentence-Transformers model (mean pooling), read from a folder of safetensors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data.records import digest, file_sha256

MOST_TOKENS = 256
BATCH = 16
STEP = 16


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
        """Unit rows of questions, float32 [len(texts), dimensions], in float32; only the first 256 tokens of a text.

        Raises ValueError on a non-finite vector.
        """
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: (-len(encoded[i]), i))
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        shapes = [(len(chosen), len(encoded[chosen[0]])) for chosen in batches]
        return self._rows(self._model, texts, encoded, batches, shapes)

    def embed_passages(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows of passages, float32 [len(texts), dimensions], in bf16 where the processor has it (cosine .99996).

        A text has the same vector, to the last bit, whatever texts come with it: products are rounded by their shape,
        so every batch is BATCH rows of a length rounded up to STEP. An index that grew then equals one built anew.
        Raises ValueError on a non-finite vector.
        """
        encoded = [item.ids for item in self._tokenizer.encode_batch(list(texts))]
        by_length: dict[int, list[int]] = {}
        for index, ids in enumerate(encoded):
            by_length.setdefault(-(-len(ids) // STEP) * STEP, []).append(index)
        batches, shapes = [], []
        for length, chosen in sorted(by_length.items()):
            for start in range(0, len(chosen), BATCH):
                batches.append(chosen[start : start + BATCH])
                shapes.append((BATCH, length))
        model = self._half() if has_bf16(self.device) else self._model
        return self._rows(model, texts, encoded, batches, shapes)

    def _rows(self, model, texts, encoded, batches, shapes) -> np.ndarray:
        """Mean of the last states of each text, at length 1; `shapes` [rows, tokens] of the padded `batches`."""
        import torch

        rows = np.zeros((len(texts), self.dimensions), np.float32)
        for chosen, shape in zip(batches, shapes, strict=True):
            tokens, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
            mask[:, 0] = 1  # a row of padding alone must not divide by zero
            for row, index in enumerate(chosen):
                tokens[row, : len(encoded[index])] = torch.tensor(encoded[index])
                mask[row, : len(encoded[index])] = 1
            with torch.inference_mode():
                tokens, mask = tokens.to(self.device), mask.to(self.device)
                states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
                weights = mask.unsqueeze(-1).float()
                mean = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
                rows[chosen] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()[: len(chosen)]
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
def has_bf16(device: str) -> bool:
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
