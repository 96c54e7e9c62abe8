"""From questions of another style, which are answered worse, to a retrained model that answers them: by stage."""

import tempfile
from pathlib import Path

from benchmarks.machine import handbook, machine

AIM = "stated: quality before, fallen and recovered, and the seconds of each stage"
SHARES = ("usual", "fallen", "recovered", "others_fallen", "others_recovered")


def met(value: dict) -> bool:
    return value["fallen"] < value["usual"] and value["recovered"] > value["fallen"]


def measure() -> dict:
    """The second act of the demo on the released sample; nobody asks for the retraining but the monitor."""
    with machine():
        handbook(Path(tempfile.mkdtemp()) / "documents", minutes="2.5")
        from uuid import UUID

        from data.ledger import Ledger
        from flows import demo, stage
        from flows.command import stage_seconds
        from settings import settings

        with stage.by_hand(), stage.assistant(Ledger(settings().ledger)) as scene:
            found = demo.heal(scene)
            stages = stage_seconds(UUID(found.run))
    shares = {name: round(getattr(found, name), 3) for name in SHARES}
    total = round(sum(found.seconds.values()), 1)
    value = shares | {"total_s": total, "stages_s": found.seconds, "retrain_s": stages}
    n = {"usual": demo.USUAL, "corrected": demo.CORRECTED, "others": demo.OTHERS}
    return {"value": value, "n": n, "against": None, "limit": None}
