"""Which release answers: the ledger is read in the background, a request is resolved once, at admission."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from data.records import Release
from settings import settings

if TYPE_CHECKING:
    from data.ledger import Ledger, Routing
    from serving.keys import Key

log = logging.getLogger("perennial.router")

POLL_S = 0.25
SLOW_POLL_S = 1.0
"""How often tombstones and keys are read; tombstones also when a live pointer moved."""
UNREADABLE = (SQLAlchemyError, OSError, ValueError, KeyError)
"""What reading the ledger raises when it is away, locked, or holds a record this version can not read."""
UNUSABLE = (OSError, ValueError, RuntimeError, LookupError)
"""What opening a release's index raises when its files are damaged or gone."""


class NoRelease(LookupError):
    """An assistant that exists and has nothing live, or a router that has not read the ledger yet."""


class Router:
    """The routing of every assistant, as last read from the ledger; what was read last stays when it can not be read.

    `warm(release)` is called before a release is routed to for the first time (it opens the index). When it raises,
    the assistant keeps its previous routing, so a damaged index never replaces one that works. `read_keys()` gives the
    keys of the endpoint, by the sha256 of their secrets.
    """

    def __init__(
        self,
        ledger: Ledger,
        warm: Callable[[Release], None] = lambda release: None,
        read_keys: Callable[[], dict[str, Key]] = dict,
    ):
        self.ledger, self.warm, self.read_keys = ledger, warm, read_keys
        self.routings: dict[str, Routing] = {}
        self.buried: dict[str, frozenset[str]] = {}
        self.keys: dict[str, Key] = {}
        self.read_at: float | None = None
        self._slow_at = 0.0
        self._warmed: dict[str, str] = {}  # by release: its assistant
        self._refused: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._release = lru_cache(64)(ledger.release)

    # --- reading the ledger -------------------------------------------------------------------

    def start(self) -> None:
        """Read once, then go on reading in a thread until `close`."""
        self.poll()
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            self.poll()

    def poll(self) -> None:
        """One look at the ledger. Unreadable: what is known stays, and `age` grows."""
        try:
            seen = self.ledger.live()
            moved = [name for name, routing in seen.items() if self._seq(name) != routing.live_seq]
            every = time.monotonic() - self._slow_at >= SLOW_POLL_S
            buried = {name: self.ledger.tombstones(name) for name in (seen if every else moved)}
            self.keys = self.read_keys() if every else self.keys
        except UNREADABLE as error:
            log.warning("the ledger can not be read, routing stays as it is: %s", error)
            return
        if self.routings.keys() - seen.keys():  # a new assistant of a deleted one's name has the same release ids
            self._release.cache_clear()
            self._warmed = {known: name for known, name in self._warmed.items() if name in seen}
        # Tombstones first: a release that goes live must not show a chunk that was buried with it for one request.
        self.buried = {name: chunks for name, chunks in (self.buried | buried).items() if name in seen}
        if every:
            self._slow_at = time.monotonic()
        self.routings = {name: self._usable(routing) for name, routing in seen.items()}
        self.read_at = time.monotonic()

    def _seq(self, name: str) -> int | None:
        return self.routings[name].live_seq if name in self.routings else None

    def _usable(self, routing: Routing) -> Routing:
        known = self.routings.get(routing.assistant)
        if routing.canary and not self._ready(routing.canary):
            routing = replace(routing, canary=None, canary_share=0.0)
        if routing.b and not self._ready(routing.b):
            routing = replace(routing, b=None, b_share=0.0)
        if routing.live and not self._ready(routing.live):
            # The sequence number stays the old one too, so the next poll tries again.
            return known if known and known.live else replace(routing, live=None)
        return routing

    def _ready(self, release: Release) -> bool:
        """Whether `release` could be warmed; a failure is tried again after 5 s."""
        if release.id in self._warmed:
            return True
        if time.monotonic() - self._refused.get(release.id, -60.0) < 5.0:
            return False
        try:
            self.warm(release)
        except UNUSABLE as error:
            self._refused[release.id] = time.monotonic()
            log.error("release %s of %s can not be served: %s", release.id, release.assistant, error)
            return False
        self._warmed[release.id] = release.assistant
        return True

    @property
    def alive(self) -> bool:
        """Whether the reading thread runs."""
        return bool(self._thread and self._thread.is_alive())

    @property
    def age(self) -> float:
        """Seconds since the ledger was last read; infinite before the first time."""
        return float("inf") if self.read_at is None else time.monotonic() - self.read_at

    # --- resolving a request ------------------------------------------------------------------

    def assistants(self) -> list[str]:
        """The assistants that answer now, by name."""
        return sorted(name for name, routing in self.routings.items() if routing.live)

    def tombstones(self, assistant: str) -> frozenset[str]:
        return self.buried.get(assistant, frozenset())

    def resolve(self, assistant: str, user: str, pinned: str | None = None, asker: str = "") -> tuple[Release, str]:
        """The release that answers this request, and its arm: 'live', 'canary' or 'pinned', in a split test 'a' or 'b'.

        `user` is whoever should stay on one arm: a user, else the request's own id; `asker` the one voice that a split
        test counts (see requests.asker), '' for nobody in particular. A canary goes before a split test. `pinned`
        names a release to serve even if it is not live (it is read from the ledger: call it off the event loop).
        Raises KeyError for an unknown assistant or release, NoRelease when there is nothing to answer with, ValueError
        when the pinned release belongs to another assistant.
        """
        if pinned:
            release = self._release(pinned)
            if release.assistant != assistant:
                raise ValueError(f"release {pinned} belongs to {release.assistant!r}, not to {assistant!r}")
            return release, "pinned"
        if self.read_at is None:
            raise NoRelease("the ledger has not been read yet")
        routing = self.routings.get(assistant)
        if routing is None:
            raise KeyError(assistant)
        if routing.canary and share(routing.canary.id, user) < routing.canary_share:
            return routing.canary, "canary"
        if routing.live is None:
            raise NoRelease(f"the assistant {assistant!r} has no live release yet")
        if routing.b is None:
            return routing.live, "live"
        chosen = share(f"split {routing.split}", asker or user) < routing.b_share
        return (routing.b, "b") if chosen else (routing.live, "a")


def share(of: str, user: str) -> float:
    """Where `user` falls in [0, 1) for this canary or split test: the same each time, and anew for the next one."""
    return int.from_bytes(hashlib.sha256(f"{of}:{user}".encode()).digest()[:7], "big") / 256**7


def internal_token() -> str:
    """The secret with which our own processes may name a release; readable by this user alone, made on first use."""
    path = settings().home / "internal.token"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".internal.token.{os.getpid()}.{secrets.token_hex(4)}")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
        try:
            os.link(draft, path)  # fails if another process was first; then its token counts
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
