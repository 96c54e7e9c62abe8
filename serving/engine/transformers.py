"""The reference engine: Hugging Face transformers, on a GPU where there is one, with an optional PEFT adapter.

Slower than OpenVINO on a CPU by a factor of 8; it is what exports are compared with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue

from data.records import Decoding, Generation, Model
from serving.engine import ALIVE, Piece, settled

BATCH = 16


class TransformersEngine:
    """See serving.engine.Engine. One generation at a time; others wait for it."""

    def __init__(self, model: Model, device: str | None = None):
        import torch
        import transformers

        folder = Path(model.uri)
        folder = folder if folder.is_dir() else folder.parent
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
        if model.adapter_uri:
            from peft import PeftModel

            adapter = Path(model.adapter_uri)
            loaded = PeftModel.from_pretrained(
                loaded, adapter if adapter.is_dir() else adapter.parent
            ).merge_and_unload()
        self._model = loaded.to(self._device).eval()
        self._ends = _end_tokens(self._model)
        self._pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else min(self._ends)
        self._tokenizer.pad_token_id = self._pad
        self._busy = threading.Lock()
        self.version = f"transformers {transformers.__version__} {str(dtype).removeprefix('torch.')} {self._device}"

    def count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False).input_ids)

    def stream(self, prompt: str, decoding: Decoding) -> Iterator[Piece]:
        written: SimpleQueue = SimpleQueue()
        cancelled = threading.Event()
        thread = threading.Thread(target=self._run, args=([prompt], decoding, written.put, cancelled), daemon=True)
        thread.start()
        ids, sent, length = [], "", self.count(prompt)
        try:
            while True:
                new = written.get()
                if isinstance(new, Exception):
                    raise RuntimeError(f"generation failed: {new}") from new
                ended = new is None
                ids += [] if ended else [int(new)]
                reason = "" if not ended else "stop" if ids and ids[-1] in self._ends else "length"
                text, stopped = settled(self._decode(ids), decoding.stop, ended)
                reason = "stop" if stopped else reason
                if reason or len(text) > len(sent):
                    yield Piece(text[len(sent) :], len(ids), reason, length)
                    sent = text
                if reason:
                    return
        finally:
            cancelled.set()

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> list[Generation]:
        started, answers = time.perf_counter(), []
        for first in range(0, len(prompts), BATCH):
            batch = list(prompts[first : first + BATCH])
            times: list[float] = []
            rows = self._generate(batch, decoding, lambda _, times=times: times.append(time.perf_counter()))
            for prompt, ids in zip(batch, rows, strict=True):
                text, stopped = settled(self._decode(ids), decoding.stop, ended=True)
                reason = "stop" if stopped or (ids and ids[-1] in self._ends) else "length"
                answers.append(
                    Generation(text, self.count(prompt), len(ids), reason, times[0] - started, times[-1] - started)
                )
        return answers

    def greedy(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        """The ids written greedily for each prompt, at most `tokens`, the end token included."""
        return [self._generate([prompt], Decoding(max_new_tokens=tokens), lambda _: None)[0] for prompt in prompts]

    def check(self) -> None:
        self.generate(["<|im_start|>"], ALIVE)

    def close(self) -> None:
        with self._busy:
            self._model = None

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            [token for token in ids if token not in self._ends], clean_up_tokenization_spaces=False
        )

    def _run(self, prompts: list[str], decoding: Decoding, put, cancelled: threading.Event) -> None:
        try:
            self._generate(prompts, decoding, lambda row: put(int(row[0])), cancelled)
        except (RuntimeError, ValueError) as error:  # carried to the reader's thread, which raises it
            put(error)
        put(None)

    def _generate(self, prompts: list[str], decoding: Decoding, step, cancelled=None) -> list[list[int]]:
        """Completion ids per prompt, the end token included. `step` gets the new ids [batch] of each step."""
        import torch
        from transformers import StoppingCriteria

        class Watch(StoppingCriteria):
            def __call__(self, ids, scores, **_):
                step(ids[:, -1])
                stop = cancelled is not None and cancelled.is_set()
                return torch.full((ids.shape[0],), stop, dtype=torch.bool, device=ids.device)

        if decoding.json_schema:
            raise ValueError("this engine can not be held to a JSON schema; leave response_format out")
        encoded = self._tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt").to(self._device)
        length = encoded.input_ids.shape[1]
        longest = self._model_context() - decoding.max_new_tokens
        if length > longest:
            raise ValueError(f"a prompt has {length} tokens, at most {longest} leave room to answer; shorten it")
        sampling = {"do_sample": False}
        if decoding.temperature > 0:
            sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        with self._busy, torch.inference_mode():
            torch.manual_seed(decoding.seed)
            written = self._model.generate(
                **encoded,
                max_new_tokens=decoding.max_new_tokens,
                eos_token_id=sorted(self._ends),
                pad_token_id=self._pad,
                stopping_criteria=[Watch()],
                **sampling,
            )[:, length:].tolist()
        return [self._until_end(row) for row in written]

    def _model_context(self) -> int:
        if self._model is None:
            raise RuntimeError("this engine is closed; open a new one")
        return self._model.config.max_position_embeddings

    def _until_end(self, row: list[int]) -> list[int]:
        place = next((n for n, token in enumerate(row) if token in self._ends), len(row))
        return row[: place + 1]


def _end_tokens(model) -> set[int]:
    ends = model.generation_config.eos_token_id
    ends = ends if ends is not None else model.config.eos_token_id
    return set(ends) if isinstance(ends, (list, tuple)) else {ends}
