"""MLflow as history and mirror: runs, metrics, adapters, reports, prompt versions and model versions.

The ledger decides what is live; `mirror` copies what it says and can be repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from data.ledger import Ledger
from data.records import Decision, Prompt, Release, digest
from settings import settings
from tasks import report

if TYPE_CHECKING:
    from mlflow import MlflowClient


def mirror(release_id: str) -> str:
    """Write one release to MLflow: a run of the assistant's experiment, its prompt version and its model version.

    Returns the run id. Writing it again updates the same run; the alias `champion` follows the live pointer.
    """
    import mlflow
    from mlflow import MlflowClient

    book = Ledger(settings().ledger)
    row = book.release_row(release_id)
    release = Release.of(row["body"])
    mlflow.set_tracking_uri(settings().mlflow)
    client = MlflowClient()
    experiment = mlflow.set_experiment(release.assistant)
    found = client.search_runs([experiment.experiment_id], f"tags.release = '{release_id}'", max_results=1)
    with mlflow.start_run(
        run_id=found[0].info.run_id if found else None, run_name=None if found else release_id
    ) as run:
        if not found:
            mlflow.set_tags({"release": release_id, "kind": row["kind"], "parent": row["parent"] or ""})
            mlflow.log_params(parameters(release))
            mlflow.log_dict(row["body"], "release.json")
            if release.model.adapter_uri:
                mlflow.log_artifacts(release.model.adapter_uri, "adapter")
                training = Path(release.model.uri).parent / "training.json"
                if training.exists():
                    log_training(client, run.info.run_id, json.loads(training.read_text()))
        if decided := book.gate_decision(release_id):
            decision = Decision.of(decided["body"])
            mlflow.set_tags({"verdict": decision.verdict, "reason": decision.reason[:4000]})
            mlflow.log_metrics(decision.metrics or {})
            mlflow.log_text(report.markdown(decision), "report.md")
    version = model_version(client, release, run.info.run_id, run.info.artifact_uri)
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


def log_training(client: MlflowClient, run_id: str, record: dict) -> None:
    """The object that trained, and its loss curve."""
    for name, value in record.get("training", {}).items():
        client.log_param(run_id, f"training.{name}", value)
    for point in record.get("curve", []):
        client.log_metric(run_id, "loss", point["loss"], step=point["step"])
    client.log_dict(run_id, record, "training.json")


def model_version(client: MlflowClient, release: Release, run_id: str, artifact_uri: str) -> str:
    """The version of the assistant's registered model that holds this release; made once."""
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
    made = client.create_model_version(release.assistant, f"{artifact_uri}/adapter", run_id, tags=tags)
    return made.version


def prompt_version(assistant: str, prompt: Prompt) -> None:
    """Register the prompt text of a release as a version of `<assistant>-prompt`, unless that text is there."""
    import mlflow
    from mlflow import MlflowClient

    name, sha = f"{assistant}-prompt", prompt.sha256
    template = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
    known = mlflow.genai.search_prompts(f"name = '{name}'")
    if known:
        for version in MlflowClient().search_prompt_versions(name):
            if (version.tags or {}).get("sha256") == sha:
                return
    tags = {"sha256": sha, "passage": prompt.passage, "abstain": prompt.abstain, "chat": prompt.chat}
    mlflow.genai.register_prompt(name=name, template=template, commit_message=digest(sha)[:8], tags=tags)
