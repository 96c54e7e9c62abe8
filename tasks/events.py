"""Prefect events of an assistant, for a team's own automations. An event may be lost; what counts is in the ledger.

EVENTS says what is sent and when. The resource is `perennial.assistant.<name>`, and `perennial.release.<id>` is related
where a release is meant. Every payload has the same fields, None or empty where there is nothing to say, so that the
template of an automation never meets a missing one:

| field | what it is |
|---|---|
| `assistant` | its name |
| `release` | id of the release that it is about |
| `outbox` | number of the ledger's row that a remedy runs by; None for what does not run |
| `kind` | the remedy, or how the release was made: bootstrap, tuned, reindex, rollback, ... |
| `row` | row of the diagnosis table, or a split test's verdict |
| `reason` | one sentence |
| `evidence` | the signals in alarm by name, and the figures that decided; never what users asked |
| `links` | caption -> address: the endpoint's console, the flow run |
"""

from __future__ import annotations

from prefect.runtime import flow_run

from data.redaction import redact
from settings import settings
from tasks import diagnose
from tasks.diagnose import Remedy

REMEDIES = [kind for kind in diagnose.KINDS if kind != "nothing"]
EVENTS = {
    "perennial.drift.detected": "a diagnosis calls for a remedy, an alert among them",
    **{f"perennial.remedy.{kind}": f"{kind} was asked for, beside the event before" for kind in REMEDIES},
    "perennial.remedy.concluded": "a remedy has run; `reason` says what came of it",
    "perennial.release.rejected": "the gate refused a candidate",
    "perennial.release.held": "the gate could not tell, or nobody approved in time",
    "perennial.release.canary": "an accepted candidate goes into its smoke query and its canary",
    "perennial.release.promoted": "a release went live",
    "perennial.release.rolledback": "a release was taken back: in its canary, or from being live",
    "perennial.split.started": "a split test began; `release` is its arm b",
    "perennial.split.decided": "a split test came to a verdict, which is its `row`",
}
"""Event -> when it is sent."""
REFUSED = {"reject": "perennial.release.rejected", "hold": "perennial.release.held"}
"""Verdict of the gate -> the event of a candidate that does not go on."""


def emit(
    event: str,
    assistant: str,
    release: str | None = None,
    outbox: int | None = None,
    kind: str | None = None,
    row: str | None = None,
    reason: str = "",
    evidence: dict | None = None,
) -> None:
    """Send one of EVENTS; KeyError for another name. A wake-up hint: without a Prefect server it is gone."""
    from prefect.events import emit_event

    if event not in EVENTS:
        raise KeyError(f"no event {event!r}; there are {', '.join(EVENTS)}")
    resource = {"prefect.resource.id": f"perennial.assistant.{assistant}", "prefect.resource.name": assistant}
    served = {"prefect.resource.id": f"perennial.release.{release}", "prefect.resource.role": "release"}
    payload = {"assistant": assistant, "release": release, "outbox": outbox, "kind": kind, "row": row}
    payload |= {"reason": redact(reason, public=True).text, "evidence": evidence or {}, "links": links()}
    emit_event(event=event, resource=resource, related=[served] if release else [], payload=payload)


def links() -> dict[str, str]:
    """Where a person looks: the endpoint's console and, inside a flow, the run."""
    found = {"console": f"{settings().endpoint}/console"}
    return found | {"run": flow_run.ui_url} if flow_run.get_id() else found


def figures(found: Remedy) -> dict:
    """The evidence of a diagnosis in short, no user's text: the signals in alarm by name and every plain figure."""
    plain = {name: value for name, value in found.evidence.items() if isinstance(value, bool | int | float)}
    return {"signals": [signal["name"] for signal in found.evidence.get("signals", ())]} | plain
