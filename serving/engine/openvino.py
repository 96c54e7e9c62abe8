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

from data.records import Decoding, Generation, Model
from serving.engine import Piece, settled

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
        self._end = self._pipeline.get_config().eos_token_id
        self._context = _context_length(model.uri)
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

    def _encode(self, text: str):
        return self._tokenizer.encode(text, add_special_tokens=False).input_ids

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode([token for token in ids if token != self._end])

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
        config.eos_token_id, config.stop_token_ids = self._end, {self._end}
        if decoding.temperature > 0:
            config.do_sample, config.temperature = True, decoding.temperature
            config.top_p, config.rng_seed = decoding.top_p, decoding.seed
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


def _context_length(uri: str) -> int:
    from gguf import GGUFReader

    return int(GGUFReader(uri).get_field("llama.context_length").contents())
