"""Stored evaluations for people: the page of a decision under an address that opens it for a while, and its slices.

A browser sends no key along when it opens a page. So whoever may read a decision is given an address with a time and a
signature (HMAC-SHA256 with the endpoint's internal token), as object stores do; it opens that page and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import statistics
import time
from pathlib import Path

from serving.refused import Refused

VALID_S = 600
SANDBOX = {
    "content-security-policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""The page holds texts of users and documents, escaped; should one slip through, nothing runs and nothing is sent."""
RELEASE, NAME = re.compile(r"rel-[0-9a-f]{1,64}\Z"), re.compile(r"[0-9a-f]{1,64}\Z")


class Reports:
    """The evaluations under `folder` (.perennial/reports)."""

    def __init__(self, folder: Path, secret: str):
        self.folder, self.secret = folder, secret.encode()

    def stored(self, release: str, evaluation: str, suffix: str) -> Path | None:
        """The file of an evaluation, by its decision's release and path: of the path only the name counts, so that a
        moved home finds it and nothing outside the folder can be named. None: it is not here."""
        name = Path(evaluation).stem
        if not (RELEASE.match(release) and NAME.match(name)):
            return None
        path = (self.folder / release / name).with_suffix(suffix)
        inside = path.is_file() and path.resolve().is_relative_to(self.folder.resolve())
        return path if inside else None

    def address(self, seq: int, now: float | None = None) -> str:
        """Where the page of decision `seq` opens, for VALID_S seconds at least; the same one for about as long, so that
        a view that holds it does not change by itself."""
        until = (int(now or time.time()) // VALID_S + 2) * VALID_S
        return f"/console/reports/{seq}?until={until}&sign={self._sign(seq, until)}"

    def check(self, seq: int, until: int, sign: str) -> None:
        """Raises Refused 403 for an address that was not given out, or whose time is over."""
        if not hmac.compare_digest(sign.encode(), self._sign(seq, until).encode()) or until < time.time():
            message = "This address has expired; open the report from the console again"
            raise Refused(403, message, "permission_error", code="address_expired")

    def _sign(self, seq: int, until: int) -> str:
        return hmac.new(self.secret, f"report {seq} {until}".encode(), hashlib.sha256).hexdigest()

    def slices(self, release: str, evaluation: str, primary: str) -> list[dict]:
        """The primary metric's means over the open questions of each slice, of candidate and champion, the worst
        difference first."""
        stored = self.stored(release, evaluation, ".json")
        body = json.loads(stored.read_text()) if stored else {}
        if not (body.get("candidate") and body.get("champion")):
            return []
        arms = {arm: _scored(body[arm], primary) for arm in ("candidate", "champion")}
        sealed = set(body.get("sealed", ()))
        members: dict[str, list[str]] = {}
        for question, names in zip(body["candidate"]["questions"], body["candidate"].get("slices") or (), strict=False):
            for name in names:
                members.setdefault(name, []).append(question)
        found = []
        for name, questions in members.items():
            both = [q for q in questions if q not in sealed and all(arm.get(q) is not None for arm in arms.values())]
            if both:
                means = {arm: statistics.fmean(scores[q] for q in both) for arm, scores in arms.items()}
                found.append({"name": name, "n": len(both)} | means)
        return sorted(found, key=lambda one: one["candidate"] - one["champion"])


def _scored(arm: dict, metric: str) -> dict[str, float | None]:
    return dict(zip(arm["questions"], arm["metrics"].get(metric, ()), strict=False))
