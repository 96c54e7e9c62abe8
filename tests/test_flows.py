"""The loop as a user sees it, on running processes: released, healed, refused, rolled back, and never down."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from data.ledger import Ledger
from data.records import Decision, Release, as_json
from settings import settings
from tests.conftest import HOME, ROOT, command

pytestmark = [pytest.mark.stack, pytest.mark.model]
SAMPLE = ROOT / "data" / "sample"
NAME = "handbook"
GOLDEN = HOME / "golden.jsonl"


def book() -> Ledger:
    return Ledger(settings().ledger)


def live() -> Release:
    return book().live()[NAME].live


def ask(question: str, **body) -> dict:
    sent = {"model": NAME, "messages": [{"role": "user", "content": question}]} | body
    return httpx.post(f"{settings().endpoint}/v1/chat/completions", json=sent, timeout=60).raise_for_status().json()


def in_a_flow_process(code: str, timeout: float = 2400) -> str:
    """Run Python code as a user's own script would, and return what it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout.strip().splitlines()[-1]


def wait_until(what, patience_s: float, every_s: float = 1.0):
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, f"not so within {patience_s} s"
        time.sleep(every_s)
    return found


def flow_states(flow: str) -> list[str]:
    """State names of all runs of a flow, as the Prefect UI shows them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name={"any_": [flow]}), limit=50)
    return [run.state.name for run in runs]


def some_of_the_golden_questions() -> list[str]:
    """Lines of the golden file: of each document one question and one unanswerable one, to save time."""
    seen: dict[tuple, int] = {}
    kept = []
    for line in (SAMPLE / "golden.jsonl").read_text().splitlines():
        question = json.loads(line)
        key = (question["document"], bool(question["answers"]))
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= 1:
            kept.append(line)
    return kept


@pytest.fixture(scope="module")
def released(stack):
    """The sample handbook taken through the loop, in a folder of its own; the JSON result of the command."""
    documents = HOME / "documents"
    shutil.copytree(SAMPLE / "documents", documents)
    GOLDEN.write_text("\n".join(some_of_the_golden_questions()))
    done = command(
        "flows.lifecycle", "--assistant", NAME, "--documents", str(documents),
        "--examples", str(SAMPLE / "examples.jsonl"), "--golden", str(GOLDEN),
        "--train-minutes", "3", "--margin", "0.10", "--json", timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_loop_releases_an_assistant_that_answers_with_its_release_and_sources(released):
    assert released["decision"] in ("promote", "hold"), released["reason"]
    row = book().assistant(NAME)
    assert row["live_seq"] == (2 if released["decision"] == "promote" else 1)
    assert {"prepare", "index", "finetune", "evaluate", "canary"} <= set(released["seconds"])
    from openai import OpenAI

    client = OpenAI(base_url=f"{settings().endpoint}/v1", api_key="none")
    assert [model.id for model in client.models.list().data] == [NAME]
    reply = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "How many recovery codes do I get?"}]
    )
    assert reply.system_fingerprint == live().id
    for citation in reply.citations:
        assert f"[{citation['number']}]" in reply.choices[0].message.content and citation["text"]


def test_running_the_loop_again_does_nothing_again(released):
    start, seq = time.monotonic(), book().assistant(NAME)["live_seq"]
    done = command(
        "flows.lifecycle", "--assistant", NAME, "--documents", str(HOME / "documents"),
        "--examples", str(SAMPLE / "examples.jsonl"), "--golden", str(GOLDEN),
        "--train-minutes", "3", "--margin", "0.10", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["release_id"] == released["release_id"]
    assert book().assistant(NAME)["live_seq"] == seq
    assert time.monotonic() - start < 120


def test_an_edited_fact_and_a_deleted_page_heal_without_anybody_asking(released):
    page = HOME / "documents" / "sharing" / "trash.md"
    text = page.read_text()
    assert "75 days on Team" in text
    page.write_text(text.replace("75 days on Team", "81 days on Team"))
    gone = HOME / "documents" / "integrations" / "recipes.txt"
    gone.unlink()
    before = live()
    monitor_now()
    wait_until(lambda: live().id != before.id, 900)
    after = live()
    assert after.model == before.model and after.index != before.index
    from data.store import open_index

    texts = [chunk.text for chunk in open_index(after.index).chunks() if chunk.document == "sharing/trash.md"]
    assert any("81 days on Team" in text for text in texts) and not any("75 days on Team" in text for text in texts)
    wait_until(lambda: ask("How long does the trash keep files on Team?")["system_fingerprint"] == after.id, 10)
    cited = ask("What does a recipe join a trigger with?")["citations"]
    assert all(citation["document"] != "integrations/recipes.txt" for citation in cited)
    row = [row for row in book().outbox(NAME) if row["kind"] == "reindex"][-1]
    wait_until(lambda: book().outbox(NAME)[-1]["state"] == "acted", 300)
    assert row["cause"] and book().reviews(NAME), "questions of the edited section wait for review"


def test_a_candidate_trained_on_shuffled_answers_is_rejected_by_name(released):
    examples = [json.loads(line) for line in (SAMPLE / "examples.jsonl").read_text().splitlines()]
    answers = [example["answers"] for example in examples]
    random.Random(7).shuffle(answers)
    shuffled = HOME / "shuffled.jsonl"
    bad = [example | {"answers": wrong} for example, wrong in zip(examples, answers, strict=True)]
    shuffled.write_text("\n".join(json.dumps(example) for example in bad))
    before = live()
    code = f"""
from flows.lifecycle import *
from dataclasses import replace
live, _ = live_pointer({NAME!r})
snapshot = prepare.prepare(Sources("shuffled", {str(HOME / "documents")!r}, {str(shuffled)!r}))
model = finetune.finetune(snapshot, live.index, live.prompt, live.retrieval, Training(minutes=2, learning_rate=0.005))
good = known_snapshot({NAME!r})
state = release(replace(live, model=model), "tuned", good, return_state=True)
print(state.name)
"""
    assert in_a_flow_process(code, 1200) == "Rejected"
    assert live() == before
    assert "Rejected" in flow_states("release")


def test_a_release_that_cannot_answer_as_itself_is_taken_back_by_name(released):
    good = live()
    lost = Release.of(as_json(good) | {"index": as_json(good.index) | {"version": 9999, "checksum": "0" * 64}})
    ledger = book()
    ledger.add_release(lost, "reindex", good.id, ledger.assistant(NAME)["snapshot"])
    ledger.decide_gate(NAME, Decision("promote", "accepted by hand for this test", lost.id, good.id))
    code = f"""
from flows.lifecycle import *
from tasks import evaluate
evaluate.smoke_questions = lambda snapshot, release: ["How many recovery codes do I get?"]
book = ledger()
state = release(book.release({lost.id!r}), "reindex", known_snapshot({NAME!r}), return_state=True)
print(state.name)
"""
    assert in_a_flow_process(code) == "RolledBack"
    assert live() == good
    assert "RolledBack" in flow_states("release")


def test_four_streaming_clients_see_no_failed_request_during_a_rollback_and_back(released):
    seen, failures, stopped = set(), [], threading.Event()

    def stream() -> None:
        sent = {"model": NAME, "messages": [{"role": "user", "content": "What is QB-244?"}], "stream": True}
        url = f"{settings().endpoint}/v1/chat/completions"
        while not stopped.is_set():
            try:
                with httpx.stream("POST", url, json=sent, timeout=60) as reply:
                    lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
            except httpx.HTTPError as error:
                failures.append(repr(error))
                continue
            ids = {json.loads(line)["system_fingerprint"] for line in lines if line != "[DONE]"}
            if reply.status_code != 200 or lines[-1] != "[DONE]" or len(ids) != 1:
                failures.append(f"{reply.status_code} {ids}")
            seen.update(ids)
            time.sleep(2)  # steady load: with the engine saturated, flows on the same two cores take minutes

    clients = [threading.Thread(target=stream, daemon=True) for _ in range(4)]
    for client in clients:
        client.start()
    before = live()
    code = f"from flows.remedies import *; print(rollback({NAME!r}, to=%s, return_state=True).name)"
    said: list[str] = []
    runs = [
        threading.Thread(target=lambda to=to: said.append(in_a_flow_process(code % to)))
        for to in ("None", repr(before.id))
    ]
    try:
        runs[0].start()
        wait_until(lambda: live().id != before.id and not book().outbox(NAME, ("open", "claimed")), 900, 0.2)
        away = live()
        time.sleep(3)  # answers by the release gone back to, and then by the one that is live again
        runs[1].start()
        wait_until(lambda: live().id == before.id, 900, 0.2)
        time.sleep(3)
    finally:
        stopped.set()
    for thread in [*clients, *runs]:
        thread.join()
    assert said == ["RolledBack", "RolledBack"]
    assert failures == []
    assert away.id != before.id and live().id == before.id
    assert {before.id, away.id} <= seen


def test_a_remedy_whose_event_died_with_the_server_still_happens_once(released):
    page = HOME / "documents" / "sharing" / "trash.md"
    status = command("flows.stack", "status").stdout
    server = int(re.search(r"prefect\s+RUNNING\s+pid (\d+)", status)[1])
    before = live()
    os.kill(server, signal.SIGKILL)
    page.write_text(re.sub(r"\d+ days on Team", "83 days on Team", page.read_text()))
    seq = book().open_remedy(NAME, "reindex", "the event is lost", {"reason": "test"})
    emitted = f"from tasks import events; events.emit('perennial.remedy.reindex', {NAME!r}, outbox={seq}); print(1)"
    in_a_flow_process(emitted)
    row = wait_until(
        lambda: next((r for r in book().outbox(NAME, ("acted", "merged")) if r["seq"] == seq), None), 900, 2
    )
    wait_until(lambda: live().id != before.id, 900, 2)  # a merged row is settled before the run that covers it ends
    assert row["attempts"] == (1 if row["state"] == "acted" else 0)


def monitor_now() -> None:
    """Ask for the scheduled monitor's next run now."""
    from prefect.deployments import run_deployment

    run_deployment("monitor/monitor", timeout=0)


def test_the_readme_blocks_run(released):
    """The client block is run as it stands, on this stack's port; the others must at least be valid Python."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) == 2
    asked = blocks[0].replace("http://127.0.0.1:8000", settings().endpoint)
    assert live().id == in_a_flow_process(asked)
    compile(blocks[1], "README.md", "exec")


def test_mlflow_mirrors_the_release_with_its_prompt_and_points_the_alias_at_what_is_live(released):
    import mlflow

    mlflow.set_tracking_uri(settings().mlflow)
    client = mlflow.MlflowClient()
    tuned = client.search_runs(
        [client.get_experiment_by_name(NAME).experiment_id], f"tags.release = '{released['release_id']}'"
    )
    assert tuned[0].data.tags["verdict"] == released["decision"] and "correct" in tuned[0].data.metrics
    version = client.get_model_version_by_alias(NAME, "champion")
    assert version.tags["release"] in book().accepted_releases(NAME)
    assert [prompt.name for prompt in mlflow.genai.search_prompts()] == [f"{NAME}-prompt"]
    trained = client.get_run(tuned[0].data.tags["training_run"])
    model = book().release(released["release_id"]).model
    assert trained.info.status == "FINISHED" and trained.data.tags["adapter_sha256"] == model.adapter
    assert trained.data.params["rank"] == "16" and int(trained.data.params["examples"]) > 100
    curve = client.get_metric_history(trained.info.run_id, "loss_of_step")
    assert len(curve) > 3 and client.get_metric_history(trained.info.run_id, "loss")  # logged while it trained
    logged = {file.path for file in client.list_artifacts(trained.info.run_id)}
    assert {"README.md", "loss.png", "training.json", "lineage.json", "adapter"} <= logged
