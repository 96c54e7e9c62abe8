"""Files parsed in a child process, so that one which eats memory, hangs or crashes its reader costs only itself.

The child (`python -m data.parsing`) takes requests from its standard input and answers in frames: four bytes of length,
then JSON. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from data.archives import parts
from data.readers import MOST_BYTES, Read
from data.records import Document, Example, Quarantined, Section
from data.remote import Unreachable, file_name
from data.sources import File, is_archive

COMMAND = (sys.executable, "-m", "data.parsing")
ROOT = Path(__file__).resolve().parent.parent
MOST_SECONDS = 60.0  # for a file or a member of an archive, the fetching of a remote one included
START_SECONDS = 60.0
MOST_MEMORY = 1536 << 20  # bytes of address space beyond what the child starts with
MOST_REPLY = 4 * MOST_BYTES  # bytes of JSON for a file or a member of an archive
AHEAD = 4  # requests in the pipe, which would block both sides if it could not take them all
MOST_FATAL = 10  # members of one archive that may end the child; then the rest is left out
# Address space that these would reserve and not use counts against MOST_MEMORY.
FRUGAL = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
OUT_OF_MEMORY = 77  # exit status of the child


class Killed(Exception):
    """The child is gone, and why. It is not `guilty` when it had read other parts before: a new one may do better."""

    def __init__(self, reason: str, guilty: bool):
        super().__init__(reason)
        self.guilty = guilty


def parse(files: Sequence[File]) -> Iterator[tuple[File, Read]]:
    """Each file with its documents and examples, and quarantine rows for what could not be read, in order.

    Raises ConnectionError when a remote source stops answering, since its files are not at fault, and RuntimeError
    when the child does not start.
    """
    child, rest = Child(), iter(files)
    try:
        while True:
            for file in islice(rest, AHEAD - len(child.asked)):
                child.ask(file)
            if not child.asked:
                return
            yield child.asked[0], _read(child)
            child.answered()
    finally:
        child.end()


def _read(child: Child) -> Read:
    """All parts of the file that is next: one that ends the child is quarantined, and a new child goes on behind it."""
    file = child.asked[0]
    name = file.name or file_name(file.uri)
    found, fatal, part = Read(), 0, None
    while True:
        try:
            kind, content = child.answer()
        except Killed as killed:
            if killed.guilty:
                found.quarantined.append(Quarantined(part or name, "", str(killed)))
                child.done, fatal = child.done + 1, fatal + 1
                if part is None:
                    return found
                if fatal == MOST_FATAL:
                    reason = f"{fatal} of its files could not be read safely; the rest was left out"
                    found.quarantined.append(Quarantined(name, "", reason))
                    return found
            part = None
            continue
        if kind == "begins":
            part = content
        elif kind == "unreachable":
            raise ConnectionError(f"{content}; nothing was changed, run it again")
        elif kind != "end":
            part, child.done = None, child.done + 1
            _add(found, content)
        if kind in ("whole", "end"):
            return found


def _add(found: Read, content: dict) -> None:
    """The records in a frame, built directly: `Record.of` looks up the types of every field of every record."""
    for row in content["documents"]:
        sections = tuple(Section(**section) for section in row["sections"])
        found.documents.append(Document(**row | {"sections": sections}))
    found.examples += [Example(**row | {"answers": tuple(row["answers"])}) for row in content["examples"]]
    found.quarantined += [Quarantined(**row) for row in content["quarantined"]]


class Child:
    """The process that parses: started when an answer is wanted, and again after it was killed.

    `asked`: the files that are not answered yet; `done`: how many parts of the first of them are.
    """

    def __init__(self):
        self.asked: deque[File] = deque()
        self.done = 0
        self._process: subprocess.Popen | None = None
        self._received = bytearray()
        self._answers = 0
        self._ready = select.poll()  # select.select takes no file number past 1023

    def ask(self, file: File) -> None:
        self.asked.append(file)
        if self._process is not None:
            self._request(file, 0)

    def answer(self) -> tuple[str, object]:
        """(kind, content) of the next frame, as `_replies` makes it. Raises Killed."""
        if self._process is None:
            self._start()
        kind, content = self._frame(MOST_SECONDS)
        self._answers += kind in ("read", "whole")
        return kind, content

    def answered(self) -> None:
        self.asked.popleft()
        self.done = 0

    def end(self) -> None:
        if self._process is not None:
            self._ready.unregister(self._process.stdout)
            self._process.kill()
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.stdout.close()
            with suppress(subprocess.TimeoutExpired):  # it may hang in the kernel, on a file of a dead share
                self._process.wait(5)
            self._process = None

    def _start(self) -> None:
        self._received, self._answers = bytearray(), 0
        environment, pipe = os.environ | FRUGAL, subprocess.PIPE
        self._process = subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe)
        self._ready.register(self._process.stdout, select.POLLIN)
        try:
            self._frame(START_SECONDS)
        except Killed as killed:
            raise RuntimeError(f"the process that reads files {killed} at its start; run {' '.join(COMMAND)}") from None
        for number, file in enumerate(self.asked):
            self._request(file, 0 if number else self.done)

    def _request(self, file: File, done: int) -> None:
        with suppress(BrokenPipeError):  # the next answer says why
            _send(self._process.stdin, [vars(file), done])

    def _frame(self, seconds: float) -> tuple[str, object]:
        deadline = time.monotonic() + seconds
        while True:
            size = int.from_bytes(self._received[:4])
            if size > MOST_REPLY:
                raise self._killed(f"gives more than {MOST_REPLY >> 20} MB of text; split it", certain=True)
            if size and len(self._received) >= 4 + size:
                kind, content = json.loads(self._received[4 : 4 + size])
                del self._received[: 4 + size]
                return kind, content
            if not self._ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise self._killed(f"took longer than {seconds:g} s to read; split it", certain=True)
            if not (data := os.read(self._process.stdout.fileno(), 1 << 20)):
                raise self._killed(self._cause())
            self._received += data

    def _cause(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        status = self._process.returncode
        if status == OUT_OF_MEMORY:
            return f"needs more than {MOST_MEMORY >> 20} MB of memory to read; split it"
        how = signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
        return f"crashed its reader ({how})"

    def _killed(self, reason: str, certain: bool = False) -> Killed:
        self.end()
        return Killed(reason, guilty=certain or self._answers == 0)


def _send(pipe: BinaryIO, frame: object) -> None:
    data = json.dumps(frame, default=vars, ensure_ascii=False).encode(errors="surrogatepass")
    pipe.write(len(data).to_bytes(4) + data)
    pipe.flush()


# --- in the child -----------------------------------------------------------------------------


def main() -> None:
    """Answers requests until the input ends; exits with OUT_OF_MEMORY when a file needs more than MOST_MEMORY."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not print into a frame
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it as well, and ends this process
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, has + MOST_MEMORY)
    _lower(resource.RLIMIT_CORE, 0)
    try:
        _send(output, ["ready", None])
        while head := sys.stdin.buffer.read(4):
            about, done = json.loads(sys.stdin.buffer.read(int.from_bytes(head)))
            # Should the parent die meanwhile, this process must not hang for ever.
            signal.alarm(2 * int(MOST_SECONDS))
            for frame in _replies(File(**about), done):
                signal.alarm(0)  # no limit on how long the parent takes to read it
                _send(output, frame)
                signal.alarm(2 * int(MOST_SECONDS))
            signal.alarm(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BrokenPipeError:
        os._exit(0)


def _replies(file: File, done: int) -> Iterator[tuple[str, object]]:
    """The frames for a file: a `whole` one; of an archive, each part after the first `done` `begins` and is `read`."""
    try:
        if not is_archive(file.name or file_name(file.uri)):
            ((_, read),) = parts(file)
            yield "whole", read()
            return
        for name, read in islice(parts(file), done, None):
            yield "begins", name
            yield "read", read()
        yield "end", None
    except Unreachable as error:
        yield "unreachable", str(error)


def _lower(limit: int, value: int) -> None:
    soft, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (min([value, *(old for old in (soft, hard) if old != resource.RLIM_INFINITY)]), hard))


if __name__ == "__main__":
    main()
