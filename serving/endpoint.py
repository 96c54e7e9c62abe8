"""The endpoint on Ray Serve: router, retrieval and log in one replica; models are asked over Serve handles."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from data.ledger import Ledger
from data.records import Chunk, Decoding, Filter, Hit, Model, Release, as_json, digest
from data.requests import RequestLog
from serving import rag
from serving.app import Parts, create_app
from serving.keys import valid
from serving.refused import Refused
from serving.replica import STARTABLE, app_name, statuses, worker_environment
from serving.rerank import permitted
from serving.router import Router, internal_token
from serving.traces import Traces
from settings import ROOT, settings

if TYPE_CHECKING:
    from data.store import Index

log = logging.getLogger(__name__)
NAME = "endpoint"
T = TypeVar("T")
THREADS = 2


class Endpoint:
    """The Serve ingress: it builds the app once its own parts are ready."""

    def __init__(self):
        import torch

        from data.embedding import load
        from serving.engine.models import embedder_folder

        torch.set_num_threads(THREADS)
        chosen = settings()
        self.embedder = load(embedder_folder())
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="retrieve")
        self.requests = RequestLog(chosen.requests)
        self.ledger = Ledger(chosen.ledger)
        self.traces = Traces(chosen.trace_share, chosen.otlp_url or "", chosen.mlflow)
        self.instead: dict[str, Index] = {}  # by release: whole indexes that stand in for damaged ones
        self.router = Router(self.ledger, self.warm, partial(valid, self.ledger))
        self.router.start()

    def __serve_build_asgi_app__(self):
        answering = (self.router, self.generate, self.find, self.section)
        parts = Parts(*answering, self.requests, self.ledger.add_feedback, self.ledger, self.traces)
        return create_app(parts, settings(), internal_token(), self.threads)

    def __del__(self):
        if hasattr(self, "router"):
            self.router.close()
            self.requests.close()
            self.traces.close()

    def warm(self, release: Release) -> None:
        """Open the release's index, recompute its checksum and search it once.

        Raises ValueError for another embedder, and IndexDamaged for a damaged index, unless the release was live before
        and an earlier index can stand in for it.
        """
        if release.index.embedder != self.embedder.sha256:
            ours, theirs = self.embedder.sha256[:12], release.index.embedder[:12]
            raise ValueError(f"its index was embedded by {theirs}, this endpoint embeds with {ours}; build it again")
        self.reading(release, lambda index: index.verify())
        self.find(release, "warm", "", frozenset())

    def fall_back(self, release: Release, damage: Exception) -> Index:
        """The index of the last accepted release before that is whole; tombstones keep what was deleted since hidden.

        Raises `damage` when there is none, and for a release that was never live: a candidate must not pass its canary
        on another's index. The monitor sees the damage too, and `reindex` builds the index anew.
        """
        from data.store import IndexDamaged, open_index

        accepted = self.ledger.accepted_releases(release.assistant)
        if release.id not in accepted:
            raise damage
        for earlier in accepted:
            index = self.ledger.release(earlier).index
            if index == release.index or index.embedder != self.embedder.sha256:
                continue
            try:
                whole = open_index(index)
                whole.verify()
            except IndexDamaged:
                continue
            log.error("release %s is answered from version %s of its index: %s", release.id, index.version, damage)
            self.instead[release.id] = whole
            return whole
        raise damage

    def find(
        self, release: Release, question: str, before: str, tombstones: frozenset[str], allowed: Filter = Filter()
    ) -> tuple[tuple[Hit, ...], np.ndarray]:
        asked = (self.embedder, question, before, release.retrieval, tombstones, allowed)
        return self.reading(release, lambda index: rag.retrieve_turn(index, *asked))

    def section(self, release: Release, chunk: str, tombstones: frozenset[str], allowed: Filter) -> list[Chunk]:
        """The chunks of the section that holds the chunk with this id, as far as they may be seen; [] for none."""

        def read(index: Index) -> list[Chunk]:
            held = index.chunk(chunk)
            if held is None or not permitted(held, tombstones, allowed):
                return []
            parts = [part for part in index.section(held) if part.section_hash == held.section_hash]
            return [part for part in parts if permitted(part, tombstones, allowed)]

        return self.reading(release, read)

    def reading(self, release: Release, read: Callable[[Index], T]) -> T:
        """What `read` makes of the release's index, or of the one that stands in for it."""
        from data.store import IndexDamaged, open_index

        try:
            return read(self.instead.get(release.id) or open_index(release.index))
        except IndexDamaged:  # or deleted with its assistant, and built anew since it was opened
            self.instead.pop(release.id, None)
            open_index.cache_clear()
        try:
            return read(open_index(release.index))
        except IndexDamaged as error:
            return read(self.fall_back(release, error))

    async def generate(self, model: Model, prompt: str, decoding: Decoding) -> AsyncIterator[dict]:
        """Pieces from the model's application. A replica lost before its first piece is replaced by another, once.

        Raises Refused 400 for what the engine can not read, 503 when no replica answers.
        """
        from ray.exceptions import RayActorError, RayError
        from ray.serve.exceptions import RayServeException

        started = False
        for attempt in (1, 2):
            try:
                response = handle(app_name(model.sha256)).stream.remote(prompt, sent(decoding))
                try:
                    async for piece in response:
                        started = True
                        yield piece
                    return
                finally:
                    response.cancel()
            except RayActorError as error:
                if started or attempt == 2:
                    raise unavailable() from error
                await asyncio.sleep(0.5)
            except (RayError, RayServeException) as error:
                raise failed(model, getattr(error, "cause", error)) from error

    async def check_health(self) -> None:
        """Search the index of one live release. Raises when the index, the embedder or the router does not answer."""
        if not self.router.alive:
            raise RuntimeError("the router's thread has ended")
        live = next((routing.live for routing in list(self.router.routings.values()) if routing.live), None)
        if live:
            await asyncio.get_running_loop().run_in_executor(self.threads, self.find, live, "health", "", frozenset())


@cache
def handle(application: str):
    """The handle of a model's application; it goes on working when the application is deleted and made again."""
    from ray import serve

    return serve.get_app_handle(application).options(stream=True)


def failed(model: Model, error: BaseException) -> Refused:
    """What a client reads of what an engine raised: its own words where the request is at fault; else only our log."""
    if isinstance(error, ValueError):
        return Refused(400, str(error).strip()[-300:], param="messages", code="context_length_exceeded")
    log.error("%s can not answer: %s", model.uri, error)
    return unavailable(getattr(error, "retry_after", None))


def unavailable(retry_after_s: float | None = None) -> Refused:
    message = "The model of this release does not answer now"
    wait = 5 if retry_after_s is None else max(1, math.ceil(retry_after_s))
    return Refused(503, message, "server_error", code="model_unavailable", retry_after=wait)


def version() -> str:
    """Changes with the code and the settings of the endpoint."""
    found = [path for folder in ("serving", "data") for path in (ROOT / folder).rglob("*")]
    files = [ROOT / "settings.py", *sorted(path for path in found if path.suffix in (".py", ".html"))]
    return digest([path.read_text() for path in files], settings().model_dump(mode="json"))[:12]


def sent(decoding: Decoding) -> dict:
    """`decoding` for a model's replica, without an empty schema or tools: older replicas know no such fields."""
    return {name: value for name, value in as_json(decoding).items() if value or name not in ("json_schema", "tools")}


def run() -> None:
    """Ask Serve for the endpoint's application, without waiting, unless it is there with this code and these settings.

    A changed one starts before the old one stops.
    """
    from ray import serve

    chosen, deployed = settings(), settings().home / "serving.version"
    if statuses().get(NAME) not in STARTABLE and deployed.exists() and deployed.read_text() == version():
        return
    deployment = serve.deployment(
        serve.ingress()(Endpoint),
        name="Endpoint",
        ray_actor_options={"num_cpus": 0.1, "runtime_env": worker_environment(THREADS)},
        max_ongoing_requests=chosen.max_queued + 128,  # those beyond max_queued are told to come back, not left waiting
        max_constructor_retry_count=3,
        graceful_shutdown_timeout_s=chosen.request_timeout_s + 10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=15,
        max_surge_percent=100,
    )
    target = serve.RunTarget(deployment.bind(), name=NAME, route_prefix="/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    deployed.write_text(version())
