"""The production engine on a CPU: OpenVINO GenAI continuous batching over a GGUF Q8_0 file, prefix cache on.

One thread steps the pipeline while anything is unfinished. It hands token ids to the requests; each request turns its
own ids into text, so a slow reader decodes several tokens at once and never slows the others.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from data.records import Decoding, Generation, Model
from serving.engine import ALIVE, Piece, settled

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CACHE_GB = 1  # about 78,000 tokens of this model
# A step holds Python's global lock, so its length is what a streaming neighbour waits: 256 prompt tokens at a time
STEP_TOKENS = 512
SEQUENCES = 64


@dataclass
class _Request:
    """One generation under way. `ids` grows under `changed`; `reason` is '' until it ended."""

    handle: object
    prompt_tokens: int
    submitted: float
    changed: threading.Condition = field(default_factory=threading.Condition)
    ids: list[int] = field(default_factory=list)
    reason: str = ""
    error: str = ""
    first: float = 0.0
    last: float = 0.0

    def has_more_than(self, seen: int) -> bool:
        return len(self.ids) > seen or bool(self.reason or self.error)


class OpenVINOEngine:
    """See serving.engine.Engine. `threads`: cores to compute on, by default OMP_NUM_THREADS or all of this process."""

    def __init__(self, model: Model, threads: int | None = None):
        import openvino_genai as genai

        cores = len(os.sched_getaffinity(0))
        threads = threads or min(int(os.environ.get("OMP_NUM_THREADS", cores)), cores)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = STEP_TOKENS
        scheduler.max_num_seqs = SEQUENCES
        # Same speed as the default bf16 on AVX512 (the products are 8-bit either way), and nearer the reference
        properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        self._pipeline = genai.ContinuousBatchingPipeline(model.uri, scheduler, "CPU", properties)
        self._genai, self._tokenizer = genai, self._pipeline.get_tokenizer()
        described = described_in(model.uri)
        self._context, self._ends, self._exact = described.context, described.ends, described.tokenizer
        self.version = f"openvino-genai {genai.__version__} Q8_0"
        self._numbers = itertools.count()
        self._live: list[_Request] = []
        self._wake = threading.Condition()  # guards _live, _closed and _failure
        self._closed, self._failure = False, ""
        self._thread = threading.Thread(target=self._step_while_busy, name="openvino-steps", daemon=True)
        self._thread.start()

    def count(self, text: str) -> int:
        return self._encode(text).shape[1]

    def stream(self, prompt: str, decoding: Decoding) -> Iterator[Piece]:
        request = self._submit(prompt, decoding)
        sent, seen = "", 0
        try:
            while True:
                with request.changed:
                    request.changed.wait_for(partial(request.has_more_than, seen))
                    ids, reason, error = list(request.ids), request.reason, request.error
                if error:
                    raise RuntimeError(error)
                seen = len(ids)
                text, stopped = settled(self._decode(ids), decoding.stop, bool(reason))
                reason = "stop" if stopped else reason
                if reason or len(text) > len(sent):
                    yield Piece(text[len(sent) :], seen, reason, request.prompt_tokens)
                    sent = text
                if reason:
                    return
        finally:
            if not request.reason:
                request.handle.cancel()

    def generate(self, prompts: Sequence[str], decoding: Decoding) -> list[Generation]:
        requests = [self._submit(prompt, decoding) for prompt in prompts]
        return [self._finished(request, decoding) for request in requests]

    def check(self) -> None:
        self.generate(["<|im_start|>"], ALIVE)

    def close(self) -> None:
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        self._pipeline = None

    def _finished(self, request: _Request, decoding: Decoding) -> Generation:
        with request.changed:
            request.changed.wait_for(lambda: request.reason or request.error)
        if request.error:
            raise RuntimeError(request.error)
        text, stopped = settled(self._decode(request.ids), decoding.stop, ended=True)
        return Generation(
            text,
            request.prompt_tokens,
            len(request.ids),
            "stop" if stopped else request.reason,
            request.first - request.submitted,
            request.last - request.submitted,
        )

    def greedy(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        """The ids of at most `tokens` tokens written greedily after each prompt, an end token included."""
        requests = [self._submit(prompt, Decoding(max_new_tokens=tokens)) for prompt in prompts]
        for request in requests:
            self._finished(request, Decoding())
        return [request.ids for request in requests]

    def _encode(self, text: str):
        if not self._exact:
            return self._tokenizer.encode(text, add_special_tokens=False).input_ids
        from openvino import Tensor

        return Tensor(np.array([self._exact.encode(text, add_special_tokens=False).ids], np.int64))

    def _decode(self, ids: list[int]) -> str:
        text = [token for token in ids if token not in self._ends]
        return self._exact.decode(text, skip_special_tokens=False) if self._exact else self._tokenizer.decode(text)

    def _submit(self, prompt: str, decoding: Decoding) -> _Request:
        ids = self._encode(prompt)
        length = ids.shape[1]
        if length + decoding.max_new_tokens > self._context:
            raise ValueError(
                f"the prompt has {length} tokens and {decoding.max_new_tokens} may follow; the model reads at most "
                f"{self._context}: show fewer passages or ask for a shorter answer"
            )
        config = self._genai.GenerationConfig(
            max_new_tokens=decoding.max_new_tokens, apply_chat_template=False, stop_strings=set(decoding.stop)
        )
        config.eos_token_id, config.stop_token_ids = min(self._ends), self._ends
        if decoding.temperature > 0:
            config.do_sample, config.temperature = True, decoding.temperature
            config.top_p, config.rng_seed = decoding.top_p, decoding.seed
        if decoding.json_schema:
            config.structured_output_config = self._genai.StructuredOutputConfig(json_schema=decoding.json_schema)
        with self._wake:
            if self._closed or self._failure:
                raise RuntimeError(self._failure or "this engine is closed; open a new one")
            handle = self._pipeline.add_request(next(self._numbers), ids, config)
            request = _Request(handle, length, time.perf_counter())
            self._live.append(request)
            self._wake.notify()
        return request

    def _step_while_busy(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._live or self._closed)
                if self._closed:
                    return self._fail("this engine was closed while the request ran")
                live = list(self._live)
            try:
                self._pipeline.step()
                ended = [request for request in live if self._collect(request)]
            except Exception as error:  # whatever it is: were this thread gone silently, every request would wait
                with self._wake:
                    self._failure = f"the engine failed and has to be opened again: {error}"
                    return self._fail(self._failure)
            if ended:
                with self._wake:
                    self._live = [request for request in self._live if request not in ended]
            time.sleep(0)  # let the readers run between two steps: a step holds the global lock

    def _fail(self, error: str) -> None:
        for request in self._live:
            with request.changed:
                request.error = error
                request.changed.notify_all()
        self._live = []

    def _collect(self, request: _Request) -> bool:
        """Move what the step wrote into the request; True when it ended."""
        status, statuses = request.handle.get_status(), self._genai.GenerationStatus
        now, new, reason = time.perf_counter(), [], ""
        while request.handle.can_read():
            for output in request.handle.read().values():
                new += output.generated_ids
                if output.finish_reason == self._genai.GenerationFinishReason.STOP:
                    reason = "stop"
                elif output.finish_reason == self._genai.GenerationFinishReason.LENGTH:
                    reason = "length"
        error = ""
        if status == statuses.IGNORED:
            error = f"a prompt of {request.prompt_tokens} tokens does not fit the engine's cache; shorten it"
        ended = bool(reason or error) or status != statuses.RUNNING
        if new or ended:
            with request.changed:
                request.ids += new
                request.first = request.first or now
                request.last = now
                request.error = error
                request.reason = reason or ("cancelled" if ended and not error else "")
                request.changed.notify_all()
        return ended


@dataclass(frozen=True)
class Described:
    """What a GGUF file says of itself. `tokenizer`: the model's own, where the file carries its tokenizer.json."""

    context: int
    ends: set[int]
    tokenizer: Tokenizer | None


def described_in(uri: str) -> Described:
    """The description in a GGUF file. The reader of OpenVINO GenAI splits text by the rules of a few tokenizers only,
    so an adopted base brings its tokenizer.json along (gguf's key tokenizer.huggingface.json) and is read with that.
    """
    from gguf import GGUFReader, Keys

    fields = GGUFReader(uri).fields
    context = next(field for name, field in fields.items() if name.endswith(".context_length")).contents()
    ends = {
        int(fields[key].contents())
        for key in (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)
        if key in fields
    }
    tokenizer = None
    if Keys.Tokenizer.HF_JSON in fields:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(fields[Keys.Tokenizer.HF_JSON].contents())
    return Described(int(context), ends, tokenizer)
