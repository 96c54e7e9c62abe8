"""The processes and the state of this machine: `python -m flows.stack start | run | status | stop | backup FOLDER |
restore FOLDER | delete NAME --yes | forget USER --yes`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from flows import home
from settings import LOOPBACK, ROOT, apply_environment, environment, settings

BIN = Path(sys.executable).parent
SAMPLE = ROOT / "data" / "sample"
ASSISTANT = "handbook"
DISK_GB = 3


def short(folder: Path) -> Path:
    """`folder`, or a short one in its place: Unix socket paths may have 107 characters, and Ray adds about 70."""
    if len(str(folder)) <= 36:
        return folder
    return Path("/tmp") / f"perennial-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def process_environment() -> dict[str, str]:
    """Everything supervisord.conf refers to, on top of the environment every process gets."""
    chosen = settings()
    temp = short(chosen.home / "ray")
    return (
        os.environ
        | environment()
        | {
            "PERENNIAL_ROOT": str(ROOT),
            "PERENNIAL_BIN": str(BIN),
            "PERENNIAL_SOCKET": str(short(chosen.home / "s").with_suffix(".sock")),
            "PERENNIAL_RAY_TEMP": str(temp),
            "PERENNIAL_RAY_CLIENT_PORT": str(chosen.ray_port + 1),
            "PERENNIAL_RAY_AGENT_PORT": str(chosen.ray_port + 2),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_LOGGING_LEVEL": "INFO",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "RAY_DEDUP_LOGS": "0",
            "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }
        | {f"PERENNIAL_{name.upper()}": str(getattr(chosen, name)) for name in ports()}
    )


def ports() -> dict[str, int]:
    chosen = settings()
    names = ("endpoint_port", "prefect_port", "mlflow_port", "dashboard_port", "ray_port")
    return {name: getattr(chosen, name) for name in names}


def supervisorctl(*words: str) -> subprocess.CompletedProcess:
    command = [str(BIN / "supervisorctl"), "-c", str(ROOT / "supervisord.conf"), *words]
    return subprocess.run(command, env=process_environment(), capture_output=True, text=True, timeout=90)


def running() -> bool:
    return supervisorctl("pid").stdout.strip().isdigit()


def check_machine() -> None:
    """Refuse to start what cannot work, with a sentence that says what to do."""
    chosen = settings()
    if not chosen.loopback and not chosen.api_key:
        raise SystemExit(
            f"PERENNIAL_HOST is {chosen.host}, beyond this machine: set PERENNIAL_API_KEY to a long secret"
        )
    free = shutil.disk_usage(chosen.home if chosen.home.exists() else ROOT).free / 1e9
    if free < DISK_GB:
        raise SystemExit(f"{free:.1f} GB of disk are free at {chosen.home}; {DISK_GB} GB are needed. Free some space")
    wanted = [*ports().items(), *(("ray_port", chosen.ray_port + more) for more in (1, 2))]  # Ray takes two more
    for name, port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((chosen.host if name == "endpoint_port" else LOOPBACK, port))
            except OSError as error:
                raise SystemExit(
                    f"port {port} ({name}) is taken: stop what uses it, or choose another with "
                    f"PERENNIAL_{name.upper()}=... ({error.strerror})"
                ) from error


def start() -> None:
    """Start every process and wait until each answers; starting twice changes nothing."""
    from data.ledger import Ledger, migrate
    from serving.engine.models import fetch

    chosen = settings()
    migrate(chosen.ledger)  # also where an older version of this runs
    if not running():
        check_machine()
        for folder in ("logs", "prefect", "mlflow"):
            (chosen.home / folder).mkdir(parents=True, exist_ok=True)
        fetch()
        free_what_died(Ledger(chosen.ledger))
        say("preparing the MLflow database")
        upgrade = [str(BIN / "mlflow"), "db", "upgrade", f"sqlite:///{chosen.home / 'mlflow.db'}"]
        subprocess.run(upgrade, env=process_environment(), check=True, capture_output=True)
        say("starting Prefect, MLflow, Ray and the endpoint")
        command = [str(BIN / "supervisord"), "-c", str(ROOT / "supervisord.conf")]
        subprocess.run(command, env=process_environment(), check=True, timeout=60)
    for name in ("prefect", "mlflow", "ray", "endpoint"):
        wait_for(name)
    deploy_flows()


def free_what_died(book) -> None:
    """Give back every claim and end every canary: nothing of ours runs yet, so whoever held them is dead."""
    for row in book.outbox(states=("claimed",)):
        book.free(row["seq"], row["claimed_by"])
    for name in book.live():
        book.set_canary(name, None)


def deploy_flows() -> None:
    """The work pool and everything in prefect.yaml, when it has changed since it was last deployed."""
    marker = settings().home / "deployed"
    sha = hashlib.sha256((ROOT / "prefect.yaml").read_bytes() + settings().prefect.encode()).hexdigest()
    if marker.exists() and marker.read_text() == sha:
        return
    say("deploying the flows of prefect.yaml")
    prefect = str(BIN / "prefect")
    pool = [prefect, "work-pool", "create", "perennial", "--type", "process", "--overwrite"]
    for command in (pool, [prefect, "--no-prompt", "deploy", "--all"]):
        done = subprocess.run(command, env=process_environment(), cwd=ROOT, capture_output=True, text=True, timeout=180)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    marker.write_text(sha)


def health() -> dict[str, tuple[str, bool]]:
    """Process -> (address, whether it answers)."""
    chosen = settings()
    addresses = {
        "prefect": (f"{chosen.prefect}/health", chosen.prefect.removesuffix("/api")),
        "mlflow": (f"{chosen.mlflow}/health", chosen.mlflow),
        "ray": (f"{chosen.dashboard}/api/version", chosen.dashboard),
        "endpoint": (f"{chosen.endpoint}/healthz", chosen.endpoint),
    }
    key = {"authorization": f"Bearer {chosen.api_key}"} if chosen.api_key else {}
    found = {}
    for name, (url, address) in addresses.items():
        try:
            sent = key if name == "endpoint" else {}
            found[name] = (address, httpx.get(url, headers=sent, timeout=3).status_code == 200)
        except httpx.HTTPError:
            found[name] = (address, False)
    return found


def wait_for(name: str, patience_s: float = 180) -> None:
    start = time.monotonic()
    while not health()[name][1]:
        if time.monotonic() - start > patience_s:
            log = settings().home / "logs" / f"{name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else "no log"
            raise SystemExit(f"{name} did not answer within {patience_s:.0f} s; the end of {log}:\n{tail}")
        time.sleep(0.5)
    say(f"{name} is up at {health()[name][0]}")


def status() -> int:
    """Each process, its address and health, and the live release of each assistant; the number of problems."""
    from data.ledger import Ledger, migrate

    problems = 0
    if not running():
        print("Perennial is not running here; start it with make run")
        return 1
    processes = supervisorctl("status").stdout.rstrip()
    problems += sum("RUNNING" not in line for line in processes.splitlines())
    print(processes)
    for name, (address, well) in health().items():
        problems += not well
        print(f"{name:10} {'ok  ' if well else 'DOWN'} {address}")
    migrate(settings().ledger)
    book = Ledger(settings().ledger)
    for name, routing in book.live().items():
        open_rows = len(book.outbox(name, ("open", "claimed")))
        live = routing.live.id if routing.live else "nothing live yet"
        print(f"assistant {name}: {live} (change {routing.live_seq}), {open_rows} remedies under way")
    return problems


def stop() -> None:
    """End every process that `start` started, by its supervisor."""
    if not running():
        print("Perennial is not running here")
        return
    pid = int(supervisorctl("pid").stdout)
    supervisorctl("shutdown")
    for _ in range(240):
        if not Path(f"/proc/{pid}").exists():
            break
        time.sleep(0.25)
    print("stopped")


def run() -> None:
    """Everything: start, take the sample handbook through the loop, ask it a question, print the addresses."""
    begin = time.monotonic()
    start()
    say("the loop on data/sample: prepare, index, bootstrap release, fine-tune, evaluate, gate, canary, release")
    command = [
        sys.executable, "-m", "flows.lifecycle", "--assistant", ASSISTANT,
        "--documents", str(SAMPLE / "documents"),
        "--examples", str(SAMPLE / "examples.jsonl"), "--golden", str(SAMPLE / "golden.jsonl"),
        "--train-minutes", "2.5", "--margin", "0.10", "--json",
    ]  # fmt: skip
    with subprocess.Popen(command, env=process_environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True) as loop:
        assert loop.stdout is not None
        last = ""
        for line in loop.stdout:
            if last:
                print(last, flush=True)
            last = line.rstrip()
    if loop.returncode:
        raise SystemExit(f"the loop ended with exit code {loop.returncode}; its log is above")
    result = json.loads(last)
    print(f"\ndecision   {result['decision']}: {result['reason']}")
    for name in ("correct", "token_f1", "exact_match", "hit_rate", "citation_correct", "abstention"):
        value, before = (result[arm].get(name) for arm in ("metrics", "baseline"))
        if value is not None:
            print(f"  {name:17} {value:.3f}" + (f"   (before: {before:.3f})" if before is not None else ""))
    print_answer("How many recovery codes do I get when I set up two-step verification?")
    print()
    for name, (address, _) in health().items():
        print(f"{name:9} {address}")
    print(f"\nready after {time.monotonic() - begin:.0f} s; make status, make stop")


def print_answer(question: str) -> None:
    body = {"model": ASSISTANT, "messages": [{"role": "user", "content": question}]}
    headers = {"authorization": f"Bearer {settings().api_key}"} if settings().api_key else {}
    url = f"{settings().endpoint}/v1/chat/completions"
    reply = httpx.post(url, json=body, headers=headers, timeout=60).raise_for_status().json()
    print(f"\nquestion   {question}\nanswer     {reply['choices'][0]['message']['content']}")
    for citation in reply["citations"]:
        print(f"  [{citation['number']}] {citation['document']} - {citation['section']}")
    print(f"release    {reply['system_fingerprint']}")


def say(what: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {what}", flush=True)


def main() -> None:
    commands = {"start": start, "run": run, "status": status, "stop": stop}
    parser = argparse.ArgumentParser(prog="python -m flows.stack", description=__doc__)
    parser.add_argument("command", choices=[*commands, "backup", "restore", "delete", "forget"])
    parser.add_argument("what", nargs="?", help="backup, restore: the folder; delete: the assistant; forget: the user")
    parser.add_argument("--yes", action="store_true", help="for delete and forget: do it")
    apply_environment()
    chosen = parser.parse_args()
    if chosen.command in commands:
        sys.exit(commands[chosen.command]())
    if not chosen.what:
        parser.error(f"{chosen.command} needs a folder, an assistant or a user: see --help")
    if chosen.command in ("delete", "forget"):
        {"delete": home.delete, "forget": home.forget}[chosen.command](chosen.what, chosen.yes)
    else:
        {"backup": home.back_up, "restore": home.restore}[chosen.command](Path(chosen.what).resolve())


if __name__ == "__main__":
    main()
