"""A person's word before a release goes live, where the gate's settings ask for it.

The flow run is paused, not suspended: a suspended run leaves its process and starts again from the top, which a flow
called by another flow can not. So a run that waits holds one of the worker's slots and its claim, until the deadline.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from prefect import pause_flow_run
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Running
from pydantic import Field

from data.ledger import Ledger
from data.records import Decision


class Approval(RunInput):
    """What Prefect asks for when the paused run is resumed."""

    approve: bool
    who: str = Field(min_length=1)
    note: str = ""


def approved(book: Ledger, decision: Decision, hours: float) -> Decision:
    """The gate's accepting `decision` as a person leaves it: as it was, rejected, or held when `hours` have passed.

    Who said what and when is a row of the ledger; of a yes already there for this pair of releases nobody is asked.
    """
    name = book.release_row(decision.release)["assistant"]
    for row in book.decisions(name, "approval", limit=10_000):
        if (row["release"], row["body"].get("champion")) == (decision.release, decision.champion):
            if row["verdict"] == "approved":
                return decision
            break
    start = time.monotonic()
    said = ask(decision, hours)
    if said is None:
        verdict, reason, after = "expired", f"Nobody approved it within {hours:g} hours.", "hold"
    elif said.approve:
        verdict, reason, after = "approved", f"Approved by {said.who}. {said.note}".strip(), decision.verdict
    else:
        verdict, reason, after = "declined", f"Declined by {said.who}. {said.note}".strip(), "reject"
    told = {"champion": decision.champion, "who": said and said.who, "hours": hours, "gate": decision.reason}
    told |= {"waited": round(time.monotonic() - start, 1)}
    book.decide(name, "approval", decision.release, verdict, reason, told)
    if verdict == "approved":
        return replace(decision, notes=(*decision.notes, reason))
    look = 0 if said is None else decision.look  # nobody looked: it may be asked for again
    refused = replace(decision, verdict=after, look=look, reason=f"{reason} The gate had said: {decision.reason}")
    book.decide_gate(name, refused)
    return refused


def ask(decision: Decision, hours: float) -> Approval | None:
    """Waits for a person to resume this flow run; None when the deadline has passed."""
    page = Path(decision.evaluation).with_suffix(".html") if decision.evaluation else "its report"
    where = f"{flow_run.ui_url}"
    print(f"approval: {decision.release} waits {hours:g} hours for a yes or no: Resume at {where}; {page}")
    described = f"**{decision.release}** against {decision.champion}\n\n{decision.reason}\n\n{page}\n\n[Run]({where})"
    form = Approval.with_initial_data(description=described)
    try:
        return pause_flow_run(wait_for_input=form, timeout=max(1, round(hours * 3600)), poll_interval=5, key="approval")
    except FlowPauseTimeout:
        with get_client(sync_client=True) as client:  # else the server makes a failure of whatever the run ends with
            client.set_flow_run_state(flow_run.get_id(), Running(), force=True)
        return None
