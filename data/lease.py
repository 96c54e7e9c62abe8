"""The right to write one thing, held by one process or thread at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

from settings import settings

DELETING = "deleting"
"""The right to remove files that a record may name: nobody else has it while a backup is copied."""


@contextmanager
def lease(name: str, timeout_s: float = 120.0) -> Iterator[Callable[[], None]]:
    """The right to write `name`; yields a check to call before a commit.

    The kernel frees it when the holder dies, so a killed writer blocks nobody. Each holder gets a higher fence
    number; the check raises RuntimeError when a later holder took over (the lease file was removed or replaced).
    Raises TimeoutError, naming the holder, after `timeout_s` seconds.
    """
    path = settings().home / "leases" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with open(path, "a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    holder = path.read_text()
                    raise TimeoutError(f"{name} is being written by {holder}; waited {timeout_s} s") from None
                time.sleep(0.05)
        file.seek(0)
        held = {
            "fence": json.loads(file.read() or '{"fence": 0}')["fence"] + 1,
            "pid": os.getpid(),
            "token": uuid4().hex,
        }
        file.seek(0)
        file.truncate()
        file.write(json.dumps(held))
        file.flush()

        def confirm() -> None:
            if not path.exists() or json.loads(path.read_text() or "{}") != held:
                raise RuntimeError(f"the lease on {name} was taken over; nothing was written, start again")

        yield confirm
