"""A machine of its own for a benchmark: a temporary home on free ports, started and stopped by `flows.stack`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
PORTS = ("ENDPOINT_PORT", "PREFECT_PORT", "MLFLOW_PORT", "DASHBOARD_PORT", "RAY_PORT")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_ports() -> dict[str, str]:
    """Environment that gives every process a free port; Ray takes two more after its own."""
    found: list[int] = []
    while len(found) < len(PORTS):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if port < 65000 and all(abs(port - other) > 4 for other in found) and all(map(is_free, (port + 1, port + 2))):
            found.append(port)
    return {f"PERENNIAL_{name}": str(port) for name, port in zip(PORTS, found, strict=True)}


def run(*words: str, timeout: float = 3000) -> str:
    """Standard output of a Python module of the project; its log goes to this process's standard error."""
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=timeout).stdout


def link_models(folder: Path) -> None:
    """The base model and the embedder in the home `folder`. Fetched once into the checkout: they never change."""
    fetch = os.environ | {"PERENNIAL_HOME": str(ROOT / ".perennial")}
    subprocess.run([sys.executable, "-m", "serving.engine.models"], env=fetch, cwd=ROOT, check=True)
    (folder / "models").mkdir(exist_ok=True)
    for model in (ROOT / ".perennial" / "models").iterdir():
        if model.name != "tuned" and not (folder / "models" / model.name).exists():
            (folder / "models" / model.name).symlink_to(model)


@contextmanager
def home() -> Iterator[Path]:
    """A temporary home with the models of this checkout, fetched if they are not there yet; deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="pb", dir="/tmp"))
    link_models(folder)
    os.environ.update(free_ports() | {"PERENNIAL_HOME": str(folder)})
    from settings import apply_environment

    try:
        apply_environment()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def machine() -> Iterator[Path]:
    """Everything up in a `home`; stopped at the end."""
    with home() as folder:
        try:
            print(run("flows.stack", "start"), file=sys.stderr)
            yield folder
        finally:
            run("flows.stack", "stop")


@contextmanager
def prefect(worker: bool = False) -> Iterator[list[subprocess.Popen]]:
    """In a `home`: the Prefect server, and a worker if wanted, with the deployments of prefect.yaml; killed at the end.

    Gives their processes, the server first; `start_server` puts another server in the place of one that was killed.
    """
    from flows import stack

    (stack.settings().home / "logs").mkdir(exist_ok=True)
    processes = [start_server()]
    try:
        stack.deploy_flows()
        if worker:
            processes.append(start_prefect("worker", "start", "--pool", "perennial", "--type", "process"))
        yield processes
    finally:
        for process in processes:
            kill(process)


def start_server() -> subprocess.Popen:
    """A Prefect server as supervisord.conf starts it, once it answers."""
    from flows import stack

    port = str(stack.settings().prefect_port)
    process = start_prefect("server", "start", "--host", "127.0.0.1", "--port", port)
    try:
        stack.wait_for("prefect")
    except SystemExit:
        kill(process)
        raise
    return process


def start_prefect(*words: str) -> subprocess.Popen:
    from flows import stack

    with open(stack.settings().home / "logs" / "prefect.log", "a") as log:
        command = [str(stack.BIN / "prefect"), *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=stack.process_environment(), stdout=log, stderr=log, start_new_session=True
        )


def kill(process: subprocess.Popen) -> None:
    """End a process that we started, with its children, at once; flow runs are sessions of their own."""
    if process.poll() is None:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def lifecycle(*words: str) -> dict:
    """The JSON result of the lifecycle command."""
    return json.loads(run("flows.lifecycle", *words, "--json").splitlines()[-1])


def handbook(documents: Path, minutes: str = "4") -> dict:
    """The sample handbook through the loop, its documents copied to `documents` so that they can be edited."""
    shutil.copytree(SAMPLE / "documents", documents)
    return lifecycle(
        "--assistant", "handbook", "--documents", str(documents), "--examples", str(SAMPLE / "examples.jsonl"),
        "--golden", str(SAMPLE / "golden.jsonl"), "--train-minutes", minutes, "--margin", "0.10",
    )  # fmt: skip


def untuned():
    """The sample's documents behind the endpoint, answered by the base as it is; its release."""
    from data.ledger import Ledger
    from settings import settings

    lifecycle("--assistant", "handbook", "--documents", str(SAMPLE / "documents"))
    return Ledger(settings().ledger).live()["handbook"].live


def accepted(book, release, live) -> None:
    """Put a release on record as if it had passed its gate, smoke query and canary."""
    from data.records import Decision

    book.add_release(release, "tuned", live.id, book.assistant(live.assistant)["snapshot"])
    book.decide_gate(live.assistant, Decision("promote", "accepted by hand for a benchmark", release.id, live.id))
    for kind, verdict in (("smoke", "answered"), ("canary", "held")):
        book.decide(live.assistant, kind, release.id, verdict, "by hand for a benchmark", {})


def sample_questions(most: int) -> list[str]:
    """The first questions of the sample's examples."""
    lines = (SAMPLE / "examples.jsonl").read_text().splitlines()
    return [json.loads(line)["question"] for line in lines[:most]]


def chat_url() -> str:
    """Where chat completions are asked for on the machine of this benchmark."""
    return f"http://127.0.0.1:{os.environ['PERENNIAL_ENDPOINT_PORT']}/v1/chat/completions"


def ask(question: str, assistant: str = "handbook") -> dict:
    """The endpoint's whole reply to one question."""
    body = {"model": assistant, "messages": [{"role": "user", "content": question}]}
    return httpx.post(chat_url(), json=body, timeout=120).raise_for_status().json()


def content(reply: dict) -> str:
    return reply["choices"][0]["message"]["content"]


def data(name: str) -> str:
    """A file of real data from the folder PERENNIAL_DATA; without it, where the file comes from."""
    sources = {
        "squadshifts": "SQuADShifts (Miller et al. 2020), github.com/modestyachts/squadshifts-website",
        "banking77": "Banking77 (Casanueva et al. 2020), github.com/PolyAI-LDN/task-specific-datasets, as .csv.gz",
        "docs_pydantic": "the docs folder of a release of Pydantic, github.com/pydantic/pydantic, as .tar.gz",
        "evouna": "EVOUNA (Wang et al. 2023), github.com/wangcunxiang/QA-Eval",
    }
    folder = os.environ.get("PERENNIAL_DATA")
    path = Path(folder or ".") / name
    if not folder or not path.exists():
        source = next(where for start, where in sources.items() if name.startswith(start))
        sys.exit(f"{name} is needed: set PERENNIAL_DATA to the folder that holds it (source: {source})")
    return str(path.resolve())


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def wait_until(check, patience_s: float, every_s: float = 0.5) -> float:
    """Seconds until `check()` is true; TimeoutError after `patience_s`."""
    start = time.monotonic()
    while not check():
        if time.monotonic() - start > patience_s:
            raise TimeoutError(f"not so within {patience_s:.0f} s: {check.__doc__ or check.__name__}")
        time.sleep(every_s)
    return time.monotonic() - start
