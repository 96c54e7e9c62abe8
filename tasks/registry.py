"""MLflow as history and mirror: runs, metrics, adapters, reports, prompt versions and model versions.

The ledger decides what is live; `mirror` copies what it says and can be repeated.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data.ledger import Ledger
from data.records import Decision, Model, Prompt, Release, digest
from serving import rag
from settings import settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = 100
"""Traces that are looked at, or deleted, at once."""


def mirror(release_id: str) -> str:
    """Write one release to MLflow: a run of the assistant's experiment, its prompt version and its model version.

    Returns the run id. Writing it again updates the same run; the alias `champion` follows the live pointer.
    """
    import mlflow

    book = Ledger(settings().ledger)
    row = book.release_row(release_id)
    release = book.release(release_id)
    client = _client()
    trained = record_training(release.model)
    experiment = mlflow.set_experiment(release.assistant)
    found = client.search_runs([experiment.experiment_id], f"tags.release = '{release_id}'", max_results=1)
    with mlflow.start_run(
        run_id=found[0].info.run_id if found else None, run_name=None if found else release_id
    ) as run:
        if not found:
            mlflow.set_tags({"release": release_id, "kind": row["kind"], "parent": row["parent"] or ""})
            mlflow.log_params(parameters(release))
            mlflow.log_dict(row["body"], "release.json")
            if trained:
                mlflow.set_tag("training_run", trained)
        if decided := book.gate_decision(release_id):
            decision = Decision.of(decided["body"])
            mlflow.set_tags({"verdict": decision.verdict, "reason": decision.reason[:4000]})
            mlflow.log_metrics(decision.metrics or {})
            scores = Path(decision.evaluation)
            for file in (scores.with_suffix(kind) for kind in (".html", ".md", ".json")):
                if decision.evaluation and file.is_file():
                    mlflow.log_text(file.read_text(), f"report{file.suffix}")
            mlflow.log_metrics(
                {
                    f"{interval.metric}_{bound}": getattr(interval, bound)
                    for interval in decision.intervals
                    for bound in ("mean", "lower", "upper", "detectable", "discordance", "power")
                }
            )
    version = model_version(client, release, trained or run.info.run_id)
    prompt_version(release.assistant, release.prompt)
    if book.live()[release.assistant].live == release:
        client.set_registered_model_alias(release.assistant, "champion", version)
    return run.info.run_id


def parameters(release: Release) -> dict[str, str]:
    """What is served, flat."""
    return {
        "model_sha256": release.model.sha256,
        "adapter_sha256": release.model.adapter or "",
        "base_sha256": release.model.base,
        "index_checksum": release.index.checksum,
        "index_version": str(release.index.version),
        "prompt_sha256": release.prompt.sha256,
        "top_k": str(release.retrieval.top_k),
        "max_new_tokens": str(release.decoding.max_new_tokens),
    }


@contextmanager
def training_run(about: dict) -> Iterator[Callable[[dict], None]]:
    """Hands out what logs a point of progress to the MLflow run of this training, while it runs.

    `about`: assistant, key, training (the very object that trains, as JSON), and what it is made from. MLflow is a
    mirror: where it does not answer training goes on, and `record_training` writes the run later.
    """
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    lost: list[MlflowException] = []

    def log(point: dict) -> None:
        names = ("loss", "held_out", "tokens_per_s")
        now = int(time.time() * 1000)
        metrics = [Metric(name, point[name], now, point["step"]) for name in names if name in point]
        if not lost:
            try:
                client.log_batch(run_id, metrics=metrics)
            except MlflowException as error:
                told(error)

    def told(error: MlflowException) -> None:
        lost.append(error)
        print(f"MLflow at {settings().mlflow} does not answer ({error}); training goes on and is recorded later")

    try:
        client = _client()
        run_id = _run_of_training(client, about)
    except MlflowException as error:
        told(error)
    yield log
    # A run that failed stays open: the same training goes on under it


def record_training(model: Model) -> str | None:
    """The MLflow run of a published model's training, with everything about it; None for an untuned model.

    Parameters, every loss, tokens/s, memory, cost, sha256 of all files, the model card, the loss plot and the adapter;
    the served file by its place and sha256. Recording it again changes nothing.
    """
    from mlflow.entities import Metric, RunTag

    if not model.adapter:
        return None
    folder = Path(model.adapter_uri).parent.parent
    if not (folder / "training.json").exists():  # trained elsewhere
        return None
    record = json.loads((folder / "training.json").read_text())
    client = _client()
    run_id = _run_of_training(client, record)
    if client.get_run(run_id).info.status == "FINISHED":
        return run_id
    now = int(time.time() * 1000)
    curve = [Metric("loss_of_step", loss, now, step) for step, loss in enumerate(record["losses"], start=1)]
    curve += [Metric("held_out", loss, now, step) for step, loss in record["held_out"]]
    sums = {name: record[name] for name in ("tokens", "tokens_per_s", "memory_mb", "elapsed", "cpu_s", "cost")}
    sums |= {"agreement": record["proof"]["agreement"], "examples": record["examples"]}
    curve += [Metric(name, float(value), now, record["steps"]) for name, value in sums.items()]
    for first in range(0, len(curve), 1000):
        client.log_batch(run_id, metrics=curve[first : first + 1000])
    tags = {"model_sha256": model.sha256, "adapter_sha256": model.adapter, "base_sha256": model.base}
    tags |= {"model_uri": model.uri, "ended": record["ended"], "dtype": record["dtype"]}
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    for name in ("training.json", "README.md", "loss.png"):
        client.log_artifact(run_id, str(folder / name))
    client.log_artifacts(run_id, str(folder / "adapter"), "adapter")
    client.set_terminated(run_id)
    return run_id


def _client() -> MlflowClient:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(settings().mlflow)
    return MlflowClient()


def _run_of_training(client: MlflowClient, about: dict) -> str:
    """The run of one training by its key; made with its parameters when it is not there."""
    import mlflow
    from mlflow.entities import Param

    experiment = mlflow.set_experiment(about["assistant"]).experiment_id
    found = client.search_runs([experiment], f"tags.training = '{about['key']}'", max_results=1)
    if found:
        return found[0].info.run_id
    tags = {"training": about["key"], "snapshot": about["snapshot"], "kind": "training"}
    run_id = client.create_run(experiment, tags=tags, run_name=f"finetune-{about['key'][:8]}").info.run_id
    flat = dict(_flat(about["training"])) | {
        name: about[name] for name in ("examples", "held", "contexts", "preferences")
    }
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in flat.items()])
    client.log_dict(run_id, {"feedback": about["feedback"], "snapshot": about["snapshot"]}, "lineage.json")
    return run_id


def _flat(values: dict, before: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def model_version(client: MlflowClient, release: Release, run_id: str) -> str:
    """The version of the assistant's registered model that holds this release, from the run of its training; made once.

    The source is the adapter among that run's artifacts; an untuned model's version has only its run.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(release.assistant)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{release.assistant}'"):
        if version.tags.get("release") == release.id:
            return version.version
    tags = {"release": release.id, "model_sha256": release.model.sha256}
    source = f"{client.get_run(run_id).info.artifact_uri}/{'adapter' if release.model.adapter else 'release.json'}"
    made = client.create_model_version(release.assistant, source, run_id, tags=tags)
    return made.version


def prompt_version(assistant: str, prompt: Prompt) -> None:
    """Register the prompt text of a release as a version of `<assistant>-prompt`, unless that text is there.

    It is a record of what was released: worked examples that are withdrawn later stay in it, and no model is shown them
    (`serving.rag.standing`). To take such a text out of MLflow too, delete the version.
    """
    import mlflow
    from mlflow import MlflowClient

    name, sha = f"{assistant}-prompt", prompt.sha256
    shots = [turn for shot in prompt.shots for turn in rag.shown(prompt, shot)]
    turns = [("system", prompt.system), *shots, ("user", prompt.user)]
    template = [{"role": role, "content": content} for role, content in turns]
    known = mlflow.genai.search_prompts(f"name = '{name}'")
    if known:
        for version in MlflowClient().search_prompt_versions(name):
            if (version.tags or {}).get("sha256") == sha:
                return
    tags = {"sha256": sha, "passage": prompt.passage, "abstain": prompt.abstain, "chat": prompt.chat}
    mlflow.genai.register_prompt(name=name, template=template, commit_message=digest(sha)[:8], tags=tags)


def prompt(assistant: str, version: int, served: Prompt) -> Prompt:
    """A registered version of an assistant's prompt, without worked examples: those are chosen for a release.

    What a version does not say, such as one made in MLflow's own page, is as in `served`. Raises KeyError when there is
    no such version, ValueError when its template is not a system and a user message.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(settings().mlflow)
    name = f"{assistant}-prompt"
    try:
        found = mlflow.genai.load_prompt(name, version=version, link_to_model=False)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise KeyError(f"{name} has no version {version} in the prompt registry at {settings().mlflow}") from None
    messages = found.template if isinstance(found.template, list) else []
    texts = {message["role"]: message["content"] for message in messages}
    if not {"system", "user"} <= texts.keys():
        raise ValueError(f"version {version} of {name} is no chat prompt of a system and a user message; register one")
    kept = {tag: text for tag, text in (found.tags or {}).items() if tag in ("passage", "abstain", "chat")}
    return replace(served, system=texts["system"], user=texts["user"], shots=(), **kept)


def forget_traces(assistant: str, responses: Set[str]) -> int:
    """Delete the traces of these responses from the assistant's experiment, and say how many there were.

    They are told by their tags: a trace that a caller began has that caller's id. Raises ConnectionError when MLflow
    does not answer.
    """
    from mlflow.exceptions import MlflowException

    client, found, page = _client(), [], None
    try:
        experiment = client.get_experiment_by_name(assistant)
        if experiment is None:
            return 0
        while page is None or page.token:
            asked = {"max_results": PAGE, "page_token": page.token if page else None, "include_spans": False}
            page = client.search_traces(locations=[experiment.experiment_id], **asked)
            found += [trace.info.trace_id for trace in page if trace.info.tags.get("response") in responses]
        batches = (found[at : at + PAGE] for at in range(0, len(found), PAGE))
        return sum(client.delete_traces(experiment.experiment_id, trace_ids=batch) for batch in batches)
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {settings().mlflow} did not do it ({error}); start it, and again") from error


def forget(assistant: str) -> int:
    """Mark the assistant's experiment as deleted, delete its registered model and its prompts; how many of the three.

    `mlflow gc` then frees the artifacts. The experiment gives its name up first: MLflow keeps the name of a deleted one
    taken, and a new assistant could not have it. Raises ConnectionError when MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    client, gone = _client(), 0

    def deleted(delete: Callable[[str], object], name: str) -> int:
        try:
            delete(name)
            return 1
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return 0

    try:
        if (found := client.get_experiment_by_name(assistant)) and found.lifecycle_stage == "active":
            client.rename_experiment(found.experiment_id, f"{assistant}, deleted as {found.experiment_id}")
            client.delete_experiment(found.experiment_id)
            gone += 1
        gone += deleted(client.delete_registered_model, assistant)
        return gone + deleted(client.delete_prompt, f"{assistant}-prompt")
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {settings().mlflow} did not do it ({error}); start it, and again") from error
