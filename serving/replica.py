"""One Ray Serve application per model artifact: `model-<first 12 of sha256>`, warmed beside the others.

Index, prompt and settings travel with the request, so releases that share an artifact share its application.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from data.records import Constrained, Model, as_json
from settings import environment, settings

COALESCE_S = 0.05  # one message per token costs more than the token (STACK, engines)
STREAMS = 64
THREADS = 2
HEALTHY_S = 10.0
PREFIX = "model-"
KEPT_OUT = ("PERENNIAL_UPSTREAM_KEY", "PERENNIAL_JUDGE_KEY", "PERENNIAL_ALERTS")
"""Ray logs and shows a `runtime_env`. A worker inherits these from its node instead, or does not need them."""
STARTABLE = (None, "NOT_STARTED", "DEPLOY_FAILED")
"""What Serve says of an application that has to be asked for; the others run, start or end by themselves."""


class ModelReplica:
    """Holds one engine. `stream` is what the endpoint calls; Serve calls `check_health`."""

    def __init__(self, model: dict):
        from serving.engine import open_engine

        self.engine = open_engine(Model.of(model))
        self._threads = ThreadPoolExecutor(STREAMS + 8, thread_name_prefix="stream")
        self._wrote_at = 0.0

    async def stream(self, prompt: str, decoding: dict) -> AsyncIterator[dict]:
        """`{"text", "tokens", "finish_reason", "prompt_tokens"}`, the first text at once, then every 50 ms.

        `text` is new text, `tokens` the completion tokens so far; the last one may have `tool_calls` (see Piece).
        Closing the generator cancels the generation at its next token. What the engine raises is raised here.
        """
        loop, pieces, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def put(item: dict | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, item)

        def pump() -> None:
            written = self.engine.stream(prompt, Constrained.of(decoding))
            held, put_at = "", 0.0
            try:
                for piece in written:
                    if gone.is_set():
                        return
                    held += piece.text
                    now = self._wrote_at = time.monotonic()
                    if piece.finish_reason or (held and now - put_at >= COALESCE_S):
                        put(
                            {"text": held, "tokens": piece.tokens, "finish_reason": piece.finish_reason}
                            | {"prompt_tokens": piece.prompt_tokens}
                            | ({"tool_calls": piece.tool_calls} if piece.tool_calls else {})
                        )
                        held, put_at = "", now
            finally:
                written.close()
                put(None)

        pumping = loop.run_in_executor(self._threads, pump)
        try:
            while (item := await pieces.get()) is not None:
                yield item
            await pumping
        finally:
            gone.set()

    async def check_health(self) -> None:
        """`Engine.check`, unless tokens were written in the last seconds. Raises what it raises."""
        if time.monotonic() - self._wrote_at < HEALTHY_S:
            return
        await asyncio.to_thread(self.engine.check)


# --- deploying --------------------------------------------------------------------------------


def app_name(sha256: str) -> str:
    """The Serve application of an artifact, by its sha256 or the first 12 digits of it."""
    return PREFIX + sha256[:12]


def worker_environment(threads: int) -> dict:
    """`runtime_env` of a replica: our settings, and as many threads as it may use (Ray would set one)."""
    ours = environment() | {name: value for name, value in os.environ.items() if name.startswith("PERENNIAL_")}
    ours.pop("RAY_ADDRESS")  # a worker belongs to its cluster already
    for secret in KEPT_OUT:
        ours.pop(secret, None)
    return {"env_vars": ours | {"OMP_NUM_THREADS": str(threads)}}


def connect() -> None:
    """Join the Ray cluster at settings().ray and its Serve, starting Serve when it is not running yet."""
    import ray
    from ray import serve

    chosen = settings()
    if not ray.is_initialized():
        ray.init(address=chosen.ray, namespace="perennial", log_to_driver=False, logging_level="warning")
    http = {"host": chosen.host, "port": chosen.endpoint_port, "request_timeout_s": chosen.request_timeout_s + 10}
    serve.start(proxy_location="HeadOnly", http_options=http)


def run(model: Model) -> None:
    """Ask Serve for the application of `model`, without waiting. Serve would replace one that runs: look before."""
    from ray import serve

    deployment = serve.deployment(
        ModelReplica,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": worker_environment(THREADS)},
        max_ongoing_requests=STREAMS,
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=settings().request_timeout_s + 10,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=15,
    )
    target = serve.RunTarget(deployment.bind(as_json(model)), name=app_name(model.sha256), route_prefix=None)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def deploy(model: Model, timeout_s: float = 180.0) -> None:
    """Run the application of `model` and wait until it has passed `Engine.check`: it has generated a token, or is an
    upstream, of which nothing is asked.

    Raises RuntimeError with Serve's message when it can not start (it is then deleted again), TimeoutError when it is
    not healthy in time.
    """
    connect()
    name = app_name(model.sha256)
    if statuses().get(name) in STARTABLE:
        run(model)
    deadline = time.monotonic() + timeout_s
    while (status := statuses().get(name)) != "RUNNING":
        if status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reason = message(name)
            delete(model.sha256)
            raise RuntimeError(f"{name} ({model.uri}) could not be started: {reason}")
        if time.monotonic() > deadline:
            delete(model.sha256)
            raise TimeoutError(f"{name} ({model.uri}) was not ready after {timeout_s:.0f} s, last seen {status}")
        time.sleep(0.2)


def delete(sha256: str) -> None:
    """Stop the application of an artifact; requests in it are finished first."""
    from ray import serve

    serve.delete(app_name(sha256))


def running() -> set[str]:
    """The first 12 digits of the sha256 of every artifact that has an application, healthy or starting."""
    gone = ("DELETING", "NOT_STARTED", "DEPLOY_FAILED")
    return {
        name.removeprefix(PREFIX)
        for name, status in statuses().items()
        if name.startswith(PREFIX) and status not in gone
    }


def statuses() -> dict[str, str]:
    """Serve application -> its status: DEPLOYING, RUNNING, UNHEALTHY, DEPLOY_FAILED, DELETING or NOT_STARTED."""
    from ray import serve

    return {name: application.status.value for name, application in serve.status().applications.items()}


def message(name: str) -> str:
    """What Serve says about an application, the end of it."""
    from ray import serve

    return serve.status().applications[name].message[-1500:]
