"""Addresses, ports and secrets, from the environment (prefix PERENNIAL_). Run knobs are flow parameters."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent
LOOPBACK = "127.0.0.1"  # where Prefect, MLflow and Ray listen: none of them asks for a key


class Settings(BaseSettings):
    """Every field is PERENNIAL_<NAME> in the environment; the defaults run everything on this machine."""

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", extra="ignore")

    home: Path = Field(ROOT / ".perennial", description="folder of all local state")
    host: str = Field("127.0.0.1", description="address of the endpoint; beyond loopback an api_key is required")
    api_key: str | None = Field(None, description="admin key of the endpoint; more are made by python -m serving.keys")
    endpoint_port: int = 8000
    prefect_port: int = 4200
    mlflow_port: int = 5000
    dashboard_port: int = 8265
    ray_port: int = 6379
    ledger_url: str | None = Field(None, description="SQLAlchemy URL; default SQLite under home")
    requests_url: str | None = Field(None, description="SQLAlchemy URL of the request log; default SQLite under home")
    store_uri: str | None = Field(None, description="LanceDB URI; default a folder under home")
    mlflow_uri: str | None = Field(None, description="MLflow tracking server; default the one on this machine")
    prefect_api: str | None = Field(None, description="Prefect API; default the server on this machine")
    ray_address: str | None = Field(None, description="Ray cluster; default the head on this machine")
    retention_days: int = Field(30, description="how long the request log keeps a request")
    trace_share: float = Field(0.1, ge=0, le=1, description="share of requests that are traced; 0: none, ever")
    otlp_url: str | None = Field(None, description="OTLP/HTTP address for traces (…/v1/traces); default MLflow's")
    training_workers: int = Field(2, description="Ray Train workers")
    training_gpu: bool = Field(False, description="one GPU per training worker")
    price_cpu_hour: float = Field(0.04, description="what an hour of one processor costs, for cost estimates")
    price_prompt_million: float = Field(0.02, description="what a million prompt tokens cost, for budgets and totals")
    price_completion_million: float = Field(0.10, description="what a million completion tokens cost, likewise")
    price_gpu_hour: float = Field(2.5, description="what an hour of one GPU costs, for cost estimates")
    upstream_key: str | None = Field(None, description="API key of the upstream that --base-model URL#MODEL names")
    judge_url: str | None = Field(None, description="OpenAI-compatible endpoint of a judge (…/v1); none: no judge")
    judge_model: str | None = Field(None, description="the judge's model; needed with judge_url")
    judge_key: str | None = Field(None, description="the judge's API key")
    judge_fields: dict[str, Any] = Field(
        {}, description='more fields of every request to the judge, as JSON; our own endpoint: {"retrieval": "off"}'
    )
    judge_timeout_s: float = Field(60.0, description="how long one request to the judge may take")
    judge_budget: float = Field(5.0, description="the most one run may spend on the judge")
    judge_price_input: float = Field(2.5, description="what a million tokens read by the judge cost; 0 for your own")
    judge_price_output: float = Field(10.0, description="what a million tokens written by the judge cost")
    judge_rubric: str = Field("", description="the team's own criteria, judged by DeepEval's G-Eval; '' for none")
    alerts: str = Field("", repr=False, description="where alerts go: Apprise URLs (mailto://, slack://, json://, ...)")
    alert_questions: bool = Field(False, description="alerts may hold what users asked")
    request_timeout_s: float = 60.0
    address_requests_per_minute: int = Field(0, description="most requests of one address in a minute; 0 for no limit")
    max_wait_s: float = Field(20.0, description="a request that would wait longer at the present pace gets 429")
    max_queued: int = Field(128, description="requests in the endpoint at once; more get 429 with Retry-After")

    @field_validator("home")
    @classmethod
    def whole(cls, home: Path) -> Path:
        return home.expanduser().resolve()

    @property
    def ledger(self) -> str:
        return self.ledger_url or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def requests(self) -> str:
        return self.requests_url or f"sqlite:///{self.home / 'requests.db'}"

    @property
    def store(self) -> str:
        return self.store_uri or str(self.home / "lancedb")

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def snapshots(self) -> Path:
        return self.home / "snapshots"

    @property
    def endpoint(self) -> str:
        return f"http://{LOOPBACK if self.host == '0.0.0.0' else self.host}:{self.endpoint_port}"

    @property
    def mlflow(self) -> str:
        return self.mlflow_uri or f"http://{LOOPBACK}:{self.mlflow_port}"

    @property
    def prefect(self) -> str:
        return self.prefect_api or f"http://{LOOPBACK}:{self.prefect_port}/api"

    @property
    def ray(self) -> str:
        return self.ray_address or f"{LOOPBACK}:{self.ray_port}"

    @property
    def dashboard(self) -> str:
        return f"http://{LOOPBACK}:{self.dashboard_port}"

    @property
    def loopback(self) -> bool:
        return self.host in (LOOPBACK, "localhost")


@lru_cache
def settings() -> Settings:
    """The settings of this process, read once. Tests set the environment before the first call."""
    return Settings()


QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DEEPEVAL_TELEMETRY_OPT_OUT": "1",
    "DEEPEVAL_DISABLE_DOTENV": "1",
    "RAGAS_DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def environment() -> dict[str, str]:
    """What every process we start finds in its environment: addresses, telemetry off, hubs offline."""
    chosen = settings()
    return QUIET | {
        "PERENNIAL_HOME": str(chosen.home),
        "PREFECT_API_URL": chosen.prefect,
        "PREFECT_HOME": str(chosen.home / "prefect"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "MLFLOW_TRACKING_URI": chosen.mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "RAY_ADDRESS": chosen.ray,
        # Said outright: a token file left by another Ray in the home folder would lock us out of our own.
        "RAY_AUTH_MODE": "token" if chosen.ray_address else "disabled",
    }


def apply_environment() -> None:
    """Set `environment()` in this process, keeping what the user has already set. Every command begins with it."""
    for name, value in environment().items():
        os.environ.setdefault(name, value)
